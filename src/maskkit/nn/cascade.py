"""The cascade of box heads: each stage refines the boxes of the one before.

Cai, Vasconcelos: "Cascade R-CNN: Delving into High Quality Object Detection" (CVPR 2018).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from maskkit.nn.roi import BOX_WEIGHTS, Sampled
from maskkit.nn.rpn import Weights, decode


class Stage(NamedTuple):
    """One stage of the cascade: its regions and what its head says of them."""

    sampled: Sampled
    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n k 4"]
    """Alike for every class."""


def box_weights(stage: int) -> Weights:
    """Of the box code of a stage: the corrections become smaller from one to the next."""
    x, y, w, h = BOX_WEIGHTS
    return ((stage + 1) * x, (stage + 1) * y, (stage + 1) * w, (stage + 1) * h)


@torch.no_grad()
def corrected(
    stage: Stage, extents: Float[Tensor, "b 2"], weights: Weights, bounded_shrink: bool = False
) -> Float[Tensor, "n 5"]:
    """The regions of a stage with their boxes corrected, inside of their images of (width, height) ``extents``."""
    before = stage.sampled.rois
    boxes = decode(stage.box_deltas[:, 0].float(), before[:, 1:], weights, bounded_shrink)
    boxes = torch.minimum(boxes.clamp(min=0), extents.repeat(1, 2)[before[:, 0].long()])
    return torch.cat([before[:, :1], boxes], 1)
