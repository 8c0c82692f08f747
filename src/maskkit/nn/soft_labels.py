"""What a location would have to pay to learn an object, of the network's own predictions, and how many may.

The part that NanoDet-Plus and RTMDet have in common: dynamic soft label assignment, which grew out of OTA (Ge et al.,
CVPR 2021) and YOLOX's SimOTA.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.geometry.boxes import iou

_IOU_COST = 3.0
"""Weight of the boxes in the cost of a match, beside the classes."""


@torch.no_grad()
def match_costs(
    logits: Float[Tensor, "p k"], boxes: Float[Tensor, "p 4"], labels: Int[Tensor, "n"], truth: Float[Tensor, "n 4"]
) -> tuple[Float[Tensor, "p n"], Float[Tensor, "p n"]]:
    """Cost and IoU of every pair of a location and an object: the quality focal loss that it would have, and
    ``-3 ln(IoU)``.

    ``boxes`` are the predicted ones of the locations, ``truth`` and ``labels`` those of the objects.
    """
    overlap = iou(boxes, truth)
    # binary cross-entropy of all classes: that of no object, and what the object's own class changes in it
    scores = logits.sigmoid()
    none = F.softplus(logits) * scores.square()  # (P, K)
    own, score = logits[:, labels], scores[:, labels]  # (P, N)
    cross = F.binary_cross_entropy_with_logits(own, overlap, reduction="none") * (overlap - score).square()
    classes = none.sum(1, keepdim=True) - none[:, labels] + cross
    return classes - _IOU_COST * (overlap + 1e-7).log(), overlap


@torch.no_grad()
def shares_of(overlaps: Float[Tensor, "p n"], best: int) -> Int[Tensor, "n"]:
    """How many locations each object takes: the whole part of the sum of its ``best`` IoUs, at least one."""
    return overlaps.topk(min(best, len(overlaps)), 0).values.sum(0).long().clamp(min=1)
