"""Polygons as COCO has them: flat lists of coordinates, rasterised to run lengths."""

from collections.abc import Sequence

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from maskkit.geometry.rle import Rle, empty

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
        if not np.all(np.abs(np.asarray(polygon, float)) < _FAR):
            raise ValueError("a polygon has coordinates that are not numbers, or lie far outside of the image")
    parts = coco_mask.frPyObjects([list(map(float, p)) for p in polygons], *size)
    return coco_mask.merge(parts)  # type: ignore[arg-type]
