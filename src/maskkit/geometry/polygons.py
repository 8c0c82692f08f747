"""Polygons as COCO has them: flat lists of coordinates, rasterised to run lengths."""

import math
from collections.abc import Sequence

from faster_coco_eval.core import mask as coco_mask

from maskkit.geometry.rle import Rle, empty, union

_FAR = 1e6


def to_rle(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """One record for the union of flat polygons ``[x0, y0, x1, y1, ...]`` in pixel edges, rasterised as COCO does.

    Raises ``ValueError`` for a polygon of fewer than three points, for an odd number of coordinates, and for one that
    is not finite or far outside any image: the rasteriser would read four numbers as a box, drop the odd coordinate,
    and walk along the outline, pixel by pixel, without end.
    """
    if not polygons:
        return empty(size)
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs three points at least, x and y of each, got {len(polygon)} numbers")
    return as_stated(polygons, size)


def as_stated(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """What COCO's own code makes of polygons, however degenerate they are; ground truth is measured so.

    Raises ``ValueError`` as `stated_parts` does.
    """
    parts = stated_parts(polygons)
    return union(coco_mask.frPyObjects(parts, *size)) if parts else empty(size)  # type: ignore[arg-type]


def stated_parts(polygons: Sequence[Sequence[float]]) -> list[list[float]]:
    """The polygons that COCO's own code reads, without those that cover nothing, as it reads them.

    It drops an odd coordinate, and parts of fewer than three points cover nothing. Raises ``ValueError`` where no part
    has more than four numbers, which it does not read, and for coordinates that are not finite or far outside of any
    image.
    """
    parts = [list(map(float, p)) for p in polygons]
    if max(map(len, parts), default=0) <= 4:
        raise ValueError("a polygon needs three points at least, x and y of each")
    if not all(min(part) > -_FAR and max(part) < _FAR and math.isfinite(sum(part)) for part in parts if part):
        raise ValueError("a polygon has coordinates that are not numbers, or lie far outside of the image")
    return [part[: len(part) // 2 * 2] for part in parts if len(part) >= 6]
