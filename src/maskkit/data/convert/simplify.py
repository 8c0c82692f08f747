"""Polygons with few corners for masks of models, easy to edit, and with a least IoU with the mask."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from maskkit.data.convert.outlines import Points, bridge, outlines, trace
from maskkit.geometry import polygons
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle

_COARSEST, _FINEST = 16.0, 0.5
"""Range of the tolerances in pixels, which fall by a factor of sqrt(2)."""


def simplified(rle: Rle, least_iou: float) -> list[Float[np.ndarray, "k"]]:
    """Flat polygons, one per connected part, whose pixels have an IoU of at least ``least_iou`` with the mask.

    The largest tolerance that keeps the IoU is used; if there is none, the polygons follow the edges of the pixels.
    Holes are joined to their part by a line there and back. Parts and holes smaller than the square of the tolerance
    are left out, but never the largest part. Empty for an empty mask.
    """
    region, top, left = mask_math.decode_region(rle)
    if not region.any():
        return []
    found = next(_trials(region, least_iou), None) if least_iou < 1 else None
    corner = np.array([left, top])
    return [(p.reshape(-1, 2) + corner).reshape(-1) for p in found or trace(region)]


def _trials(region: Bool[np.ndarray, "h w"], least_iou: float) -> Iterator[list[Float[np.ndarray, "k"]]]:
    """The polygons for each tolerance that keeps the IoU, from coarse to fine."""
    size = (region.shape[0], region.shape[1])
    (mask,) = mask_math.encode(region[None])
    parts = [[(loop, _area(loop), _significance(loop)) for loop in loops] for loops in outlines(region)]
    largest = max(area for loops in parts for _, area, _ in loops)
    tolerance = min(_COARSEST, max(size) / 2)
    while tolerance >= _FINEST:
        found = []
        for loops in parts:
            kept = [
                loop[significance > tolerance].reshape(-1)
                for loop, area, significance in loops
                if area >= min(tolerance**2, largest)
            ]
            # the first line is the outer border of the part: without it the holes would become parts
            if kept and loops[0][1] >= min(tolerance**2, largest):
                found.append(bridge(kept))
        if mask_math.iou([polygons.to_rle([p.tolist() for p in found], size)], [mask])[0, 0] >= least_iou:
            yield found
        tolerance /= 2**0.5


def _area(loop: Points) -> float:
    """Pixels inside a closed line."""
    x, y = loop.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _significance(loop: Points) -> Float[np.ndarray, "n"]:
    """For each corner of a closed line, the tolerance up to which the algorithm of Douglas and Peucker (1973) keeps it.

    A corner is kept if its distance to the line between its neighbours is larger than the tolerance, and if that holds
    for the corners that were kept before it. The first corner, the one farthest from it, and the most significant other
    one are always kept, so that three are left.
    """
    found = np.zeros(len(loop))
    far = int(np.argmax(((loop - loop[0]) ** 2).sum(1)))
    found[[0, far]] = np.inf
    closed = np.concatenate([loop, loop[:1]])
    waiting: list[tuple[int, int, float]] = [(0, far, np.inf), (far, len(loop), np.inf)]
    while waiting:
        start, end, limit = waiting.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        place = int(np.argmax(distances))
        limit = min(limit, float(distances[place]))
        middle = start + 1 + place
        found[middle] = limit
        waiting += [(start, middle, limit), (middle, end, limit)]
    found[np.argmax(np.where(np.isinf(found), -1, found))] = np.inf
    return found


def _distances(points: Points, start: Sequence[float] | np.ndarray, end: np.ndarray) -> Float[np.ndarray, "n"]:
    """Distances of points to the line between two others, or to the point where these are one."""
    way = end - start
    length = float(np.hypot(*way))
    offset = points - start
    if length == 0:
        return np.hypot(offset[:, 0], offset[:, 1])
    return np.abs(offset[:, 0] * way[1] - offset[:, 1] * way[0]) / length
