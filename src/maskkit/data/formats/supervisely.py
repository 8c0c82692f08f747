"""Supervisely: a project with ``meta.json``, and for each dataset images in ``img/`` and a json for each in ``ann/``.

Polygons with holes and bitmaps are masks, a rectangle is an object without a known mask. The tag ``crowd`` of an object
marks a crowd, the tag ``image_id`` of an image is its id. Datasets called ``train``, ``val`` and ``test`` are splits.

Format: https://docs.supervisely.com/customization-and-integration/00_ann_format_navi
"""

import base64
import io
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import load_json
from maskkit.data.formats import drawn
from maskkit.data.formats.drawn import Entry, Shape, Size
from maskkit.data.images import find_images
from maskkit.data.rules import Problems, Warn, counted, kind_of, sound_polygons, to_numbers
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle
from maskkit.geometry.rle import Rle
from maskkit.prediction import ImageId

LAYOUT = "Supervisely: meta.json, and train/img/ with train/ann/*.json (a folder for each dataset of the project)"

_LARGEST = 1 << 26
"""Bytes of the PNG of a bitmap."""


def parts(path: Path) -> list[tuple[str | None, Path]]:
    """The folders of the datasets, also of those in others, with their splits."""
    inside = (ann for ann in sorted(path.rglob("ann")) if ann.is_dir() and ann.parent != path)
    return [(drawn.split_of(ann.parent.name), ann.parent) for ann in inside]


def recognise(path: Path) -> bool:
    """Whether the folder is a project."""
    return (path / "meta.json").is_file() and bool(parts(path))


def splits(path: Path) -> list[str]:
    """Names of the datasets that are splits."""
    return drawn.in_order(split for split, _ in parts(path))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a project, or of its dataset ``split``, with the classes of ``meta.json``.

    Raises `DataError` when ``meta.json`` cannot be read or has no list of classes.
    """
    problems = Problems()
    classes = _get(load_json(path / "meta.json"), "classes")
    if not isinstance(classes, list):
        raise DataError(f"{path / 'meta.json'}: has no list of classes; export the project again")
    labels = dict.fromkeys(n for row in classes if isinstance(n := _get(row, "title"), str) and n)
    entries = [entry for part, folder in parts(path) for entry in _entries(path, part, folder, problems)]
    chosen = drawn.chosen(path, entries, split, problems)
    return drawn.dataset(path, "supervisely", chosen, labels, [path], problems)


def _entries(path: Path, split: str | None, folder: Path, problems: Problems) -> Iterator[Entry]:
    described, tags = set(), 0
    for file in sorted((folder / "ann").glob("*.json")):
        name = file.name.removesuffix(".json")
        described.add(name)
        try:
            content = load_json(file)
            objects = _get(content, "objects")
            if not isinstance(objects, list):
                raise DataError(f"{file}: has no list of objects; export the project again")
        except DataError as error:
            problems.error(file, "", str(error))
            continue
        size = drawn.size_of(_get(_get(content, "size"), "height"), _get(_get(content, "size"), "width"))
        tags += sum(_get(tag, "name") != "image_id" for tag in _list(_get(content, "tags")))
        shapes = partial(_shapes, file, objects)
        yield Entry(
            file, "", f"{folder.relative_to(path).as_posix()}/img/{name}", shapes, size, _own_id(content), split
        )
    if tags:
        problems.warn(folder, "", f"{counted(tags, 'tag')} of whole images left out; masks and boxes are read")
    images = find_images(folder / "img") if (folder / "img").is_dir() else []
    if bare := sum(image.name not in described for image in images):
        problems.warn(folder, "", f"{bare} images have no json; they are left out, because they may be unlabelled")


def _own_id(content: Any) -> ImageId | None:
    """The id in the tags of an image."""
    values = (_get(tag, "value") for tag in _list(_get(content, "tags")) if _get(tag, "name") == "image_id")
    value = next(values, None)
    number = ids.whole(value)
    return ids.own(value) if number is None else number


def _shapes(file: Path, objects: Sequence[Any], size: Size, problems: Problems) -> Iterator[Shape]:
    """The objects of an image that can be used."""
    for i, row in enumerate(objects, 1):
        where = f"object {i}"
        try:
            yield _shape(where, row, size, partial(problems.warn, file, where))
        except ValueError as error:
            problems.error(file, where, str(error))


def _shape(where: str, row: Any, size: Size, warn: Warn) -> Shape:
    """Raises ``ValueError``."""
    kind, label = _get(row, "geometryType"), _get(row, "classTitle")
    if not isinstance(label, str):
        raise ValueError(f"is {kind_of(row)} without a class (classTitle); name it")
    crowd = any(_get(tag, "name") == "crowd" for tag in _list(_get(row, "tags")))
    shape = partial(Shape, where, label, crowd=crowd, id=ids.whole(_get(row, "id")))
    if kind == "bitmap":
        return shape(mask=_bitmap(_get(row, "bitmap"), size, warn))
    if kind not in ("polygon", "rectangle"):
        raise ValueError(f"is a {kind}, which is not read; draw a polygon, a bitmap or a rectangle")
    outline = _flat(_get(_get(row, "points"), "exterior"))
    if kind == "rectangle":
        if len(outline) != 4:
            raise ValueError("a rectangle has two corners; draw it again")
        (x1, x2), (y1, y2) = sorted(outline[::2]), sorted(outline[1::2])
        return shape(box=(x1, y1, x2, y2))
    holes = _list(_get(_get(row, "points"), "interior"))
    if not holes:
        return shape(outline=outline)
    whole = mask_math.decode([_filled([outline], size, warn)], size)[0]
    whole &= ~mask_math.decode([_filled([_flat(hole) for hole in holes], size, warn)], size)[0]
    return shape(mask=mask_math.encode(whole[None])[0])


def _filled(outlines: list[list[float]], size: Size, warn: Warn) -> Rle:
    return to_rle([part.tolist() for part in sound_polygons(outlines, size, warn)], size)


def _flat(rows: Any) -> list[float]:
    """Flat coordinates of a list of points. Raises ``ValueError``."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise ValueError("points is not a list of [x, y]; draw the object again")
    return to_numbers([value for row in rows for value in row], "a point").tolist()


def _bitmap(bitmap: Any, size: Size, warn: Warn) -> Rle:
    """A PNG, packed by zlib and base64, whose upper left pixel is at ``origin``. Raises ``ValueError``."""
    origin = to_numbers(_get(bitmap, "origin"), "the origin of the bitmap").tolist()
    if len(origin) != 2:
        raise ValueError("the origin of the bitmap is not [x, y]; draw it again")
    left, top = (drawn.whole_number(value, "the origin of the bitmap") for value in origin)
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(_get(bitmap, "data") or "", validate=True), _LARGEST)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width > size[1] + 1 or image.height > size[0] + 1:
                raise ValueError("is larger than the image")
            region = _opaque(image)
    except Exception:  # decoders raise many kinds on bad bytes
        raise ValueError(
            "the bitmap is not a PNG in zlib and base64, of the size of the image or smaller; draw it again"
        ) from None
    return drawn.placed(region, left, top, size, warn)


def _opaque(image: Image.Image) -> Bool[np.ndarray, "h w"]:
    """The pixels that are not transparent, or not 0 where nothing is transparent."""
    if "A" in image.mode or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))[..., 3] > 0
    return np.asarray(image if image.mode == "P" else image.convert("L")) > 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else None
