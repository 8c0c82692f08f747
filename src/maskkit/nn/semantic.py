"""What semantic methods share apart from their networks: the target label maps of a batch, the semantic loss."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.data.label_map import IGNORE
from maskkit.nn.losses import normaliser, processes
from maskkit.targets import Batch


def truth_of(batch: Batch) -> Int[Tensor, "b h w"]:
    """Target label maps of a batch, `IGNORE` where the class is unknown."""
    unknown = torch.full(batch.images.shape[2:], IGNORE, dtype=torch.uint8, device=batch.images.device)
    return torch.stack([unknown if t.semantic is None else t.semantic for t in batch.targets]).long()


def pixel_loss(
    logits: Float[Tensor, "b k h w"],
    truth: Int[Tensor, "b y x"],
    *,
    at: Literal["pixels", "cells"] = "pixels",
    align_corners: bool = False,
    weights: Float[Tensor, "k"] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Cross entropy over the pixels of known class, in fp32; zero, with gradients, if there are none.

    ``at="pixels"`` upsamples the logits bilinearly to the size of the target; ``"cells"`` downsamples the target to
    the size of the logits, each cell taking the label at its centre. ``weights`` are class weights, with which the
    mean becomes a weighted mean.
    """
    logits = logits.float()
    if at == "pixels" and logits.shape[2:] != truth.shape[1:]:
        logits = F.interpolate(logits, size=truth.shape[1:], mode="bilinear", align_corners=align_corners)
    elif at == "cells" and logits.shape[2:] != truth.shape[1:]:
        truth = F.interpolate(truth[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0].long()
    total = F.cross_entropy(logits, truth, weights, ignore_index=IGNORE, reduction="sum")
    if reduction == "sum":
        return total * processes()
    known = truth != IGNORE
    share = known.sum() if weights is None else (weights[truth.clamp(max=len(weights) - 1)] * known).sum()
    return total / normaliser(share, 1e-6)
