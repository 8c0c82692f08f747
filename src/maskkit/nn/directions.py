"""Directions to the centre of the own object, in sectors and rings, as MaskLab learns and pools them.

Chen, Hermans, Papandreou, Schroff, Wang, Adam: "MaskLab" (CVPR 2018), section 3.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.geometry import boxes as box_math
from maskkit.nn.losses import normaliser
from maskkit.nn.pixels import object_maps
from maskkit.nn.rpn import BACKGROUND
from maskkit.ranges import Count, Weight
from maskkit.targets import Batch

UNKNOWN = -1
"""Target of a cell that does not count in the loss."""


@dataclass(frozen=True)
class DirectionConfig:
    """How directions are measured; the paper leaves the last three open."""

    sectors: Count = 8
    """Directions to the centre (D)."""
    rings: Count = 4
    """Distances to the centre (R)."""
    offset: Weight = 0.0
    """Share of a sector by which sectors are turned; a half puts the axes into the middle of sectors."""
    last_ring: Literal["corner", "side"] = "corner"
    """Where the last ring ends: at the half diagonal no ring is cut off, at the half side rings are finer."""
    in_square: bool = True
    """Whether directions are measured with the box scaled to a square, or in pixels. In the square the target of a
    pixel is what direction pooling reads, whatever the shape of its box."""


def direction_bins(
    dx: Float[Tensor, "*n"], dy: Float[Tensor, "*n"], radius: Float[Tensor, "*m"], config: DirectionConfig
) -> Int[Tensor, "*n"]:
    """Channel of the direction (dx, dy) from a pixel to the centre: sectors from the x axis on, towards y.

    ``radius`` is the distance at which the last ring ends; what lies farther is in that ring too. At the centre itself,
    where there is no direction, it is that of the x axis.
    """
    turn = torch.atan2(dy.double(), dx.double()) / (2 * math.pi) * config.sectors
    # pixels on a border between sectors must all go to the same one, whatever the rounding
    sector = torch.floor(turn + config.offset + 1e-9).long() % config.sectors
    ring = (config.rings * torch.hypot(dx, dy) / radius).floor().clamp(max=config.rings - 1).long()
    return ring * config.sectors + sector


def outer_radius(
    width: Float[Tensor, "*n"], height: Float[Tensor, "*n"], config: DirectionConfig
) -> Float[Tensor, "*n"]:
    """Where the last ring of a box ends."""
    return torch.hypot(width, height) / 2 if config.last_ring == "corner" else torch.maximum(width, height) / 2


def template(side: int, config: DirectionConfig) -> Int[Tensor, "s s"]:
    """For each cell of a box, the channel that leads to the middle of the box from there."""
    away = (side - 1 - 2 * torch.arange(side).double()) / (2 * side)
    one = torch.ones((), dtype=torch.float64)
    return direction_bins(away.expand(side, -1), away[:, None].expand(-1, side), outer_radius(one, one, config), config)


def pool_directions(crops: Float[Tensor, "n d s s"], template: Int[Tensor, "s s"]) -> Float[Tensor, "n s s"]:
    """Direction pooling: each cell from the channel that the template names."""
    return crops.gather(1, template.expand(crops.shape[0], 1, -1, -1))[:, 0]


@torch.no_grad()
def map_targets(
    batch: Batch, grid: tuple[int, int], num_classes: int, config: DirectionConfig
) -> tuple[Int[Tensor, "b h w"], Int[Tensor, "b h w"]]:
    """Class and direction of each cell of a ``grid`` (h, w), by the pixel at its centre, or `UNKNOWN`.

    The class of background is the number of classes; it has no direction.
    """
    y, x = (
        ((torch.arange(n, device=batch.images.device) + 0.5) * side / n)
        for n, side in zip(grid, batch.images.shape[2:], strict=True)
    )
    owners = object_maps(batch)[:, y.long()[:, None], x.long()]  # (B, h, w)
    classes = torch.full_like(owners, num_classes).masked_fill(owners < BACKGROUND, UNKNOWN)
    directions = torch.full_like(owners, UNKNOWN)
    for owner, label, direction, target in zip(owners, classes, directions, batch.targets, strict=True):
        row, column = torch.nonzero(owner >= 0).unbind(1)
        mine = owner[row, column]
        centre_x, centre_y, width, height = box_math.to_centres(target.boxes[mine].double()).unbind(1)
        dx, dy = centre_x - x[column], centre_y - y[row]
        if config.in_square:
            dx, dy = dx / width, dy / height
            width = height = torch.ones_like(width)
        label[row, column] = target.labels[mine]
        direction[row, column] = direction_bins(dx, dy, outer_radius(width, height, config), config)
    return classes, directions


def map_loss(logits: Float[Tensor, "b c h w"], truth: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean cross entropy of the cells that are not `UNKNOWN`."""
    total = F.cross_entropy(logits, truth, ignore_index=UNKNOWN, reduction="sum")
    return total / normaliser((truth != UNKNOWN).sum())
