"""What counts as a usable record, and the `Problem`s that a reader reports.

A reader does not stop at a bad record: it leaves the record out, notes a `Problem`, and continues. The ``sound_*``
functions check one object. They raise ``ValueError`` with the reason when the object cannot be used, and call ``warn``
when they had to repair it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
from jaxtyping import Float, Int

from maskkit.data.records import Box, Polygons
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle

Warn = Callable[[str], None]

SLACK = 1.0
"""Pixels by which an annotation may cross the image border without a warning."""


WITHOUT_OBJECTS = "for models of objects it is an image without any, which is wrong if objects are in it; add them"
CORNERS = "the boxes are all but surely x1, y1, x2, y2; a bbox is x, y, width, height: convert them"
_FEW, _LOOKED_AT, _OFTEN = 10, 1000, 0.25
_CORNERS = 5
"""Polygons with more corners are not looked at whether they are a line: nobody draws one so."""

NEAR = 3.0
"""Pixels by which a side of a box may differ from its mask without counting."""


@dataclass(frozen=True)
class Problem:
    """A defect of a data set. An ``error`` left a record or an annotation out, a ``warning`` did not."""

    level: Literal["error", "warning"]
    file: str
    record: str
    message: str
    measured: bool = False
    """Whether an object that was left out of training still counts when results are measured."""

    def __str__(self) -> str:
        where = f"{self.file}, {self.record}" if self.record else self.file
        return f"{self.level}: {where}: {self.message}"


class Problems(list[Problem]):
    """Problems in the order in which they were found."""

    def error(self, file: Path, record: str, message: str, measured: bool = False) -> None:
        """Add something that had to be left out."""
        self.append(Problem("error", str(file), brief(record), brief(message.removeprefix(f"{file}: ")), measured))

    def warn(self, file: Path, record: str, message: str) -> None:
        """Add something doubtful that was kept."""
        self.append(Problem("warning", str(file), brief(record), brief(message.removeprefix(f"{file}: "))))


def counted(number: int, noun: str, *, be: bool = False) -> str:
    """``1 error``, ``2 errors``; with ``be`` ``1 error is``, ``2 errors are``."""
    text = f"{number} {noun}{'' if number == 1 else 's'}"
    return text + (" is" if number == 1 else " are") * be


def to_numbers(values: Any, what: str) -> Float[np.ndarray, "n"]:
    """A flat list of numbers, which may be written as text. Raises ``ValueError`` that calls the list ``what``."""
    if not isinstance(values, list | tuple | np.ndarray):
        raise ValueError(f"{what} is {kind_of(values)}; it is a list of numbers")
    try:
        flat = np.asarray(values, np.float64)
        if flat.ndim == 1:
            return flat
    except (ValueError, TypeError, OverflowError):
        pass
    for value in values:
        if isinstance(value, list | tuple):
            break
        to_number(value, what)
    raise ValueError(f"{what} is not a flat list of numbers")


def to_number(value: Any, what: str) -> float:
    """A number, which may be written as text. Raises ``ValueError`` that calls it a value of ``what``."""
    try:
        if isinstance(value, int | float) or (isinstance(value, str) and "_" not in value):  # Python takes 1_0 for 10
            return float(value)
    except OverflowError:
        raise ValueError(f"{what} has a number beyond any image") from None
    except ValueError:
        pass
    raise ValueError(f"{what} has a value that is no number: {shortened(value)}")


def folded(name: str) -> str:
    """A name without what people and systems write differently: case, surrounding spaces and the form of Unicode."""
    return normalize("NFC", name.strip().casefold())


def is_set(flag: Any) -> bool:
    """Whether a flag in a file is set: a number other than 0, true, or one of the words for it."""
    if not flag:  # nearly always, and files have many
        return False
    if isinstance(flag, str):
        return flag.strip().lower() in ("1", "1.0", "true", "yes")
    return isinstance(flag, int | float) and flag == flag


def is_thing(category: Mapping[str, Any]) -> bool:
    """Whether a class in a file is a thing, as every class is that has no flag ``isthing``."""
    flag = category.get("isthing")
    return flag is None or is_set(flag)


def kind_of(value: Any) -> str:
    """What a value of a json file is, in its words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing (null)"}
    return kinds.get(type(value), "a number")


def shortened(value: Any) -> str:
    """A value for a message, at most 40 characters of it."""
    text = repr(value) if isinstance(value, str | int | float | None) else kind_of(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def brief(text: str, most: int = 600) -> str:
    """A message without its middle where it is longer than ``most``: names in broken files may have any length."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(H, W) given in a file; None when the values cannot be the size of an image."""
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in (height, width))
    known = whole and height > 0 and width > 0 and height * width < 2**31
    return (height, width) if known else None


def size_mismatch(stated: tuple[int, int], real: tuple[int, int]) -> str:
    """The error text for annotations that were made for another (H, W) than the image has."""
    turned = " (width and height are exchanged, as by an EXIF orientation)" if stated == real[::-1] else ""
    return (
        f"the annotations say {stated[1]} x {stated[0]} pixels, the image has {real[1]} x {real[0]}{turned}; "
        "restore the image that was annotated, or correct the annotations"
    )


def sound_box(box: Sequence[float], size: tuple[int, int], warn: Warn) -> Box:
    """``x1 y1 x2 y2`` as usable numbers, cut at the image border where it crosses it by more than `SLACK`."""
    x1, y1, x2, y2 = to_numbers(box, "the box").tolist()
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise ValueError(f"the box has values that are no numbers: {list(box)}")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box is {x2 - x1:g} wide and {y2 - y1:g} high; draw it again or remove it")
    height, width = size
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise ValueError(f"the box is outside the image of {width} x {height} pixels")
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        warn(f"the box {x1:g} {y1:g} {x2:g} {y2:g} crosses the border of {width} x {height} pixels and is cut there")
        return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    return x1, y1, x2, y2


def turned(box: Box, degrees: Any, warn: Warn, pivot: tuple[float, float] | None = None) -> Box:
    """The upright box around a box that is turned, clockwise, about its centre or about ``pivot``.

    ``degrees`` are a number, which may be written as text, or nothing. Raises ``ValueError`` for anything else.
    """
    degrees = to_number(degrees or 0, "the rotation")
    if not degrees:
        return box
    if not math.isfinite(degrees):
        raise ValueError("the rotation is no number; draw the box again")
    x1, y1, x2, y2 = box
    pivot = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    corners = (np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]) - pivot) @ turn(degrees) + pivot
    warn(f"is a box turned by {degrees:g} degrees; the upright box around it is taken")
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return left, top, right, bottom


def turn(degrees: float) -> np.ndarray:
    """The matrix that turns rows (x, y) clockwise, y pointing down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


def are_corners(boxes: Iterable[tuple[Sequence[float], tuple[int, int]]]) -> bool:
    """Whether boxes ``x y width height``, each with the (H, W) of its image, are all but surely ``x1 y1 x2 y2``.

    Read so, each is within its image, and otherwise a quarter of them cross its border. Of a few nothing is said, and
    of many the first thousand are looked at.
    """
    found = list(islice(boxes, _LOOKED_AT))
    if len(found) < _FEW:
        return False
    x, y, third, fourth = np.array([box for box, _ in found], np.float64).T
    height, width = np.array([size for _, size in found], np.float64).T + SLACK
    within = (third > x) & (fourth > y) & (third <= width) & (fourth <= height)
    return bool(within.all() and ((x + third > width) | (y + fourth > height)).mean() >= _OFTEN)


def contradicts(box: Box, around: Box) -> bool:
    """Whether a box is another than the one ``around`` its mask: their IoU is below 0.5.

    Sides that differ by at most `NEAR` pixels count as equal: boxes are drawn less exactly than masks.
    """
    x1, y1, x2, y2 = (float(b) if abs(a - b) <= NEAR else float(a) for a, b in zip(box, around, strict=True))
    left, top, right, bottom = map(float, around)
    overlap = max(min(x2, right) - max(x1, left), 0.0) * max(min(y2, bottom) - max(y1, top), 0.0)
    return overlap < 0.5 * ((x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - overlap)


def sound_polygons(parts: Polygons, size: tuple[int, int], warn: Warn) -> list[Float[np.ndarray, "n"]]:
    """Flat polygons as arrays: unusable parts dropped, cut at the border where they cross it by more than `SLACK`."""
    sound, reasons = [], []
    for part in parts:
        try:
            sound.append(_sound_polygon(part, size, warn))
        except ValueError as error:
            reasons.append(str(error))
    if not sound:
        raise ValueError("; ".join(dict.fromkeys(reasons)) or "the mask has no polygon")
    for reason in reasons:
        warn(f"a part of the mask is left out: {reason}")
    return sound


def sound_rle(record: Mapping[str, Any], size: tuple[int, int], *, allow_empty: bool = False) -> Rle:
    """A run-length record, compressed, that is known to fit an image of ``size`` (H, W).

    ``record`` has ``size`` and ``counts``: a list of run lengths or COCO's compressed text. Raises ``ValueError`` when
    the sizes differ, the runs do not add up to the image, or, unless ``allow_empty``, no pixel is covered.
    """
    counts = record.get("counts")
    if not isinstance(counts, str | bytes | list):
        raise ValueError("the run-length mask has no run lengths (counts); export it again")
    if (stated := record.get("size")) != list(size) and stated != tuple(size):
        shown = stated if isinstance(stated, list) and len(stated) == 2 else shortened(stated)
        raise ValueError(f"the run-length mask has size {shown}, the image {list(size)} (height, width)")
    runs = _whole_runs(counts) if isinstance(counts, list) else mask_math.run_lengths(counts)
    pixels = size[0] * size[1]
    # faster-coco-eval does not terminate on counts that do not add up
    if runs.ndim != 1 or runs.min(initial=0) < 0 or runs.max(initial=0) > pixels or runs.sum() != pixels:
        raise ValueError(
            f"the run lengths add up to {runs.sum()} pixels, the image has {pixels}; export the mask again"
        )
    if not allow_empty and runs[1::2].sum() == 0:
        raise ValueError("the run-length mask covers no pixel; draw it again or remove it")
    if isinstance(counts, list):
        return mask_math.from_counts(runs.tolist(), size)
    return {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def _whole_runs(counts: list[Any]) -> Int[np.ndarray, "n"]:
    """Run lengths as whole numbers. Raises ``ValueError``."""
    runs = to_numbers(counts, "the list of run lengths")
    if not np.isfinite(runs).all() or (runs != np.round(runs)).any() or np.abs(runs).max(initial=0) > 2**53:
        raise ValueError("the run lengths hold a number beyond any image, or a fraction; export the mask again")
    return runs.astype(np.int64)


def _sound_polygon(part: Any, size: tuple[int, int], warn: Warn) -> Float[np.ndarray, "n"]:
    flat = to_numbers(part, "a polygon")
    if len(flat) % 2:
        raise ValueError("a polygon is a flat list x0, y0, x1, y1, ...; write one number for x and one for y per point")
    if len(flat) < 6:
        raise ValueError(f"a polygon of {len(flat) // 2} points has no area; it must have at least three")
    points = flat.reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise ValueError("the polygon has values that are no numbers (NaN or infinite)")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the polygon is {x2 - x1:g} wide and {y2 - y1:g} high, it covers nothing")
    if is_line(points):
        raise ValueError("the corners of the polygon are on one line, it covers nothing")
    height, width = size
    if min(x1, y1) >= -SLACK and x2 <= width + SLACK and y2 <= height + SLACK:
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            raise ValueError(f"the polygon is outside the image of {width} x {height} pixels")
        return flat
    inside = _cut(points, size)
    if len(inside) < 3:
        raise ValueError(f"the polygon is outside the image of {width} x {height} pixels")
    warn(f"the polygon crosses the border of {width} x {height} pixels and is cut there")
    return inside.reshape(-1)


def is_line(points: Float[np.ndarray, "n 2"]) -> bool:
    """Whether a polygon has few corners, which are on one line to a millionth of a pixel."""
    if len(points) > _CORNERS:
        return False
    steps = points - points[0]
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    way = steps[lengths.argmax()]
    return bool((np.abs(steps[:, 0] * way[1] - steps[:, 1] * way[0]) <= 1e-6 * lengths.max()).all())


def _cut(points: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Float[np.ndarray, "m 2"]:
    """The polygon inside the image (Sutherland and Hodgman, 1974): cut at one border after the other."""
    for axis, border, side in ((0, 0, 1), (0, size[1], -1), (1, 0, 1), (1, size[0], -1)):
        depth = side * (points[:, axis] - border)  # positive inside
        following, next_depth = np.roll(points, -1, 0), np.roll(depth, -1)
        crosses = depth * next_depth < 0
        share = np.divide(depth, depth - next_depth, out=np.zeros_like(depth), where=crosses)
        both = np.stack([points, points + share[:, None] * (following - points)], 1)  # (N, 2, 2)
        points = both[np.stack([depth >= 0, crosses], 1)]
    return points
