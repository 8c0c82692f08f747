"""LabelMe: one json beside each image, with shapes that have a label and points.

Polygons, rectangles and circles are masks; shapes of one label with the same ``group_id`` are parts of one object.
Two flags of a shape are our own, so that a conversion loses nothing: ``box_only`` (a rectangle without a known mask)
and ``crowd``.
"""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, load_json
from maskkit.data.images import SUFFIXES, find_images, image_size
from maskkit.data.records import Annotation, Record, extent, number
from maskkit.data.rules import Problems, sound_box, sound_polygons, stated_size
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "LabelMe: a .json with shapes beside each image, in the folder itself or in train/ and val/"

_CORNERS = 64  # of the polygon that stands for a circle


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
        key = i if group is None else (str(shape["label"]), str(group))
        groups.setdefault(key, []).append((i, shape))
    found = []
    for parts in groups.values():
        where = "shape " + ", ".join(str(i) for i, _ in parts)
        label, flags = categories.names.index(str(parts[0][1]["label"])), parts[0][1].get("flags")
        flags = flags if isinstance(flags, dict) else {}
        warn = partial(problems.warn, file, where)
        try:
            outlines = [_outline(shape) for _, shape in parts]
            if flags.get("box_only"):
                box = sound_box(extent(outlines), size, warn)
                found.append(Annotation(0, label, box, crowd=bool(flags.get("crowd"))))
                continue
            polygons = sound_polygons(outlines, size, warn)
        except (ValueError, TypeError, OverflowError) as error:
            problems.error(file, where, str(error))
            continue
        found.append(Annotation(0, label, extent(polygons), polygons, crowd=bool(flags.get("crowd"))))
    return found


def _outline(shape: dict[str, Any]) -> list[float]:
    """The flat polygon of a shape. Raises ``ValueError`` for a kind of shape without an area."""
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape.get("points") or []]
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif kind == "circle" and len(points) == 2:
        (x, y), radius = points[0], math.dist(*points)
        angles = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    elif kind not in ("polygon", "rectangle"):
        raise ValueError(f"a {kind} of {len(points)} points is not a region; draw a polygon, a rectangle or a circle")
    return [v for point in points for v in point]
