"""Crops of features from corner to corner of a box, as MaskLab takes them: plain, deformable, and of a single class.

Chen, Hermans, Papandreou, Schroff, Wang, Adam: "MaskLab" (CVPR 2018).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.geometry.resample_tensors import taps, weighted_sums
from maskkit.nn.position_sensitive import parts
from maskkit.nn.roi import PoolingConfig, pool


def corner_to_corner(rois: Float[Tensor, "n 5"], side: int) -> Float[Tensor, "n 5"]:
    """Regions grown so that the outermost of ``side`` x ``side`` cells have their centres on the border of ``rois``."""
    half = (rois[:, 3:] - rois[:, 1:3]) / (2 * (side - 1))
    return torch.cat([rois[:, :1], rois[:, 1:3] - half, rois[:, 3:] + half], 1)


def crop_and_resize(
    level: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], side: int, stride: int
) -> Float[Tensor, "n c s s"]:
    """Bilinear samples of features on a grid from corner to corner of each region, one sample to a cell."""
    return pool([level], [stride], corner_to_corner(rois, side), side, PoolingConfig(sampling_ratio=1))


def sample_at(
    level: Float[Tensor, "b c h w"], image: Int[Tensor, "n"], x: Float[Tensor, "n s s"], y: Float[Tensor, "n s s"]
) -> Float[Tensor, "n c s s"]:
    """Bilinear samples at ``x``, ``y`` in cells, where 0 is the centre of the first cell; differentiable in the places.

    Places outside read the nearest cell.
    """
    height, width = level.shape[2:]
    across, down = taps(x.clamp(0, width - 1), width), taps(y.clamp(0, height - 1), height)  # (N, s, s, 2)
    shares = (down.weights[..., :, None] * across.weights[..., None, :]).flatten(3)  # (N, s, s, 4)
    cells = (image[:, None, None, None, None] * height + down.cells[..., :, None]) * width + across.cells[..., None, :]
    rows = level.float().permute(0, 2, 3, 1).reshape(-1, level.shape[1])  # (B h w, C)
    return weighted_sums(rows, cells.flatten(3), shares).permute(0, 3, 1, 2)


class DeformableCrop(nn.Module):
    """`crop_and_resize` whose ``grid`` x ``grid`` parts move by offsets that are predicted from the crop.

    An offset (dx, dy) of 1 is ``scale`` times the width or height of the box. Offsets begin at zero.
    """

    def __init__(self, channels: int, side: int, grid: int, scale: float) -> None:
        super().__init__()
        self.side, self.grid, self.scale = side, grid, scale
        self.offsets = nn.Conv2d(channels, 2, 1)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, level: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], stride: int
    ) -> Float[Tensor, "n c s s"]:
        """Features of each region."""
        plain = crop_and_resize(level, rois, self.side, stride)
        offsets = self.offsets(F.adaptive_avg_pool2d(plain, self.grid)).float()  # (N, 2, g, g)
        return self.move(level, rois, stride, offsets)

    def move(
        self,
        level: Float[Tensor, "b c h w"],
        rois: Float[Tensor, "n 5"],
        stride: int,
        offsets: Float[Tensor, "n 2 g g"],
    ) -> Float[Tensor, "n c s s"]:
        """The crops with their parts moved by ``offsets``."""
        low, extent = rois[:, 1:3, None, None], (rois[:, 3:] - rois[:, 1:3])[:, :, None, None]  # (N, 2, 1, 1)
        way = torch.arange(self.side, device=rois.device) / (self.side - 1)
        regular = torch.stack([way.expand(self.side, -1), way[:, None].expand(-1, self.side)])  # (2, s, s): x, y
        part = parts(self.side, self.grid, rois.device)
        shift = self.scale * offsets[:, :, part[:, None], part]  # (N, 2, s, s)
        x, y = ((low + (regular + shift) * extent) / stride - 0.5).unbind(1)
        return sample_at(level, rois[:, 0].long(), x, y)


def crop_class(
    semantic: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], labels: Int[Tensor, "n"], side: int, stride: int
) -> Float[Tensor, "n s s"]:
    """The semantic map of each region's class inside the region; no other map is read."""
    planes = semantic.flatten(0, 1)[:, None]  # (B C, 1, h, w)
    plane = rois[:, :1] * semantic.shape[1] + labels[:, None]
    return crop_and_resize(planes, torch.cat([plane, rois[:, 1:]], 1), side, stride)[:, 0]
