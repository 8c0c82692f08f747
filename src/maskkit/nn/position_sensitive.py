"""Position-sensitive RoI pooling: each of k x k groups of score maps is responsible for one part of a region.

R-FCN (Dai et al., 2016) and FCIS (Li et al., 2017) read each bin of a region from the maps of its part. There are no
parameters, and all regions take one gather.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.geometry.resample_tensors import weighted_sums


def parts(cells: int, groups: int, device: torch.device | None = None) -> Int[Tensor, "s"]:
    """Which of ``groups`` parts each of the ``cells`` along one side of a region belongs to."""
    return torch.arange(cells, device=device) * groups // cells


def corner_sums(maps: Float[Tensor, "b d h w"], groups: int) -> Float[Tensor, "b y x p c"]:
    """Sums of all cells above and left of each corner of a cell, for `pool`; y is H + 1, x is W + 1, p is groups^2.

    Channel ``c groups^2 + row groups + column`` of the maps belongs to part (row, column). Products with triangular
    matrices take less than half the time of cumulative sums.
    """
    b, channels, height, width = maps.shape
    before_row, before_column = (torch.ones(n + 1, n, device=maps.device).tril(-1) for n in (height, width))
    cells = maps.float().permute(0, 2, 3, 1).unflatten(3, (-1, groups**2)).transpose(3, 4)  # (B, H, W, p, c)
    with torch.autocast(maps.device.type, enabled=False):  # differences of large sums need every bit
        sums = before_row @ cells.reshape(b, height, -1)  # (B, H + 1, W p c)
        sums = before_column @ sums.view(-1, width, channels)  # (B (H + 1), W + 1, p c)
    return sums.view(b, height + 1, width + 1, groups**2, -1)


def pool(
    sums: Float[Tensor, "b y x p c"], rois: Float[Tensor, "n 5"], bins: int, stride: int
) -> Float[Tensor, "n s s c"]:
    """Means of the maps over ``bins`` x ``bins`` bins of each region, each bin read from the maps of its own part.

    Regions are rounded to whole pixels, their bins outwards to whole cells (R-FCN); a bin outside the map is 0. Means
    are computed from differences of `corner_sums`, so that a large region costs as much as a small one.
    """
    _, height, width, kinds, channels = sums.shape
    rows, groups = sums.reshape(-1, channels), math.isqrt(kinds)
    whole = (rois[:, 1:] + 0.5).floor() / stride
    left, right = _edges(whole[:, 0], whole[:, 2], bins, width - 1)  # (N, s)
    top, bottom = _edges(whole[:, 1], whole[:, 3], bins, height - 1)
    part = parts(bins, groups, sums.device)
    group = part[:, None] * groups + part  # (s, s)
    y = torch.stack([top, top, bottom, bottom], 2)[:, :, None]  # (N, s, 1, 4)
    x = torch.stack([left, right, left, right], 2)[:, None]  # (N, 1, s, 4)
    image = rois[:, 0].long()[:, None, None, None]
    cells = ((image * height + y) * width + x) * kinds + group[..., None]  # (N, s, s, 4)
    area = (bottom - top)[:, :, None] * (right - left)[:, None]
    share = (area > 0) / area.clamp(min=1)  # (N, s, s)
    shares = share[..., None] * share.new_tensor([1, -1, -1, 1])
    return weighted_sums(rows, cells, shares)


def _edges(
    low: Float[Tensor, "n"], high: Float[Tensor, "n"], bins: int, cells: int
) -> tuple[Int[Tensor, "n s"], Int[Tensor, "n s"]]:
    """First cell of each bin along one axis, and the one after its last."""
    step = ((high - low).clamp(min=0.1) / bins)[:, None]
    bin = torch.arange(bins, device=low.device)
    first, last = (bin * step + low[:, None]).floor(), ((bin + 1) * step + low[:, None]).ceil()
    first, last = (edge.clamp(0, cells).long() for edge in (first, last))
    return first, torch.maximum(first, last)
