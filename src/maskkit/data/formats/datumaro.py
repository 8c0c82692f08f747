"""Datumaro's own json: ``annotations/train.json`` and the images in ``images/train/``.

Polygons, ellipses and masks are masks. Annotations of one class in the same ``group`` are parts of one object. A
``bbox`` is an object without a known mask, unless one of its parts has a mask; the attribute ``rotation``, which CVAT
writes, turns it about its centre. The attribute ``is_crowd`` marks a crowd, the attribute ``id`` of an item is the id
of the image.

Format: https://openvinotoolkit.github.io/datumaro/latest/docs/data-formats/formats/datumaro.html
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import image_folders
from maskkit.data.formats import drawn
from maskkit.data.formats.drawn import Entry, Shape, Size
from maskkit.data.images import SUFFIXES
from maskkit.data.places import locate
from maskkit.data.rules import Problems, Warn, is_set, kind_of, sound_rle, to_numbers, turned
from maskkit.errors import DataError

LAYOUT = "Datumaro: annotations/train.json with items and categories, and images/train/"

_AREAS = ("polygon", "mask", "bbox", "ellipse")
_NO_REGIONS = ("label", "caption", "hash_key", "feature_vector")


def find(path: Path) -> list[tuple[str | None, Path]]:
    """Datumaro's files with their splits: the file itself, or those of a folder."""
    return drawn.json_files(path, _is_datumaro, "annotations")


def recognise(path: Path) -> bool:
    """Whether the file is Datumaro's, or the folder has one."""
    return bool(find(path))


def splits(path: Path) -> list[str]:
    """Names of the splits that have a file."""
    return drawn.in_order(split for split, _ in find(path))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a file, or of all files of a folder; with ``split`` those of that file.

    Raises `DataError` when no file can be read.
    """
    problems = Problems()
    entries, labels = [], {}
    contents = drawn.load_all(path, find(path), problems)
    for part, file, content in contents:
        items = _get(content, "items")
        if not isinstance(items, list):
            problems.error(file, "", "has no list of items; export the annotations again")
            continue
        names = _labels(file, content, problems)
        labels |= dict.fromkeys(name for name in names if name)
        entries += _entries(part, file, items, names, problems)
    if not labels and not entries:
        raise DataError(f"{path}: has no item of Datumaro that can be read; export the annotations again")
    folders = dict.fromkeys(folder for _, file, _ in contents for folder in image_folders(file))
    chosen = drawn.chosen(path, entries, split, problems)
    return drawn.dataset(path, "datumaro", chosen, labels, folders, problems)


def _is_datumaro(opening: str) -> bool:
    return bool(re.search(r'"categories"\s*:\s*\{', opening) and re.search(r'"(items|labels|infos|info)"', opening))


def _labels(file: Path, content: Any, problems: Problems) -> list[str]:
    """The names of the classes by their numbers; empty for one without a name."""
    rows = _get(_get(_get(content, "categories"), "label"), "labels")
    names = [n if isinstance(n := _get(row, "name"), str) else "" for row in rows] if isinstance(rows, list) else []
    if not isinstance(rows, list) or "" in names or len(set(names)) < len(names):
        problems.error(file, "categories", "there is no list of labels, or one without a name of its own; correct it")
    return names


def _entries(
    split: str | None, file: Path, items: Sequence[Any], names: Sequence[str], problems: Problems
) -> Iterator[Entry]:
    folders, tags = image_folders(file), 0
    for i, item in enumerate(items, 1):
        key, rows = _get(item, "id"), _get(item, "annotations")
        where = f"item {key if isinstance(key, str) else f'number {i}'}"
        image = next((m for m in (_get(item, "image"), _get(item, "media")) if isinstance(m, dict)), {})
        name = image.get("path") or key
        if not isinstance(name, str) or not isinstance(rows, list):
            problems.error(file, where, "has no id, or no list of annotations; export the annotations again")
            continue
        size = image.get("size")
        stated = drawn.size_of(*size) if isinstance(size, list) and len(size) == 2 else None
        tags += sum(_get(row, "type") == "label" for row in rows)
        own = ids.own(_get(_get(item, "attr"), "id"))
        shapes = partial(_shapes, file, where, rows, names)
        yield Entry(file, where, _with_suffix(name, folders), shapes, stated, own, split)
    if tags:
        problems.warn(file, "", f"{tags} labels of whole images are left out; masks and boxes are read")


def _with_suffix(name: str, folders: list[Path]) -> str:
    """The name of an image; where it is an id without a suffix, that of the file that has it."""
    if Path(name).suffix.lower() in SUFFIXES:
        return name
    forms = (name, *(name + suffix for suffix in sorted(SUFFIXES)))
    return next((form for form in forms if any(isinstance(f, Path) for f in locate([form], folders))), name)


def _shapes(
    file: Path, item: str, rows: Sequence[Any], names: Sequence[str], size: Size, problems: Problems
) -> Iterator[Shape]:
    """The annotations of an image that can be used."""
    masked = {_object(row) for row in rows if _get(row, "type") in ("polygon", "mask", "ellipse")}
    for i, row in enumerate(rows, 1):
        where = f"annotation {i}"
        kind = _get(row, "type")
        try:
            if not isinstance(row, dict) or not isinstance(kind, str):
                raise ValueError(f"is {kind_of(row)} without a type; export it again")
            if kind not in (*_AREAS, *_NO_REGIONS):
                raise ValueError(f"is a {kind}, which is not read; draw a polygon, a mask or a box")
            if kind in _AREAS and not (kind == "bbox" and _group(row) and _object(row) in masked):
                yield _shape(where, row, kind, names, size, partial(problems.warn, file, f"{item}, {where}"))
        except ValueError as error:
            problems.error(file, f"{item}, {where}", str(error))


def _group(row: Any) -> str | None:
    group = ids.whole(_get(row, "group"))
    return str(group) if group else None


def _object(row: Any) -> tuple[str | None, int | None]:
    """What the parts of an object have in common: its group and its class."""
    return _group(row), ids.whole(_get(row, "label_id"))


def _shape(where: str, row: dict[str, Any], kind: str, names: Sequence[str], size: Size, warn: Warn) -> Shape:
    """Raises ``ValueError``."""
    number = ids.whole(row.get("label_id"))
    if number is None or not 0 <= number < len(names):
        raise ValueError(f"label_id is not one of the {len(names)} classes (from 0); correct it")
    crowd = is_set(_get(row.get("attributes"), "is_crowd"))
    shape = partial(Shape, where, names[number], group=_group(row), crowd=crowd, id=ids.whole(row.get("id")))
    if kind == "mask":
        if not isinstance(row.get("rle"), dict):
            raise ValueError("the mask has no run lengths (rle); export it again")
        return shape(mask=sound_rle(row["rle"], size))
    if kind == "polygon":
        return shape(outline=to_numbers(row.get("points"), "the polygon").tolist())
    numbers = to_numbers(row.get("bbox" if kind == "bbox" else "points"), f"the {kind}").tolist()
    if len(numbers) != 4:
        raise ValueError(f"the {kind} has {len(numbers)} numbers, not four; draw it again")
    x, y, third, fourth = numbers
    if kind == "bbox":
        return shape(box=turned((x, y, x + third, y + fourth), _get(row.get("attributes"), "rotation"), warn))
    return shape(outline=drawn.ellipse((x + third) / 2, (y + fourth) / 2, (third - x) / 2, (fourth - y) / 2))


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else None
