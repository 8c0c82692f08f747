"""LabelMe: one json beside each image, with shapes that have a label and points.

Polygons, rectangles, circles and masks of pixels are masks; shapes of one label with the same ``group_id`` are parts of
one object.
Two flags of a shape are our own, so that a conversion loses nothing: ``box_only`` (a rectangle without a known mask)
and ``crowd``.
"""

import base64
import io
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, load_json
from maskkit.data.images import SUFFIXES, find_images, image_size
from maskkit.data.records import Annotation, Record, extent, number
from maskkit.data.rules import Problems, Warn, counted, is_set, sound_box, sound_polygons, stated_size, to_numbers
from maskkit.errors import DataError
from maskkit.geometry import rle
from maskkit.geometry.polygons import to_rle
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories

LAYOUT = "LabelMe: a .json with shapes beside each image, in the folder itself or in train/ and val/"

_CORNERS = 64  # of the polygon that stands for a circle
_OUTLINES = ("polygon", "rectangle", "oriented_rectangle", "rotation", "quadrilateral")
"""Shapes given by their corners; the last ones are turned boxes, as LabelMe and X-AnyLabeling call them."""


def recognise(folder: Path) -> bool:
    """Whether the first readable json of the folder, or of one of its splits, has shapes."""
    for file in _files(folder):
        try:
            _shapes(file)
        except DataError:
            continue
        return True
    return False


def splits(folder: Path) -> list[str]:
    """Names of the sub folders that are splits."""
    return list(folders(folder))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a folder, or of its sub folder ``split``; numbered from 1 in the order of the json files.

    Classes are the labels of the whole folder in alphabetical order, whatever the split. Raises `DataError` when there
    is no such split.
    """
    parts = folders(path)
    if split is not None and split not in parts:
        raise DataError(f"{path}: has no {split} split; it has {', '.join(parts) or 'no sub folder train or val'}")
    problems = Problems()
    contents: dict[Path, dict[str, Any]] = {}
    for file in _files(path):
        try:
            contents[file] = _shapes(file)
        except DataError as error:
            if split is None or file.parent == parts[split]:
                problems.error(file, "", str(error))
    labels = {str(s["label"]) for c in contents.values() for s in c["shapes"] if isinstance(s, dict) and s.get("label")}
    categories = Categories.of(sorted(labels))
    records: list[Record] = []
    owners: dict[str, Path] = {}
    chosen = [f for f in contents if split is None or f.parent == parts[split]]
    for i, file in enumerate(chosen, 1):
        try:
            image, size = _image(file, contents[file])
            if (owner := owners.setdefault(os.path.normpath(image), file)) != file:
                raise DataError(f"{file}: describes {image.name}, as {owner.name} does; keep one of them")
        except DataError as error:
            problems.error(file, "", str(error))
            continue
        records.append(Record(i, image, size, _objects(file, contents[file]["shapes"], size, categories, problems)))
    places = [parts[split]] if split else [path, *parts.values()]
    described = {file.with_suffix("") for file in contents}
    if split and (stray := sum(file.parent == path for file in contents)):
        problems.warn(path, "", f"{stray} images are in no split (train, val, test); they are left out of all of them")
    if flagged := sum(any(map(is_set, _flags(contents[file]).values())) for file in chosen):
        problems.warn(path, "", f"{counted(flagged, 'image')} with flags of the whole image, which are not read")
    if bare := sum(p.with_suffix("") not in described for place in places for p in find_images(place)):
        problems.warn(path, "", f"{bare} images have no json; they are left out, because they may be unlabelled")
    return Dataset(number(records), categories, path, "labelme", problems)


def folders(path: Path) -> dict[str, Path]:
    """Sub folders that are splits."""
    return {
        split: path / next(n for n in names if (path / n).is_dir())
        for split, names in SPLITS.items()
        if any((path / n).is_dir() for n in names)
    }


def _files(path: Path) -> list[Path]:
    return [f for place in (path, *folders(path).values()) for f in sorted(place.glob("*.json"))]


def _shapes(file: Path) -> dict[str, Any]:
    """Content of a LabelMe file. Raises `DataError`."""
    content = load_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f"{file}: has no list of shapes; it is not a LabelMe file")
    return content


def _image(file: Path, content: dict[str, Any]) -> tuple[Path, tuple[int, int]]:
    """The image that a json describes, and its size as the json (or else the image) has it."""
    named = str(content.get("imagePath") or "").replace("\\", "/")
    twins = (file.with_suffix(s) for suffix in sorted(SUFFIXES) for s in (suffix, suffix.upper()))
    image = next((p for p in (file.parent / named, *twins) if os.path.isfile(p)), None)
    if image is None:
        raise DataError(f"{file}: its image {named or file.stem!r} does not exist; put it beside the json")
    return image, stated_size(content.get("imageHeight"), content.get("imageWidth")) or image_size(image)


def _objects(
    file: Path, shapes: list[Any], size: tuple[int, int], categories: Categories, problems: Problems
) -> list[Annotation]:
    """Objects in the order of their first shape."""
    groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for i, shape in enumerate(shapes, 1):
        if not isinstance(shape, dict) or not shape.get("label"):
            problems.error(file, f"shape {i}", "has no label; name its class")
            continue
        group = shape.get("group_id")
        key = i if group in (None, "") else (str(shape["label"]), str(group))
        groups.setdefault(key, []).append((i, shape))
    found = []
    for parts in groups.values():
        where = "shape " + ", ".join(str(i) for i, _ in parts)
        label, flags = categories.names.index(str(parts[0][1]["label"])), _flags(parts[0][1])
        warn = partial(problems.warn, file, where)
        crowd = is_set(flags.get("crowd"))
        try:
            if any(shape.get("shape_type") == "mask" for _, shape in parts):
                found.append(Annotation(0, label, None, _union([shape for _, shape in parts], size, warn), crowd))
                continue
            outlines = [_outline(shape) for _, shape in parts]
            if is_set(flags.get("box_only")):
                found.append(Annotation(0, label, sound_box(extent(outlines), size, warn), crowd=crowd))
                continue
            polygons = sound_polygons(outlines, size, warn)
        except ValueError as error:
            problems.error(file, where, str(error))
            continue
        found.append(Annotation(0, label, extent(polygons), polygons, crowd))
    return found


def _flags(row: dict[str, Any]) -> dict[str, Any]:
    """The flags of an image or of a shape."""
    flags = row.get("flags")
    return flags if isinstance(flags, dict) else {}


def _outline(shape: dict[str, Any]) -> list[float]:
    """The flat polygon of a shape. Raises ``ValueError`` for a kind of shape without an area."""
    kind = shape.get("shape_type") or "polygon"
    points = _points(shape)
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif kind == "circle" and len(points) == 2:
        (x, y), radius = points[0], math.dist(*points)
        angles = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    elif kind not in _OUTLINES:
        raise ValueError(f"a {kind} of {len(points)} points is not a region; draw a polygon, a rectangle or a circle")
    return [v for point in points for v in point]


def _points(shape: dict[str, Any]) -> list[tuple[float, float]]:
    """The points of a shape. Raises ``ValueError``."""
    rows = shape.get("points") or []
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise ValueError("points is not a list of [x, y]; draw the shape again")
    return [(x, y) for x, y in (to_numbers(row, "a point").tolist() for row in rows)]


def _union(shapes: list[dict[str, Any]], size: tuple[int, int], warn: Warn) -> Rle:
    """The pixels of all parts of an object of which one is a mask. Raises ``ValueError``."""
    union = np.zeros(size, bool)
    outlines = [_outline(shape) for shape in shapes if shape.get("shape_type") != "mask"]
    if outlines:
        polygons = [part.tolist() for part in sound_polygons(outlines, size, warn)]
        union |= rle.decode([to_rle(polygons, size)], size)[0]
    for shape in shapes:
        if shape.get("shape_type") == "mask":
            _paint(shape, union, warn)
    if not union.any():
        raise ValueError("the mask covers no pixel of the image; draw it again or remove it")
    return rle.encode(union[None])[0]


def _paint(shape: dict[str, Any], union: Bool[np.ndarray, "h w"], warn: Warn) -> None:
    """Add a mask: a PNG in base64, whose upper left pixel is at the first of two points. Raises ``ValueError``."""
    points = _points(shape)
    if len(points) != 2 or not np.isfinite(points).all() or np.abs(points).max() > 2**24:
        raise ValueError("a mask has two corners as points; draw it again")
    try:
        content = base64.b64decode(shape.get("mask") or b"", validate=True)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width > union.shape[1] + 1 or image.height > union.shape[0] + 1:
                raise ValueError("is larger than the image")
            mask = np.asarray(image.convert("L")) > 0
    except Exception:  # decoders raise many kinds on bad bytes
        raise ValueError(
            "the mask is not a PNG in base64, of the size of the image or smaller; draw it again"
        ) from None
    left, top = (int(v) for v in points[0])
    x1, y1, x2, y2 = max(left, 0), max(top, 0), left + mask.shape[1], top + mask.shape[0]
    inside = mask[y1 - top :, x1 - left :][: max(0, union.shape[0] - y1), : max(0, union.shape[1] - x1)]
    if inside.shape != mask.shape:
        warn(f"the mask {left} {top} {x2} {y2} crosses the border of {union.shape[1]} x {union.shape[0]} pixels")
    union[y1 : y1 + inside.shape[0], x1 : x1 + inside.shape[1]] |= inside
