"""VIA, the VGG Image Annotator: a json of versions 1, 2 or 3, beside its images.

Polygons, circles and ellipses are masks, a rectangle is an object without a known mask. The class is the attribute of
a region that is called ``class``, ``label``, ``category``, ``name`` or ``type``, or else its first one; where no region
has an attribute, all are of the class ``object``. Two attributes are our own, so that a conversion loses nothing:
regions of one class with the same ``part_of`` are parts of one object, and ``is_crowd`` marks a crowd. ``image_id``
among the attributes of a file is the id of the image.

Format: https://www.robots.ox.ac.uk/~vgg/software/via/
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import image_folders
from maskkit.data.formats import drawn
from maskkit.data.formats.drawn import Entry, Shape, Size
from maskkit.data.rules import Problems, is_line, is_set, kind_of, to_number, to_numbers

LAYOUT = "VIA: a .json of the VGG Image Annotator beside the images, in the folder itself or in train/ and val/"

_CLASS = ("class", "label", "category", "name", "type", "object")
_OWN = ("is_crowd", "part_of")
_KINDS = {
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
    8: ("extreme_rect", ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")),
    9: ("extreme_circle", ("x1", "y1", "x2", "y2", "x3", "y3")),
}
"""Shapes of version 3 that have an area, by their number, and their numbers; 7 is a polygon. The extreme ones are drawn
by points on their border."""
_POLYGON, _CHECKBOX = 7, 2


@dataclass(frozen=True)
class _Region:
    """A region in the terms of version 2."""

    shape: dict[str, Any]
    attributes: dict[str, Any]


def find(path: Path) -> list[tuple[str | None, Path]]:
    """VIA's files with their splits: the file itself, or those of a folder."""
    return drawn.json_files(path, _is_via)


def recognise(path: Path) -> bool:
    """Whether the file is VIA's, or the folder has one."""
    return bool(find(path))


def splits(path: Path) -> list[str]:
    """Names of the splits that have a file."""
    return drawn.in_order(split for split, _ in find(path))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a file, or of all files of a folder; with ``split`` those of that part.

    Classes are the options of the attribute in the project, in that order, then others that occur. Raises `DataError`
    when no file can be read.
    """
    problems = Problems()
    contents = drawn.load_all(path, find(path), problems)
    found = []
    for part, file, content in contents:
        report = partial(problems.error, file)
        images = _version_3 if _has(content, "metadata", "file") else _version_2
        found += [(part, file, *image) for image in images(content, report)]
    key = _class_attribute(r.attributes for *_, regions in found for r in regions if isinstance(r, _Region))
    listed = dict.fromkeys(name for *_, content in contents for name in _options(content, key or _declared(content)))
    used = {_name(r.attributes, key) for *_, regions in found for r in regions if isinstance(r, _Region)} - {""}
    entries = [
        Entry(
            file,
            f"image {name}",
            f"{file.parent.name}/{name}" if part and file.parent != path else name,
            partial(_shapes, file, name, regions, key),
            None,
            ids.own(attributes.get("image_id")),
            part,
        )
        for part, file, name, attributes, regions in found
    ]
    inside = [folder for _, file, _ in contents for folder in image_folders(file)]
    folders = dict.fromkeys([path, *inside] if path.is_dir() else inside)
    chosen = drawn.chosen(path, entries, split, problems)
    return drawn.dataset(path, "via", chosen, listed | dict.fromkeys(sorted(used)), folders, problems)


def _is_via(opening: str) -> bool:
    if '"_via_img_metadata"' in opening or re.search(r'"project"\s*:\s*\{[^}]*"(pname|vid_list)"', opening):
        return True
    return all(re.search(rf'"{key}"\s*:', opening) for key in ("filename", "regions")) and '"shapes"' not in opening


def _has(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in keys)


def _version_2(content: Any, report: Callable[[str, str], None]) -> Iterator[tuple[str, dict[str, Any], list[Any]]]:
    """Name, attributes and regions of each image."""
    rows = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    if not isinstance(rows, dict | list):
        report("", "has no images; save the project again")
        return
    for i, row in enumerate(rows.values() if isinstance(rows, dict) else rows, 1):
        name, regions = (row.get("filename"), row.get("regions")) if isinstance(row, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(regions, dict | list):
            report(f"image {i}", f"is {kind_of(row)} without a filename or regions; save the project again")
            continue
        listed = list(regions.values()) if isinstance(regions, dict) else regions
        made = [
            _Region(r["shape_attributes"], _dict(r.get("region_attributes")))
            if isinstance(r, dict) and isinstance(r.get("shape_attributes"), dict)
            else r
            for r in listed
        ]
        yield name, _dict(row.get("file_attributes")), made


def _version_3(
    content: dict[str, Any], report: Callable[[str, str], None]
) -> Iterator[tuple[str, dict[str, Any], list[Any]]]:
    """The same of version 3, whose regions belong to views of files."""
    views = _dict(content.get("view"))
    by_file: dict[str, list[Any]] = {}
    for name, row in content["metadata"].items():
        files = _dict(views.get(str(_dict(row).get("vid")))).get("fid_list")
        if not isinstance(files, list) or len(files) != 1:
            report(f"region {name}", "belongs to no image, or to several; save the project again")
            continue
        if not (_dict(row).get("xy") or _dict(row).get("z")):
            continue  # attributes of the whole image
        values = _dict(_dict(row).get("av"))
        attributes = {}
        for key, attribute in _dict(content.get("attribute")).items():
            if key in values:
                options, value = _dict(_dict(attribute).get("options")), values[key]
                if _dict(attribute).get("type") == _CHECKBOX and isinstance(value, str):
                    value = {options.get(name, name): True for name in value.split(",") if name}
                else:
                    value = options.get(str(value), value)
                attributes[str(_dict(attribute).get("aname"))] = value
        by_file.setdefault(str(files[0]), []).append(_Region(_shape_3(row), attributes))
    for key in by_file.keys() - content["file"].keys():
        report(f"file {key}", f"has {len(by_file[key])} regions and is not in the project; save it again")
    for key, row in content["file"].items():
        name = _dict(row).get("fname") or _dict(row).get("src")
        if not isinstance(name, str):
            report(f"file {key}", "has no name (fname); save the project again")
            continue
        yield name, {}, by_file.get(key, [])


def _shape_3(row: dict[str, Any]) -> dict[str, Any]:
    """The shape of a region of version 3 in the terms of version 2."""
    numbers = row.get("xy")
    kind = numbers[0] if isinstance(numbers, list) and numbers else None
    if row.get("z") or not isinstance(kind, int) or kind not in (*_KINDS, _POLYGON):
        return {"name": "point, line or time"}
    values = numbers[1:]  # type: ignore[index]
    if kind == _POLYGON:
        return {"name": "polygon", "all_points_x": values[::2], "all_points_y": values[1::2]}
    name, keys = _KINDS[kind]
    return {"name": name} | dict(zip(keys, values, strict=False))


def _class_attribute(regions: Iterable[dict[str, Any]]) -> str | None:
    """The name of the attribute that is the class; None where no region has any."""
    names = dict.fromkeys(name for attributes in regions for name in attributes if name not in _OWN)
    known = (name for wanted in _CLASS for name in names if name.lower() == wanted)
    return next(known, next(iter(names), None))


def _declared(content: Any) -> str | None:
    """The attribute of a project that is the class, where no region has one."""
    region = _dict(_dict(_dict(content).get("_via_attributes")).get("region"))
    return _class_attribute([region])


def _options(content: Any, key: str | None) -> list[str]:
    """The options of the class in a project of version 2 or 3."""
    if not isinstance(content, dict):
        return []
    two = _dict(_dict(_dict(content.get("_via_attributes")).get("region")).get(key or "")).get("options")
    three = (_dict(a) for a in _dict(content.get("attribute")).values())
    options = next((a.get("options") for a in three if a.get("aname") == key), None)
    return [*_dict(two), *(name for name in _dict(options).values() if isinstance(name, str) and name)]


def _name(attributes: dict[str, Any], key: str | None) -> str:
    """The class of a region; empty where it has none."""
    if key is None:
        return "object"
    value = attributes.get(key)
    if isinstance(value, dict):  # of boxes to tick
        value = next((name for name, ticked in value.items() if ticked), "")
    return value if isinstance(value, str) else ""


def _shapes(
    file: Path, image: str, regions: Sequence[Any], key: str | None, size: Size, problems: Problems
) -> Iterator[Shape]:
    """The regions of an image that can be used."""
    for i, region in enumerate(regions, 1):
        where = f"region {i}"
        try:
            if not isinstance(region, _Region):
                raise ValueError(f"is {kind_of(region)} without shape_attributes; draw it again")
            group, crowd = region.attributes.get("part_of"), region.attributes.get("is_crowd")
            if sum(map(bool, _dict(region.attributes.get(key or "")).values())) > 1:
                problems.warn(file, f"image {image}, {where}", "has several classes ticked; the first one is read")
            shape = partial(
                Shape,
                where,
                _name(region.attributes, key),
                group=None if group in (None, "") else str(group),
                crowd=is_set(crowd),
            )
            yield _drawn(shape, region.shape)
        except ValueError as error:
            problems.error(file, f"image {image}, {where}", str(error))


def _drawn(shape: "partial[Shape]", row: dict[str, Any]) -> Shape:
    """Raises ``ValueError``."""
    kind = row.get("name")

    def value(key: str) -> float:
        return to_number(row.get(key), key)

    if kind == "polygon":
        xs, ys = (to_numbers(row.get(f"all_points_{axis}"), f"all_points_{axis}").tolist() for axis in "xy")
        if len(xs) != len(ys):
            raise ValueError(f"has {len(xs)} values of x and {len(ys)} of y; draw the polygon again")
        return shape(outline=[v for pair in zip(xs, ys, strict=True) for v in pair])
    if kind == "rect":
        x, y, width, height = (value(key) for key in ("x", "y", "width", "height"))
        return shape(box=(x, y, x + width, y + height))
    if kind == "circle":
        return shape(outline=drawn.ellipse(value("cx"), value("cy"), value("r"), value("r")))
    if kind == "ellipse":
        turn = to_number(row.get("theta") or 0, "theta") * 180 / math.pi
        return shape(outline=drawn.ellipse(value("cx"), value("cy"), value("rx"), value("ry"), turn))
    if kind in ("extreme_rect", "extreme_circle"):
        points = np.array([(value(f"x{i}"), value(f"y{i}")) for i in range(1, len(row) // 2 + 1)])
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return shape(box=(left, top, right, bottom)) if kind == "extreme_rect" else shape(outline=_circle(points))
    raise ValueError(f"is a {kind}, which is not a region; draw a polygon, a rectangle, a circle or an ellipse")


def _circle(points: Float[np.ndarray, "3 2"]) -> list[float]:
    """The flat polygon that stands for the circle through three points. Raises ``ValueError`` for points on a line."""
    steps = points[1:] - points[0]
    if not np.isfinite(points).all() or is_line(points):
        raise ValueError("the three points of the circle are on one line; draw it again")
    centre = np.linalg.solve(2 * steps, (steps**2).sum(1))  # as far from the first point as from the others
    radius = math.hypot(*centre)
    x, y = (points[0] + centre).tolist()
    return drawn.ellipse(x, y, radius, radius)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
