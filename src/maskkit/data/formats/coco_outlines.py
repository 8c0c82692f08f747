"""The masks and boxes of COCO annotations: checked one by one, or together where there is nothing to say of them."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from maskkit.data.records import Box, Polygons, extent, extent_of_rle
from maskkit.data.rules import (
    NEAR,
    SLACK,
    Warn,
    contradicts,
    is_line,
    kind_of,
    sound_box,
    sound_polygons,
    sound_rle,
    to_numbers,
    turned,
)
from maskkit.geometry.rle import Rle

CONTRADICTION = (
    "the bbox is not around the mask; boxes are learnt from the one and masks from the other: correct the wrong one "
    "(a bbox is x, y, width, height)"
)

_LEAST = 1.0
"""Twice the area of polygons that may be lines."""


class Outline(NamedTuple):
    """Where an object is."""

    mask: Polygons | Rle | None
    box: Box | None
    stated: Box | None
    """The bbox of the file, where it does not follow from ``box`` to the last bit."""


def outline(row: dict[str, Any], size: tuple[int, int], warn: Warn) -> Outline:
    """The sound outline of an annotation in an image of ``size`` (H, W). Raises ``ValueError`` where there is none."""
    shape = row.get("segmentation") or None
    if isinstance(shape, list) and all(part == [] for part in shape):
        shape = None  # some tools write [[]] where the mask is unknown
    if isinstance(shape, dict):
        shape = sound_rle(shape, size)
    elif isinstance(shape, list):
        shape = sound_polygons([shape] if isinstance(shape[0], int | float) else shape, size, warn)
    elif shape is not None:
        raise ValueError(f"the segmentation is {kind_of(shape)}; it is a list of polygons or a run-length record")
    around = extent(shape) if isinstance(shape, list) else None
    box, stated = around, None
    try:
        x, y, width, height = numbers = bbox_numbers(row.get("bbox"))
        box = sound_box((x, y, x + width, y + height), size, warn)
        stated = _inexact(numbers, box)
    except ValueError as error:
        if shape is None:
            raise
        if row.get("bbox"):
            warn(f"{error}; the box of the mask is taken")
    else:
        if isinstance(shape, dict):
            around = extent_of_rle(shape)
        if around is not None and contradicts(box, around):
            warn(CONTRADICTION)
    return Outline(shape, box, stated)


def upright(row: dict[str, Any], warn: Warn) -> dict[str, Any]:
    """The annotation with the upright box around a box without a mask that its ``attributes`` turn, as CVAT writes it.

    Any other annotation is returned as it is. Raises ``ValueError`` for a rotation that is no number.
    """
    attributes = row.get("attributes")
    degrees = attributes.get("rotation") if isinstance(attributes, dict) else None
    if not degrees or row.get("segmentation"):
        return row
    x, y, width, height = bbox_numbers(row.get("bbox"))
    x1, y1, x2, y2 = turned((x, y, x + width, y + height), degrees, warn)
    return row | {"bbox": [x1, y1, x2 - x1, y2 - y1]}


def bbox_numbers(bbox: Any) -> Box:
    """``x y width height``. Raises ``ValueError`` for anything but four finite numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError(f"there is neither a mask nor a bbox [x, y, width, height] (bbox is {bbox!r})")
    x, y, width, height = to_numbers(bbox, "the box").tolist()
    if not np.isfinite([x, y, width, height]).all():
        raise ValueError(f"the box has values that are no numbers: {bbox}")
    return x, y, width, height


def _inexact(bbox: Box, box: Box) -> Box | None:
    """``bbox``, where its width and height do not follow from the corners of ``box`` to the last bit."""
    (x, y, width, height), (x1, y1, x2, y2) = bbox, box
    exact = (x1, y1, x2 - x1, y2 - y1) == (x, y, width, height)
    return None if exact or (x2, y2) != (x + width, y + height) else (x, y, width, height)


@np.errstate(invalid="ignore", over="ignore")  # of infinite numbers, which are not plain
def plain_outlines(rows: Sequence[Any], sizes: Sequence[tuple[int, int] | None]) -> list[Outline | None]:
    """What `outline` finds for the annotations of which it has nothing to say, together in a few operations of numpy:
    one by one takes six times as long. None for the others, and for images of unknown size.

    Plain are polygons inside the image with an area, and a box inside it whose sides are `NEAR` those of the polygons.
    """
    found: list[Outline | None] = [None] * len(rows)
    chosen = [i for i, row in enumerate(rows) if sizes[i] is not None and _has_polygons(row)]
    parts = [part for i in chosen for part in rows[i]["segmentation"]]
    if not parts:
        return found
    try:
        numbers = np.fromiter(chain.from_iterable(parts), np.float64)
        given = np.fromiter(chain.from_iterable(rows[i]["bbox"] for i in chosen), np.float64).reshape(-1, 4)
    except (TypeError, ValueError, OverflowError):  # something else than a number somewhere
        return found
    counts = np.array([len(rows[i]["segmentation"]) for i in chosen])  # of the parts of each
    first = np.cumsum(counts) - counts
    ends = np.cumsum([len(part) for part in parts])
    starts = np.concatenate([[0], ends[:-1]])
    height, width = np.array([sizes[i] for i in chosen], np.float64).T
    x, y = numbers[0::2], numbers[1::2]
    ends_of = (np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y)
    sides = np.stack([extreme.reduceat(values, starts // 2) for extreme, values in ends_of], 1)  # of each part
    following = np.arange(1, len(x) + 1)  # the next corner of the same part
    following[ends // 2 - 1] = starts // 2
    areas = np.add.reduceat(x * y[following] - x[following] * y, starts // 2)  # twice those of the parts; 0 on a line
    inside = _inside(sides, np.repeat(height, counts), np.repeat(width, counts))
    for k in np.flatnonzero(abs(areas) <= _LEAST).tolist():
        inside[k] &= not is_line(numbers[starts[k] : ends[k]].reshape(-1, 2))
    plain = np.logical_and.reduceat(inside, first)
    around = np.stack([extreme.reduceat(sides[:, k], first) for k, (extreme, _) in enumerate(ends_of)], 1)
    corners = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], 1)
    plain &= _inside(corners, height, width) & (abs(corners - around) <= NEAR).all(1)
    exact = (corners[:, 2:] - corners[:, :2] == given[:, 2:]).all(1).tolist()
    places = list(zip(starts.tolist(), ends.tolist(), strict=True))
    boxes, stated = ([(a, b, c, d) for a, b, c, d in array.tolist()] for array in (corners, given))
    begin, last = first.tolist(), (first + counts).tolist()
    for k in np.flatnonzero(plain).tolist():
        mask = [numbers[start:end] for start, end in places[begin[k] : last[k]]]
        found[chosen[k]] = Outline(mask, boxes[k], None if exact[k] else stated[k])
    return found


def _has_polygons(row: Any) -> bool:
    """Whether an annotation has a bbox and polygons, as far as lists and their lengths tell."""
    if not isinstance(row, dict):
        return False
    shape, bbox = row.get("segmentation"), row.get("bbox")
    if type(shape) is not list or not shape or type(bbox) is not list or len(bbox) != 4:
        return False
    return all(type(part) is list and len(part) >= 6 and len(part) % 2 == 0 for part in shape)


def _inside(
    sides: Float[np.ndarray, "n 4"], height: Float[np.ndarray, "n"], width: Float[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Which ``x1 y1 x2 y2`` have an area and are in the image, or cross its border by at most `SLACK`."""
    x1, y1, x2, y2 = sides.T
    within = (x1 >= -SLACK) & (y1 >= -SLACK) & (x2 <= width + SLACK) & (y2 <= height + SLACK)
    return within & (x2 > x1) & (y2 > y1) & (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
