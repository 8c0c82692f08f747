"""CVAT for images 1.1: an xml with all images and their shapes, beside a folder ``images``.

Polygons and ellipses are masks, ``mask`` has run lengths row by row inside of its box, a ``box`` is an object without a
known mask. Shapes of one label with the same ``group_id`` are parts of one object. The attribute ``is_crowd`` of a
shape marks a crowd, as in CVAT's own conversion from COCO. The ``subset`` of an image is its split.

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import image_folders
from maskkit.data.formats import drawn
from maskkit.data.formats.drawn import Entry, Shape, Size
from maskkit.data.rules import Problems, Warn, counted, is_set, to_number, to_numbers, turned
from maskkit.data.text_files import beginning_of, read_xml
from maskkit.errors import DataError
from maskkit.geometry.rle import Rle

LAYOUT = "CVAT: annotations.xml (CVAT for images 1.1) with images/"

_SHAPES = ("polygon", "mask", "box", "ellipse")
_NO_SHAPES = ("tag", "attribute")
_BEGINNING = 1 << 16
"""Bytes of a file by which it is recognised."""


def find(path: Path) -> list[Path]:
    """CVAT's files: the file itself, or those of a folder."""
    files = [path] if path.is_file() else [*sorted(path.glob("*.xml")), *sorted((path / "annotations").glob("*.xml"))]
    return [file for file in files if file.suffix.lower() == ".xml" and _is_cvat(file)]


def recognise(path: Path) -> bool:
    """Whether the file is CVAT's, or the folder has one."""
    return bool(find(path))


def splits(path: Path) -> list[str]:
    """Names of the splits that are subsets of the images."""
    return drawn.in_order(entry.split for entry in _entries(_contents(path, Problems())))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a file, or of all files of a folder; with ``split`` those of that subset.

    Classes are those that the files list, in that order, then others that shapes have. Raises `DataError` when no file
    can be read.
    """
    problems = Problems()
    contents = _contents(path, problems)
    labels = dict.fromkeys(label for _, root in contents for label in _labels(root))
    entries = drawn.chosen(path, _entries(contents), split, problems)
    for file, root in contents:
        if count := sum(1 for _ in root.iterfind("image/tag")):
            problems.warn(file, "", f"{count} tags of whole images are left out; masks and boxes are read")
        if count := sum(1 for _ in root.iterfind("track")):
            problems.error(file, "", f"{counted(count, 'track', be=True)} left out; export it as CVAT for images 1.1")
    folders = dict.fromkeys(folder for file, _ in contents for folder in image_folders(file))
    return drawn.dataset(path, "cvat", entries, labels, folders, problems)


def _is_cvat(file: Path) -> bool:
    try:
        beginning = beginning_of(file, _BEGINNING).replace(b"\0", b"")  # of UTF-16
    except DataError:
        return False
    return bool(re.search(rb"<annotations\b", beginning) and re.search(rb"<(image|track|meta|version)\b", beginning))


def _contents(path: Path, problems: Problems) -> list[tuple[Path, Element]]:
    """The files with their roots. Raises `DataError` when none can be read."""
    found, last = [], DataError(f"{path}: has no xml of CVAT for images")
    for file in find(path):
        try:
            root = read_xml(file)
            if root.find("image") is None:
                video = root.find("track") is not None
                raise DataError(
                    f"{file}: is CVAT for video, which is not read; export it as CVAT for images 1.1"
                    if video
                    else f"{file}: has no image; export the annotations again as CVAT for images 1.1"
                )
            found.append((file, root))
        except DataError as error:
            last = error
            problems.error(file, "", str(error))
    if not found:
        raise last
    return found


def _labels(root: Element) -> Iterator[str]:
    """Names of classes, possibly several times: those that the file lists, then those of its shapes."""
    for node in root.iterfind("meta//label"):
        if (name := node.findtext("name")) and (node.findtext("type") or "any") not in ("tag", "polyline", "points"):
            yield name
    yield from (name for node in root.iterfind("image/*") if node.tag in _SHAPES and (name := node.get("label")))


def _entries(contents: Iterable[tuple[Path, Element]]) -> list[Entry]:
    found = []
    for file, root in contents:
        for i, node in enumerate(root.iterfind("image"), 1):
            name, subset = node.get("name") or "", node.get("subset") or ""
            where = f"image {node.get('id', f'number {i}')} ({name})"
            size = drawn.size_of(node.get("height"), node.get("width"))
            full = f"{subset}/{name}" if subset and name else name
            number = ids.whole(node.get("id"))
            own = node.get("id") if number is None else number
            found.append(
                Entry(file, where, full, partial(_shapes, file, where, node), size, own, drawn.split_of(subset))
            )
    return found


def _shapes(file: Path, image: str, node: Element, size: Size, problems: Problems) -> Iterator[Shape]:
    """The shapes of an image that can be used."""
    for i, child in enumerate(node, 1):
        where = f"shape {i}"
        full = f"{image}, {where}"
        try:
            if child.tag not in (*_SHAPES, *_NO_SHAPES):
                raise ValueError(f"is a {child.tag}, which is not a region; draw a polygon, a mask or a box")
            if child.tag in _SHAPES:
                yield _shape(where, child, size, partial(problems.warn, file, full))
        except ValueError as error:
            problems.error(file, full, str(error))


def _shape(where: str, node: Element, size: Size, warn: Warn) -> Shape:
    """Raises ``ValueError``."""
    group = node.get("group_id") or "0"
    shape = partial(Shape, where, node.get("label") or "", group=None if group == "0" else group, crowd=_is_crowd(node))
    if node.tag == "mask":
        return shape(mask=_mask(node, size, warn))
    if node.tag == "polygon":
        pairs = [pair.split(",") for pair in (node.get("points") or "").split(";")]
        return shape(outline=to_numbers([value for pair in pairs for value in pair], "the polygon").tolist())
    if node.tag == "ellipse":
        x, y, across, down = (_value(node, key) for key in ("cx", "cy", "rx", "ry"))
        return shape(outline=drawn.ellipse(x, y, across, down, to_number(node.get("rotation") or 0, "the rotation")))
    x1, y1, x2, y2 = (_value(node, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    return shape(box=turned((x1, y1, x2, y2), node.get("rotation"), warn))


def _mask(node: Element, size: Size, warn: Warn) -> Rle:
    """The pixels of run lengths, background first, row by row in a box. Raises ``ValueError``."""
    left, top, width, height = (
        drawn.whole_number(_value(node, key), key) for key in ("left", "top", "width", "height")
    )
    if not (0 < width <= size[1] and 0 < height <= size[0]):
        raise ValueError(f"the mask is {width} x {height} pixels, the image {size[1]} x {size[0]}; draw it again")
    runs = to_numbers([run for run in (node.get("rle") or "").split(",") if run.strip()], "the list of run lengths")
    if len(runs) == 0 or not np.isfinite(runs).all() or (runs < 0).any() or (runs != np.round(runs)).any():
        raise ValueError("the run lengths are no whole numbers; export the mask again")
    if runs.sum() != width * height:
        raise ValueError(
            f"the run lengths add up to {runs.sum():g} pixels, the box has {width * height}; draw it again"
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64))
    return drawn.placed(values.reshape(height, width), left, top, size, warn)


def _value(node: Element, key: str) -> float:
    value = node.get(key)
    if not value:
        raise ValueError(f"has no {key}; export the annotations again")
    return to_number(value, key)


def _is_crowd(node: Element) -> bool:
    flags = (child for child in node.iterfind("attribute") if child.get("name") in ("is_crowd", "iscrowd", "crowd"))
    return any(is_set(child.text) for child in flags)
