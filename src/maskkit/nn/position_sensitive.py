"""Position-sensitive maps: each of k x k score maps tells about one part of an object, and a region is put together.

R-FCN (Dai et al., 2016) and FCIS (Li et al., 2017) read the bins of a region from the maps of their parts. This has no
weights, and is one gather for all regions.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def parts(cells: int, groups: int, device: torch.device | None = None) -> Int[Tensor, "s"]:
    """Which of ``groups`` parts each of the ``cells`` along one side of a region belongs to."""
    return torch.arange(cells, device=device) * groups // cells


def pool(
    maps: Float[Tensor, "b d h w"], rois: Float[Tensor, "n 5"], groups: int, bins: int, stride: int
) -> Float[Tensor, "n s s c"]:
    """Means of the maps over ``bins`` x ``bins`` bins of each region, each bin read from the maps of its own part.

    Channel ``c groups^2 + row groups + column`` tells about part (row, column). Regions are rounded to whole pixels,
    their bins outwards to whole cells (R-FCN); a bin outside the map is 0. Sums over bins are differences of the
    integral of the map, so that a large region costs as much as a small one.
    """
    b, channels, height, width = maps.shape
    integral = F.pad(maps.float().cumsum(2).cumsum(3), (1, 0, 1, 0))  # (B, D, H + 1, W + 1)
    places = integral.view(b, -1, groups * groups, height + 1, width + 1).permute(0, 3, 4, 2, 1)
    rows = places.reshape(-1, channels // groups**2)  # (B (H + 1) (W + 1) k k, C)

    whole = (rois[:, 1:] + 0.5).floor() / stride
    left, right = _edges(whole[:, 0], whole[:, 2], bins, width)  # (N, s)
    top, bottom = _edges(whole[:, 1], whole[:, 3], bins, height)
    part = parts(bins, groups, maps.device)
    group = part[:, None] * groups + part  # (s, s)
    y = torch.stack([top, top, bottom, bottom], 2)[:, :, None]  # (N, s, 1, 4)
    x = torch.stack([left, right, left, right], 2)[:, None]  # (N, 1, s, 4)
    picture = rois[:, 0].long()[:, None, None, None]
    cells = ((picture * (height + 1) + y) * (width + 1) + x) * groups**2 + group[..., None]  # (N, s, s, 4)
    area = (bottom - top)[:, :, None] * (right - left)[:, None]
    share = (area > 0) / area.clamp(min=1)  # (N, s, s)
    shares = share[..., None] * share.new_tensor([1, -1, -1, 1])
    pooled = F.embedding_bag(cells.flatten(0, 2), rows, per_sample_weights=shares.flatten(0, 2), mode="sum")
    return pooled.view(len(rois), bins, bins, rows.shape[1])


def _edges(
    low: Float[Tensor, "n"], high: Float[Tensor, "n"], bins: int, cells: int
) -> tuple[Int[Tensor, "n s"], Int[Tensor, "n s"]]:
    """First cell of each bin along one axis, and the one after its last."""
    step = ((high - low).clamp(min=0.1) / bins)[:, None]
    bin = torch.arange(bins, device=low.device)
    first, last = (bin * step + low[:, None]).floor(), ((bin + 1) * step + low[:, None]).ceil()
    first, last = (edge.clamp(0, cells).long() for edge in (first, last))
    return first, torch.maximum(first, last)
