"""Locations of FCOS and their label assignment: which location learns which object (Tian et al., 2019, section 3).

A location (row i, column j) of stride s lies at pixel ``(j s + s // 2, i s + s // 2)``. `locate` makes the locations
of all levels, `assign_locations` gives each an object of one image, `find_positives` collects the positives of a
batch with their regression targets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.geometry import boxes as box_math
from maskkit.targets import Target


class Locations(NamedTuple):
    """The P locations of all levels: level by level, row by row."""

    xy: Float[Tensor, "p 2"]
    """Pixels of the network's input."""
    stride: Float[Tensor, "p"]
    level: Int[Tensor, "p"]


class Assignment(NamedTuple):
    """The label assignment of one image."""

    classes: Int[Tensor, "p"]
    """Class + 1 for an object, 0 for background, -1 for ignored."""
    objects: Int[Tensor, "p"]
    """Index of the object in the image's target, crowds counted."""


class Positives(NamedTuple):
    """The n locations of a batch that have an object."""

    image: Int[Tensor, "n"]
    location: Int[Tensor, "n"]
    """Index into `Locations`."""
    object: Int[Tensor, "n"]
    """Index into the image's target."""
    label: Int[Tensor, "n"]
    distances: Float[Tensor, "n 4"]
    """True distances in strides."""
    centerness: Float[Tensor, "n"]


def locate(
    levels: Sequence[Float[Tensor, "b _ _ _"]], strides: Sequence[int], corners: bool = False, spread: bool = False
) -> Locations:
    """The locations of maps of the given ``strides``; with ``corners`` those of cells lie at their upper left corners.

    RTMDet counts them so: its location (row i, column j) is the pixel ``(j s, i s)``. With ``spread`` they lie as many
    pixels apart as the map's cells go into the input, and not the stride (torchvision).
    """
    size = [cells * strides[0] for cells in levels[0].shape[2:]]
    device = levels[0].device
    xy, stride, index = [], [], []
    for i, (level, s) in enumerate(zip(levels, strides, strict=True)):
        rows, columns = level.shape[2:]
        first = 0 if corners else s // 2
        down, right = (size[0] // rows, size[1] // columns) if spread else (s, s)
        y = torch.arange(rows, device=device) * down + first
        x = torch.arange(columns, device=device) * right + first
        xy.append(torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], 2).flatten(0, 1))
        stride.append(torch.full((rows * columns,), float(s), device=device))
        index.append(torch.full((rows * columns,), i, device=device))
    return Locations(torch.cat(xy).float(), torch.cat(stride), torch.cat(index))


def box_centres(target: Target) -> Float[Tensor, "n 2"]:
    """Centres of the boxes of a target, pixels."""
    return box_math.to_centres(target.boxes)[:, :2]


@torch.no_grad()
def assign_locations(
    target: Target,
    centres: Float[Tensor, "n 2"],
    locations: Locations,
    size_ranges: Sequence[float],
    radius: float,
) -> Assignment:
    """Label assignment: every location gets an object, the background, or is ignored (section 3.2; TPAMI 2020).

    A location is positive for an object when it lies inside the box and within ``radius`` strides of the object's
    centre, and when the distance to the farthest side is in the range of its level, whose upper end ``size_ranges``
    gives (both ends count). Of several such objects it gets the one with the smallest box. A background location
    inside a crowd is ignored.
    """
    distances = distances_to_sides(locations.xy[:, None], target.boxes)  # (P, N, 4)
    half = radius * locations.stride[:, None, None]
    near = (locations.xy[:, None] - centres).abs() < half  # (P, N, 2)
    limits = torch.tensor([-1.0, *size_ranges, torch.inf], device=half.device)
    farthest = distances.amax(2) if len(target) else distances.new_zeros(len(distances), 0)
    low, high = limits[locations.level, None], limits[locations.level + 1, None]
    possible = (distances > 0).all(2) & near.all(2) & (farthest >= low) & (farthest <= high) & ~target.crowd
    areas = torch.where(possible, box_math.area(target.boxes), torch.inf)  # (P, N)
    # one column more, so that there is a smallest one without any object; it loses against everything
    smallest, objects = F.pad(areas, [0, 1], value=torch.inf).min(1)
    found = smallest < torch.inf
    labels = F.pad(target.labels, [0, 1])[objects] + 1
    in_crowd = ((distances > 0).all(2) & target.crowd).any(1)
    return Assignment(torch.where(found, labels, -in_crowd.long()), torch.where(found, objects, 0))


def distances_to_sides(xy: Float[Tensor, "*p 2"], boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*q 4"]:
    """Distances from points to the left, top, right and bottom side of boxes, negative where a point lies beyond it."""
    return torch.cat([xy - boxes[..., :2], boxes[..., 2:] - xy], -1)


def centerness(distances: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """1 in the middle of a box, 0 on its edge (section 3.4)."""
    pairs = torch.stack([distances[:, [0, 2]], distances[:, [1, 3]]], 1)  # (n, 2, 2)
    return (pairs.amin(2) / pairs.amax(2)).prod(1).sqrt()


def find_positives(assignments: Sequence[Assignment], targets: Sequence[Target], locations: Locations) -> Positives:
    """The positives of a batch, image by image, with their regression targets."""
    parts = []
    for i, (assigned, target) in enumerate(zip(assignments, targets, strict=True)):
        where = torch.nonzero(assigned.classes > 0)[:, 0]
        objects = assigned.objects[where]
        distances = distances_to_sides(locations.xy[where], target.boxes[objects]) / locations.stride[where, None]
        parts.append(
            Positives(
                torch.full_like(where, i), where, objects, target.labels[objects], distances, centerness(distances)
            )
        )
    return Positives(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
