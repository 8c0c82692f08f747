"""Cityscapes: ``leftImg8bit/train/CITY/*_leftImg8bit.png`` and, under the same names, the labels in ``gtFine``.

``*_gtFine_labelIds.png`` is the label map. A value of ``*_gtFine_instanceIds.png`` from 1000 on is an object, 1000
times its class and a number; a smaller value of a class of things is a group of objects, which is read as a crowd.
Without it the objects are those of ``*_gtFine_polygons.json``, of which later ones cover earlier ones, and classes
whose label ends with ``group`` are crowds. The classes are the 19 that are evaluated, with the values of ``labelIds``
as ids, and all other pixels are unknown; or those of a ``classes.json`` (``id``, ``name``, ``isthing``), where 0 is no
class.

Format: https://github.com/mcordts/cityscapesScripts
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from maskkit.data import cityscapes_classes as known
from maskkit.data.class_files import find_classes
from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, load_json
from maskkit.data.images import find_images, image_size
from maskkit.data.label_map import BACKGROUND, IGNORE, LabelFile, read_labels
from maskkit.data.records import Annotation, Record, number
from maskkit.data.rules import (
    WITHOUT_OBJECTS,
    Problems,
    counted,
    is_set,
    is_thing,
    kind_of,
    size_mismatch,
    sound_polygons,
    stated_size,
    to_numbers,
)
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle
from maskkit.prediction import Categories

LAYOUT = "Cityscapes: leftImg8bit/train/CITY/*_leftImg8bit.png with gtFine/train/CITY/*_gtFine_labelIds.png and others"

_IMAGE = "_leftImg8bit"
_LABELS = ("labelIds.png", "instanceIds.png", "polygons.json")


def recognise(folder: Path) -> bool:
    """Whether the folder has the two folders of Cityscapes."""
    return (folder / "gtFine").is_dir() and (folder / "leftImg8bit").is_dir()


def splits(folder: Path) -> list[str]:
    """Names of the splits that have a folder."""
    return list(_folders(folder))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a ``split`` (all of them for None), numbered in the order of names.

    Raises `DataError` when there is no such split or no label, or the classes cannot be read.
    """
    folders = _folders(path)
    if split is not None and split not in folders:
        raise DataError(f"{path}: has no {split} split; it has {', '.join(folders) or 'none'}")
    problems = Problems()
    reader = _Reader(path, *_classes(path, problems), problems)
    chosen = [folders[split]] if split is not None else list(folders.values())
    images = [image for place in chosen for image in find_images(path / "leftImg8bit" / place, recursive=True)]
    records = [r for image in images if (r := reader.record(image)) is not None]
    if not images:
        raise DataError(f"{path}: has no *{_IMAGE}.png in leftImg8bit/; put the images there, beside gtFine/")
    if reader.painted:
        problems.warn(
            path,
            "",
            f"{reader.painted} images have no labelIds.png; pixels without a polygon of a class are read as background",
        )
    if 0 < reader.maps_alone < len(records):
        problems.warn(path, "", f"{counted(reader.maps_alone, 'image')} with labelIds.png alone: {WITHOUT_OBJECTS}")
    records = [Record(i, r.path, r.size, r.annotations, r.semantic) for i, r in enumerate(records, 1)]
    return Dataset(number(records), reader.categories, path, "cityscapes", problems)


def _folders(path: Path) -> dict[str, str]:
    """Names of the folders of the splits."""
    named = ((split, name) for split, names in SPLITS.items() for name in reversed(names))
    return {split: name for split, name in named if (path / "leftImg8bit" / name).is_dir()}


def image_folders(path: Path, split: str | None) -> list[Path]:
    """The folders of the images of a split, or of all."""
    return [path / "leftImg8bit" / name for key, name in _folders(path).items() if split in (key, None)]


def _classes(path: Path, problems: Problems) -> tuple[Categories, dict[int, int]]:
    """The classes, and the class number of each value of ``labelIds``. Raises `DataError`."""
    file = path / "classes.json"
    if not file.is_file():
        numbers = {value: i for i, value in enumerate(known.EVALUATED)}
        return known.CITYSCAPES, dict.fromkeys((*range(len(known.NAMES)), IGNORE), IGNORE) | numbers
    found = find_classes(path, problems)
    rows = load_json(file)["classes"]
    assert found is not None
    stuff = {row["id"] for row in rows if not is_thing(row)}
    categories = found.categories
    things = tuple(value not in stuff for value in categories.ids)
    return Categories(categories.names, categories.ids, things), {0: BACKGROUND, IGNORE: IGNORE} | dict(found.numbers)


@dataclass
class _Reader:
    """Reads one image at a time and collects the problems."""

    root: Path
    categories: Categories
    numbers: dict[int, int]
    problems: Problems
    painted: int = 0
    """Images whose label map is made of polygons."""
    maps_alone: int = 0
    """Images of which no object is known."""

    def record(self, image: Path) -> Record | None:
        """The image with its labels, None when it cannot be used."""
        place = image.parent.relative_to(self.root / "leftImg8bit")
        stem = image.stem.removesuffix(_IMAGE)
        labels, objects, polygons = (self.root / "gtFine" / place / f"{stem}_gtFine_{end}" for end in _LABELS)
        try:
            size = image_size(image)
            if not image.stem.endswith(_IMAGE) or not any(f.is_file() for f in (labels, objects, polygons)):
                raise DataError(f"{image}: has no {stem}_gtFine_labelIds.png in gtFine/{place}; add it")
            semantic = LabelFile(labels, self.numbers) if labels.is_file() else None
            if objects.is_file():
                found = self.masked(objects, size)
            else:
                found = self.drawn(polygons, size, semantic is None) if polygons.is_file() else []
                self.maps_alone += not polygons.is_file()
        except DataError as error:
            self.problems.error(image, "", str(error))
            return None
        self.painted += semantic is None
        return Record(0, image, size, found, semantic)

    def masked(self, file: Path, size: tuple[int, int]) -> list[Annotation]:
        """The objects of an image of ids."""
        values, coloured = read_labels(file, size)
        if coloured:
            raise DataError(f"{file}: is a colour image; save the ids with 16 bits")
        unique = np.unique(values)
        windows = ndimage.find_objects(np.searchsorted(unique, values) + 1)
        found = []
        for value, window in zip(unique.tolist(), windows, strict=True):
            category = value // 1000 if value >= 1000 else value
            if category not in self.numbers:
                reason = f"its class {category} is not known; correct the pixels"
                self.problems.error(file, f"object {value}", reason)
                continue
            label = self.numbers[category]
            if label in (IGNORE, BACKGROUND) or (value < 1000 and not self.categories.things[label]):
                continue
            mask = mask_math.encode_region(values[window] == value, window[0].start, window[1].start, size)
            found.append(Annotation(0, label, None, mask, value < 1000))
        return found

    def drawn(self, file: Path, size: tuple[int, int], stuff: bool) -> list[Annotation]:
        """The visible parts of the polygons of things, and with ``stuff`` those of all classes."""
        content = load_json(file)
        rows = content.get("objects") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{file}: has no list of objects; it is not one of Cityscapes")
        if (stated := stated_size(content.get("imgHeight"), content.get("imgWidth")) or size) != size:
            raise DataError(f"{file}: {size_mismatch(stated, size)}")
        numbers = np.zeros(size, np.int64)
        kinds: dict[int, tuple[int, bool]] = {}
        for i, row in enumerate(rows, 1):
            if isinstance(row, dict) and is_set(row.get("deleted")):
                continue  # as in Cityscapes' own scripts
            try:
                name, outline = self.outline(row)
                warn = lambda text, i=i: self.problems.warn(file, f"object {i}", text)  # noqa: E731
                parts = [part.tolist() for part in sound_polygons([outline], size, warn)]
            except ValueError as error:
                self.problems.error(file, f"object {i}", str(error))
                continue
            region, top, left = mask_math.decode_region(to_rle(parts, size))
            numbers[top : top + region.shape[0], left : left + region.shape[1]][region] = i
            whole = name in self.categories.names
            single = name if whole else name.removesuffix("group")
            if single in self.categories.names:
                kinds[i] = (self.categories.names.index(single), not whole)
            elif single not in (*known.NAMES, "license plate"):
                self.problems.error(
                    file, f"object {i}", f"its class {name!r} is not known; rename it or list the class"
                )
        found = []
        for i, window in enumerate(ndimage.find_objects(numbers), 1):
            if window is None or i not in kinds:
                continue
            label, crowd = kinds[i]
            if stuff or self.categories.things[label]:
                mask = mask_math.encode_region(numbers[window] == i, window[0].start, window[1].start, size)
                found.append(Annotation(0, label, None, mask, crowd))
        return found

    def outline(self, row: object) -> tuple[str, list[float]]:
        """The label and the flat polygon of an object. Raises ``ValueError``."""
        label, points = (row.get("label"), row.get("polygon")) if isinstance(row, dict) else (None, None)
        if not isinstance(label, str) or not isinstance(points, list):
            raise ValueError(f"is {kind_of(row)} without a label or a polygon; draw it again")
        if not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise ValueError("the polygon is not a list of [x, y]; draw it again")
        return label, to_numbers([v for point in points for v in point], "the polygon").tolist()
