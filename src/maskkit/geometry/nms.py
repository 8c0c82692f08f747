"""Non-maximum suppression of masks: Matrix NMS (SOLOv2, section 3.3) and the greedy one it replaces.

Both take masks ranked best first, of any method, at any resolution: a quarter of the input's is enough to tell copies
apart, and the work falls with the number of cells.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mask_iou(masks: Bool[Tensor, "*b n h w"]) -> Float[Tensor, "*b n n"]:
    """Intersection over union of every pair, by one matrix product; zero for a pair of empty masks."""
    cells = masks.flatten(-2).float()  # (..., N, h w)
    inter = cells @ cells.transpose(-1, -2)  # (..., N, N)
    area = inter.diagonal(dim1=-2, dim2=-1)
    return inter / (area[..., :, None] + area[..., None, :] - inter).clamp(min=1)


def matrix_nms(
    masks: Bool[Tensor, "*b n h w"],
    labels: Int[Tensor, "*b n"],
    scores: Float[Tensor, "*b n"],
    *,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
    stride: int = 1,
) -> Float[Tensor, "*b n"]:
    """Scores after Matrix NMS, in the order given, which must be best first. Leading dimensions are independent.

    A mask is decayed by the better masks i of its class that it overlaps, each the less, the more i itself is
    overlapped by a better one: ``f(iou_ij) / f(iou_i)``, the least over i, with ``f(x) = exp(-sigma x^2)`` or
    ``1 - x``. No loop, and nothing is removed. Overlaps are measured on every ``stride``-th row and column, since
    their matrix product is what takes the time.
    """
    if scores.shape[-1] == 0:
        return scores
    same = labels[..., :, None] == labels[..., None, :]
    iou = (mask_iou(masks[..., ::stride, ::stride]) * same).triu(1)  # (..., N, N): row i is the better mask of the pair
    covered = iou.amax(-2)[..., :, None]  # (..., N, 1)
    if kernel == "gaussian":
        # the least quotient of exponentials is the exponential of the largest difference: n of them, not n squared
        return scores * torch.exp(-sigma * (iou.square() - covered.square()).amax(-2))
    tiny = torch.finfo(iou.dtype).tiny  # an exact copy of a better mask decays nothing any further than that one does
    return scores * ((1 - iou) / (1 - covered).clamp(min=tiny)).amin(-2)


def greedy_mask_nms(
    masks: Bool[Tensor, "*b n h w"], labels: Int[Tensor, "*b n"], threshold: float = 0.5
) -> Bool[Tensor, "*b n"]:
    """Which of the masks, ranked best first, stay when each removes those of its class with an IoU above it.

    Leading dimensions are independent. The number of steps is that of the masks, whatever they are, for export.
    """
    same = labels[..., :, None] == labels[..., None, :]
    worse = ((mask_iou(masks) > threshold) & same).triu(1)  # (..., N, N): column j is overlapped by the better row i
    kept = torch.ones_like(labels, dtype=torch.bool)
    for i in range(kept.shape[-1]):
        kept = kept & ~(worse[..., i, :] & kept[..., i, None])
    return kept
