"""The rays of PolarMask: from a mask to its outline, to rays, and back to a mask (Xie et al., CVPR 2020, section 3).

Angle 0 points down, 90 to the right. Rays end on border *pixels*, named by their numbers as in the official code.

`outlines` finds the border and the centre of mass of each object of an image, `ray_targets` measures the rays of the
positive locations, `polar_centerness` and `polar_iou_loss` compare rays, `fill` draws the polygons that they span.
"""

from collections.abc import Sequence
from math import pi
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from maskkit.nn.fcos_targets import Positives, box_centres
from maskkit.targets import Target

NO_BORDER = 1e-6
"""Length of a ray that meets no border within three degrees."""

# outlines ------------------------------------------------------------------------------------------------------------

# (x, y) steps to the eight neighbours, counterclockwise from the right
_STEPS = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))


def _turns() -> list[list[int]]:
    """For a pixel whose neighbours are the bits of a byte, entered from direction d: where its border goes on."""
    return [
        [next(((back + k) % 8 for k in range(1, 9) if byte >> (back + k) % 8 & 1), 0) for back in range(8)]
        for byte in range(256)
    ]


_TURNS = _turns()


def trace(region: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "m 2"]:
    """Pixels (x, y) of the outer border of one 8-connected region, in the order in which a walk around it meets them.

    The walk begins at the first pixel of the first row, goes down the left side, and passes twice through what is one
    pixel wide (Suzuki and Abe, 1985; OpenCV's ``CHAIN_APPROX_NONE``).
    """
    padded = np.pad(region, 1).astype(np.uint8)
    height, width = region.shape
    around = np.zeros_like(padded)
    for d, (x, y) in enumerate(_STEPS):
        around[1:-1, 1:-1] |= padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] << d
    neighbours, strides = around.tobytes(), [y * (width + 2) + x for x, y in _STEPS]
    start, path = int(padded.argmax()), []
    if neighbours[start]:
        first = next(d for d in (0, 7, 6, 5) if neighbours[start] >> d & 1)
        at, back = start, first
        while not path or (at, back) != (start, first):
            path.append(at)
            step = _TURNS[neighbours[at]][back]
            at, back = at + strides[step], step ^ 4
    rows, columns = np.unravel_index(path or [start], padded.shape)
    return np.stack([columns, rows], 1) - 1


def outline(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "m 2"]:
    """Border pixels (x, y) of the part of the mask whose border encloses most; none for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    best, largest = np.zeros((0, 2), np.int64), -1.0
    if len(rows) == 0:
        return best
    corner = np.array([columns[0], rows[0]])
    near = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    parts: np.ndarray = ndimage.label(near, np.ones((3, 3)))[0]  # type: ignore[index]
    for number, (y, x) in enumerate(ndimage.find_objects(parts), 1):
        if (y.stop - y.start - 1) * (x.stop - x.start - 1) <= largest:
            continue
        border = trace(parts[y, x] == number) + np.array([x.start, y.start])
        enclosed = abs(float(_wedges(border).sum()))
        if enclosed > largest:
            best, largest = border + corner, enclosed
    return best


def mass_centre(border: Int[np.ndarray, "m 2"]) -> Int[np.ndarray, "2"]:
    """Centroid (x, y) of the polygon through the border's pixels, cut to whole pixels; the mean of a thin line.

    Summed in the order of the border: a centroid that is a whole number falls to the same side as the official one.
    """
    wedges = _wedges(border)
    area = np.cumsum(wedges)[-1]
    if area == 0:
        return border.mean(0).astype(np.int64)
    moments = wedges[:, None] * (border + np.roll(border, 1, 0)) / 3
    return (np.cumsum(moments, 0)[-1] / area).astype(np.int64)


def _wedges(border: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, "m"]:
    """Signed areas of the triangles between the origin and the neighbours on a border."""
    before = np.roll(border, 1, 0)
    return (border[:, 0] * before[:, 1] - border[:, 1] * before[:, 0]) / 2


# rays ----------------------------------------------------------------------------------------------------------------


def cast_rays(border: Float[Tensor, "m 2"], origins: Float[Tensor, "p 2"], count: int) -> Float[Tensor, "p n"]:
    """Distances from each origin to the border, at ``count`` angles.

    At each angle it is the farthest border pixel seen at that whole degree, else at 1, 2 or 3 degrees beside it, the
    larger angle first; `NO_BORDER` where there is none. Angles below zero are not looked at, as in the official code.
    """
    x, y = (border - origins[:, None]).unbind(2)  # (P, M)
    degrees = torch.atan2(x, y) * 180 / pi
    degrees = torch.where(degrees < 0, degrees + 360, degrees).long()
    seen = x.new_full((len(origins), 363), -1.0)
    seen.scatter_reduce_(1, degrees, torch.sqrt(x.square() + y.square()), "amax")
    angles = torch.arange(0, 360, 360 // count, device=x.device)[:, None]
    near = angles + torch.tensor([0, 1, -1, 2, -2, 3, -3], device=x.device)  # (n, 7)
    lengths = torch.where(near >= 0, seen[:, near.clamp(min=0)], -1)  # (P, n, 7)
    first = (lengths >= 0).int().argmax(2, keepdim=True)  # of several maxima the first
    length = lengths.gather(2, first)[..., 0]
    return torch.where(length >= 0, length, NO_BORDER)


def polar_centerness(rays: Float[Tensor, "*p n"]) -> Float[Tensor, "*p"]:
    """Square root of the shortest over the longest ray (section 3.2)."""
    return (rays.amin(-1) / rays.amax(-1)).sqrt()


def polar_iou_loss(rays: Float[Tensor, "*p n"], truth: Float[Tensor, "*p n"]) -> Float[Tensor, "*p"]:
    """``log(sum max(d, d*) / sum min(d, d*))``: minus the logarithm of the simplified polar IoU (equation 7)."""
    return (torch.maximum(rays, truth).sum(-1) / torch.minimum(rays, truth).sum(-1)).log()


# targets -------------------------------------------------------------------------------------------------------------


class PolarTruth(NamedTuple):
    """What the outlines of one image's objects say."""

    centres: Float[Tensor, "n 2"]
    """Centres of mass in pixels; of the box where the mask is unknown or empty."""
    borders: list[Float[Tensor, "_ 2"]]
    """Border pixels (x, y), none where the mask is unknown or empty."""


@torch.no_grad()
def outlines(target: Target) -> PolarTruth:
    """Outlines and centres of mass of the objects whose masks are known."""
    centres = box_centres(target)
    borders = [centres.new_zeros(0, 2)] * len(target)
    wanted = torch.nonzero(target.has_mask & ~target.crowd)[:, 0]
    if target.masks is not None and len(wanted):
        masks = target.masks[wanted].dense().cpu().numpy()
        for n, mask in zip(wanted.tolist(), masks, strict=True):
            border = outline(mask)
            if len(border):
                centres[n] = centres.new_tensor(mass_centre(border))
                borders[n] = centres.new_tensor(border)
    return PolarTruth(centres, borders)


@torch.no_grad()
def ray_targets(
    positives: Positives, outlines: Sequence[PolarTruth], xy: Float[Tensor, "p 2"], rays: int
) -> Float[Tensor, "n r"]:
    """True rays of the positives, object by object; zeros where the outline is unknown."""
    truth = xy.new_zeros(len(positives.label), rays)
    owners = torch.stack([positives.image, positives.object], 1)
    for image, n in owners.unique(dim=0).tolist():
        border = outlines[image].borders[n]
        if len(border):
            own = (owners == owners.new_tensor([image, n])).all(1)
            truth[own] = cast_rays(border, xy[positives.location[own]], rays)
    return truth


# masks ---------------------------------------------------------------------------------------------------------------


def corners(origins: Float[Tensor, "*k 2"], rays: Float[Tensor, "*k n"]) -> Float[Tensor, "*k n 2"]:
    """Where the rays end, (x, y) in the coordinates of the origins."""
    angle = torch.arange(rays.shape[-1], device=rays.device) * (2 * pi / rays.shape[-1])
    return origins[..., None, :] + rays[..., None] * torch.stack([angle.sin(), angle.cos()], -1)


def fill(
    origins: Float[Tensor, "*k 2"], rays: Float[Tensor, "*k n"], grid: tuple[int, int], stride: int
) -> Float[Tensor, "*k h w"]:
    """Masks of star-shaped polygons on a ``grid`` (h, w) with ``stride`` pixels per cell.

    A cell lies in the sector between two rays, and the side of the polygon that joins them says how deep inside the
    cell's centre is. That depth, as a ramp four cells wide around 0.5, is what interpolation to pixels cuts exactly
    along the side. Corners are border pixels, so that the polygon is half a pixel wider than they are.
    """
    count = rays.shape[-1]
    ends = corners(torch.zeros_like(origins), rays)  # (..., n, 2)
    side = ends.roll(-1, -2) - ends
    length = torch.linalg.vector_norm(side, dim=-1).clamp(min=1e-6)
    # depth of a point (x, y) below side i: slope_x[i] x + slope_y[i] y + level[i]
    slope_x, slope_y = side[..., 1] / length, -side[..., 0] / length  # (..., n)
    level = -(slope_x * ends[..., 0] + slope_y * ends[..., 1])
    y, x = ((torch.arange(cells, device=rays.device) + 0.5) * stride - 0.5 for cells in grid)
    x, y = x - origins[..., :1], y - origins[..., 1:]  # (..., w), (..., h)
    angle = torch.atan2(x[..., None, :], y[..., :, None])  # (..., h, w)
    sector = (angle * (count / (2 * pi))).floor().long().remainder(count).flatten(-2)
    slope_x, slope_y, level = (t.gather(-1, sector).unflatten(-1, grid) for t in (slope_x, slope_y, level))
    depth = slope_x * x[..., None, :] + slope_y * y[..., :, None] + level
    return (0.5 + (depth + 0.5) / (4 * stride)).clamp(0, 1)
