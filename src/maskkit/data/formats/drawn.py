"""What people draw in labelling tools, put together to objects: the part that the readers of several tools share."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, load_json
from maskkit.data.images import image_size
from maskkit.data.places import locate
from maskkit.data.records import Annotation, Box, Record, extent, number
from maskkit.data.rules import Problems, Warn, sound_box, sound_polygons, stated_size, to_number, turn
from maskkit.data.text_files import beginning_of
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories, ImageId

Size = tuple[int, int]

_CORNERS = 64  # of the polygon that stands for an ellipse
_OPENING = 1 << 16
"""Bytes of a file by which it is recognised."""
_LOOKED_AT = 20
"""So many files of a folder are looked at, where none of them is of the format."""
_FAR = 1 << 24  # pixels from the image at which nothing is drawn


@dataclass(frozen=True, eq=False)
class Shape:
    """One shape of an image: a polygon, a mask or a box, in pixel edges."""

    where: str
    """How messages call it."""
    label: str
    outline: Sequence[float] | None = None
    """A flat polygon ``x0, y0, x1, y1, ...``."""
    mask: Rle | None = None
    box: Box | None = None
    """``x1 y1 x2 y2`` of an object whose mask is unknown."""
    group: str | None = None
    """Shapes of one label and one group are parts of one object; boxes are objects of their own."""
    crowd: bool = False
    id: int | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """One image as a file of a tool describes it."""

    file: Path
    where: str
    """How messages call the image."""
    name: str
    """The image's name in the file, or its path from the folder of the images."""
    shapes: Callable[[Size, Problems], Iterable[Shape]]
    """Its shapes, given its (H, W); those that cannot be used are noted in the problems."""
    size: Size | None = None
    """(H, W) as the file has it."""
    id: ImageId | None = None
    split: str | None = None


def dataset(
    path: Path, name: str, entries: Sequence[Entry], labels: Iterable[str], folders: Iterable[Path], problems: Problems
) -> Dataset:
    """The data set of the images, with the classes ``labels`` in that order.

    Ids of images are those of the file where all have one of their own, else 1, 2, ... The same holds for objects.
    """
    categories = Categories.of(labels)
    records: list[Record] = []
    keys: list[Any] = []
    for entry, image in zip(entries, locate([e.name for e in entries], folders), strict=True):
        if isinstance(image, str):
            problems.error(entry.file, entry.where, image)
            continue
        try:
            size = entry.size or image_size(image)
        except DataError as error:
            problems.error(image, "", str(error))
            continue
        found = _objects(entry, entry.shapes(size, problems), size, categories, problems)
        records.append(Record(len(records) + 1, image, size, found))
        keys.append(entry.id)
    if None not in keys and len({ids.key(k) for k in keys}) == len(keys):
        records = [Record(k, r.path, r.size, r.annotations) for k, r in zip(keys, records, strict=True)]
    elif None not in keys:
        problems.warn(path, "", "several images have one id; the images are numbered 1, 2, ... instead")
    numbers = [a.id for r in records for a in r.annotations]
    if min(numbers, default=1) < 1 or len(set(numbers)) < len(numbers):
        records = number(records)
    return Dataset(records, categories, path, name, problems)


def _objects(
    entry: Entry, shapes: Iterable[Shape], size: Size, categories: Categories, problems: Problems
) -> list[Annotation]:
    """Objects in the order of their first shape."""
    groups: dict[Any, list[Shape]] = {}
    for i, shape in enumerate(shapes):
        alone = shape.group is None or shape.box is not None
        groups.setdefault(i if alone else (shape.label, shape.group), []).append(shape)
    found = []
    for parts in groups.values():
        where = ", ".join(filter(None, [entry.where, *(part.where for part in parts)]))
        try:
            found.append(_object(parts, size, categories, partial(problems.warn, entry.file, where)))
        except ValueError as error:
            problems.error(entry.file, where, str(error))
    return found


def _object(parts: Sequence[Shape], size: Size, categories: Categories, warn: Warn) -> Annotation:
    """One object. Raises ``ValueError``."""
    first = parts[0]
    if first.label not in categories.names:
        raise ValueError(f"the class {first.label!r} is not listed" if first.label else "has no label; name its class")
    key, label, crowd = first.id or 0, categories.names.index(first.label), any(part.crowd for part in parts)
    if first.box is not None:
        return Annotation(key, label, sound_box(first.box, size, warn), crowd=crowd)
    outlines = [part.outline for part in parts if part.outline is not None]
    masks = [part.mask for part in parts if part.mask is not None]
    polygons = sound_polygons(outlines, size, warn) if outlines else []
    if not masks:
        return Annotation(key, label, extent(polygons), polygons, crowd)
    if polygons:
        masks.append(to_rle([part.tolist() for part in polygons], size))
    mask = mask_math.union(masks) if len(masks) > 1 else masks[0]
    if not mask_math.area([mask])[0]:
        raise ValueError("the mask covers no pixel of the image; draw it again or remove it")
    return Annotation(key, label, None, mask, crowd)


def placed(region: Bool[np.ndarray, "h w"], left: int, top: int, size: Size, warn: Warn) -> Rle:
    """The mask in an image of ``size`` whose pixels are ``region`` at (left, top).

    It is cut at the border, with a warning. Raises ``ValueError`` where nothing is left.
    """
    if max(abs(left), abs(top)) > _FAR:
        raise ValueError(f"the mask at {left}, {top} is outside the image of {size[1]} x {size[0]} pixels")
    inside = region[max(-top, 0) : max(size[0] - top, 0), max(-left, 0) : max(size[1] - left, 0)]
    if inside.shape != region.shape:
        warn(f"the mask at {left}, {top} crosses the border of {size[1]} x {size[0]} pixels and is cut there")
    if not inside.any():
        raise ValueError("the mask covers no pixel of the image; draw it again or remove it")
    return mask_math.encode_region(inside, max(top, 0), max(left, 0), size)


def ellipse(x: float, y: float, across: float, down: float, degrees: float = 0) -> list[float]:
    """The flat polygon that stands for an ellipse with these radii. Raises ``ValueError`` for one without an area."""
    if not all(map(math.isfinite, (x, y, across, down, degrees))) or across <= 0 or down <= 0:
        raise ValueError(f"the ellipse has the radii {across:g} and {down:g}; draw it again or remove it")
    angles = 2 * math.pi * np.arange(_CORNERS) / _CORNERS
    points = np.stack([across * np.cos(angles), down * np.sin(angles)], 1) @ turn(degrees)
    return (points + np.array([x, y])).reshape(-1).tolist()


def opening(file: Path) -> str:
    """The first letters of a json; empty where it cannot be read."""
    try:
        beginning = beginning_of(file, _OPENING)
        return beginning.decode(json.detect_encoding(beginning), "replace")
    except DataError:
        return ""


def json_files(path: Path, looks: Callable[[str], bool], *folders: str) -> list[tuple[str | None, Path]]:
    """The json files of a format, each with its split: the file itself, or those of a folder and of some in it.

    A file is of the format where its `opening` ``looks`` so; its split is that which its folder or it is called by.
    """
    if path.is_file():
        return [(None, path)] if path.suffix.lower() == ".json" and looks(opening(path)) else []
    inside = [(split, name) for split, names in SPLITS.items() for name in names]
    found = []
    for split, name in [(None, ""), *((None, folder) for folder in folders), *inside]:
        candidates = sorted((path / name).glob("*.json"))
        if any(looks(opening(file)) for file in candidates[:_LOOKED_AT]):
            named = ((split or split_of(file.stem), file) for file in candidates)
            # a file called as a split is one, whatever is wrong with it
            found += [(part, file) for part, file in named if looks(opening(file)) or split_of(file.stem)]
    return found


def load_all(
    path: Path, files: Iterable[tuple[str | None, Path]], problems: Problems
) -> list[tuple[str | None, Path, Any]]:
    """The files with their splits and contents. Raises `DataError` when none can be read."""
    found, last = [], DataError(f"{path}: has no file that can be read")
    for split, file in files:
        try:
            found.append((split, file, load_json(file)))
        except DataError as error:
            last = error
            problems.error(file, "", str(error))
    if not found:
        raise last
    return found


def split_of(name: Any) -> str | None:
    """The split that a part of a data set called ``name`` is."""
    found = name.lower() if isinstance(name, str) else None
    return next((split for split, names in SPLITS.items() if found in names), None)


def in_order(splits: Iterable[str | None]) -> list[str]:
    """The splits of ``train``, ``val`` and ``test`` that occur."""
    there = set(splits)
    return [split for split in SPLITS if split in there]


def chosen(path: Path, entries: Sequence[Entry], split: str | None, problems: Problems) -> list[Entry]:
    """The images of a split; all of them for None. Raises `DataError` where there is no such split."""
    if split is None:
        return list(entries)
    kept = [entry for entry in entries if entry.split == split]
    if not kept:
        raise DataError(
            f"{path}: has no {split} split; it has {', '.join(in_order(e.split for e in entries)) or 'none'}"
        )
    if stray := sum(entry.split is None for entry in entries):
        problems.warn(path, "", f"{stray} images are in no split (train, val, test); they are left out of all of them")
    return kept


def size_of(height: Any, width: Any) -> Size | None:
    """(H, W) given in a file, as numbers or as text; None when they cannot be the size of an image."""
    return stated_size(ids.whole(height), ids.whole(width))


def whole_number(value: Any, what: str) -> int:
    """A whole number. Raises ``ValueError``."""
    found = to_number(value, what)
    if not math.isfinite(found) or found != int(found):
        raise ValueError(f"{what} is no whole number: {found:g}")
    return int(found)
