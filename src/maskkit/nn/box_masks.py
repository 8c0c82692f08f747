"""Dynamic masks inside boxes: the mask side of NanoInst.

As in CondInst (`maskkit.nn.dynamic_mask`), every location predicts a tiny network that draws its object's mask on a few
maps of the whole image. Here the network sees where a cell lies in the object's box, -1 to 1 from side to side, and the
mask ends a little outside of the box. So it starts from the box's shape and has less to learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maskkit.geometry import boxes as box_math
from maskkit.nn.dynamic_mask import DynamicHeadConfig, dynamic_masks
from maskkit.nn.losses import OUTSIDE
from maskkit.ranges import Count, Weight, Whole

CELL = 4
"""Side of a mask's cell in pixels of the input."""


@dataclass(frozen=True)
class BoxMaskConfig(DynamicHeadConfig):
    """The mask branch, with half of its channels at stride 4, and the dynamic heads."""

    branch_width: Count = 64
    branch_convs: Whole = 2
    margin: Weight = 0.1
    """How far a mask may reach beyond its box, as a share of half of the box's side."""


class DynamicHeads(nn.ModuleList):
    """For each level, from the ``width`` channels of its tower, the parameters of every location's dynamic head."""

    def __init__(self, config: BoxMaskConfig, width: int, levels: int) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, config.head_parameters, 1))
            for _ in range(levels)
        )
        for level in self:
            last = level[-1]  # type: ignore[index]
            nn.init.normal_(last.weight, std=0.01)
            nn.init.normal_(last.bias, std=0.3)  # parameters near zero would pass no gradient through three layers

    def forward(self, features: Sequence[Float[Tensor, "b c _ _"]]) -> list[Float[Tensor, "b d _ _"]]:
        """One map for each level."""
        return [level(x) for level, x in zip(self, features, strict=True)]


class FineMaskBranch(nn.Module):
    """Levels of strides 8, 16 and 32 added up, convolutions, and then, with features of stride 4, more of those there.

    ``fine`` are the channels at stride 4, ``width`` those of the levels.
    """

    def __init__(self, config: BoxMaskConfig, fine: int, width: int) -> None:
        super().__init__()
        inner, outer = config.branch_width, config.branch_width // 2
        self.lateral = nn.ModuleList(nn.Conv2d(width, inner, 1) for _ in range(3))
        self.tower = nn.Sequential(*(_conv(inner, inner, 3) for _ in range(config.branch_convs)))
        self.joined = nn.Sequential(
            _conv(inner + fine, outer, 1), _conv(outer, outer, 3), nn.Conv2d(outer, config.mask_channels, 1)
        )

    def forward(
        self, fine: Float[Tensor, "b f h w"], levels: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> Float[Tensor, "b c h w"]:
        """Mask features on the grid of stride 4."""
        maps = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        merged = maps[0]
        for i, coarse in enumerate(maps[1:], 1):
            merged = merged + _enlarge(coarse, 2**i)
        merged = self.tower(F.relu(merged))
        return self.joined(torch.cat([_enlarge(merged, 2), fine], 1))


def _conv(before: int, after: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


def _enlarge(maps: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c _ _"]:
    return F.interpolate(maps, scale_factor=float(factor), mode="bilinear", align_corners=False)


def box_masks(
    parameters: Float[Tensor, "*b n p"],
    boxes: Float[Tensor, "*b n 4"],
    features: Float[Tensor, "*b c h w"],
    config: BoxMaskConfig,
) -> Float[Tensor, "*b n h w"]:
    """Mask logits on the grid of ``features``; ``boxes`` are ``x1 y1 x2 y2`` in pixels of the input."""
    centre, half = box_math.to_centres(boxes).split(2, -1)
    half = half.clamp(min=1.0) / 2
    logits = dynamic_masks(parameters, centre, half / 8, features, CELL, config.head_widths)
    near = within(centre, half * (1 + config.margin) + CELL / 2, logits)
    return torch.where(near, logits, OUTSIDE)


def within(
    centre: Float[Tensor, "*b n 2"], half: Float[Tensor, "*b n 2"], grid: Float[Tensor, "*b n h w"]
) -> Bool[Tensor, "*b n h w"]:
    """Cells of the grid whose middle lies in boxes given by their centres and half sides."""
    height, width = grid.shape[-2:]
    y, x = (torch.arange(n, device=grid.device) * CELL + CELL // 2 for n in (height, width))
    columns = (x - centre[..., :1]).abs() <= half[..., :1]  # (*B, n, w)
    rows = (y - centre[..., 1:]).abs() <= half[..., 1:]
    return rows[..., :, None] & columns[..., None, :]
