"""Dense masks on tensors ``(N, H, W)``: boxes, resampling, mean foreground probability."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def maskness(masks: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Mean probability over the foreground cells, those above 0.5; 0 if there are none (SOLO, section 3.3)."""
    likely = masks > 0.5
    return (masks * likely).sum((-2, -1)) / likely.sum((-2, -1)).clamp(min=1)


def dense_boxes(dense: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Tight boxes ``x1 y1 x2 y2`` (pixel edges) around dense masks; zeros for an empty one."""
    n, height, width = dense.shape
    rows, columns = dense.any(2), dense.any(1)  # (N, H), (N, W)
    if n == 0 or height == 0 or width == 0:
        return torch.zeros(n, 4, device=dense.device)
    # argmax gives the first maximum, so flipping gives the last one
    edges = [
        columns.int().argmax(1),
        rows.int().argmax(1),
        width - columns.flip(1).int().argmax(1),
        height - rows.flip(1).int().argmax(1),
    ]
    return torch.stack(edges, 1).float() * rows.any(1, keepdim=True)  # (N, 4)


def resample(dense: Tensor, size: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """Masks at another resolution: bilinear without antialiasing, then ``> 0.5`` (as in YOLACT's training)."""
    if tuple(dense.shape[-2:]) == tuple(size):
        return dense.bool()
    if len(dense) == 0:
        return torch.zeros(0, *size, dtype=torch.bool, device=dense.device)
    return F.interpolate(dense[None].float(), size=size, mode="bilinear", align_corners=False)[0] > 0.5
