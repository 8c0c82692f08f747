"""YOLO labels without a yaml file: what LabelImg, CVAT's YOLO 1.1, Darknet and old Roboflow exports write.

Layouts: ``images/`` and ``labels/``, each with ``train/`` and ``val/`` or without; ``train/images/`` and
``train/labels/``; texts beside the images, in the folder itself, in ``train/`` and ``val/``, or in CVAT's
``obj_train_data/``. Names of classes are the lines of ``classes.txt``, ``obj.names`` or ``_darknet.labels``, in the
folder or beside the labels. Without such a file the classes are called by their numbers, and that is said.
"""

from collections.abc import Collection, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS
from maskkit.data.formats import yolo
from maskkit.data.images import find_images
from maskkit.data.rules import Problems, to_numbers
from maskkit.data.text_files import read_lines, read_names
from maskkit.errors import DataError

LAYOUT = "YOLO without data.yaml: images/ and labels/, or a .txt beside each image, and classes.txt or obj.names"

_NAMES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_LOOKED_AT = 20
"""So many texts of a folder are looked at, where none of them is a label."""
_FRACTION = 2  # as large as a coordinate of an object over the border may be
_MOST = 10_000
"""Largest number of classes that are named by their numbers."""


def recognise(folder: Path) -> bool:
    """Whether the folder has images with YOLO's texts."""
    return bool(find(folder))


def splits(folder: Path) -> list[str]:
    """Names of the splits that the folder has."""
    return [split for split in find(folder) if split is not None]


def find(folder: Path) -> dict[str | None, Path]:
    """The folders of images by split; None means all images.

    Where one split has labels, the texts of another are labels too, whatever is wrong with them.
    """
    forms = ("images/{}", "{}/images", "{}", "obj_{}_data", "obj_{}_data/images")
    places = {split: [folder / form.format(n) for n in names for form in forms] for split, names in SPLITS.items()}
    if not any(map(_has_labels, chain.from_iterable(places.values()))):
        whole = next(filter(_has_labels, (folder / "images", folder)), None)
        return {None: whole} if whole is not None else {}
    found = {
        split: next(filter(_has_labels, there), None) or next(filter(_has_texts, there), None)
        for split, there in places.items()
    }
    return {split: place for split, place in found.items() if place is not None}


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a folder, or of its ``split``, numbered from 1 in the order of their paths; class ids are from 0.

    Raises `DataError` when there is no such split.
    """
    found = find(path)
    if split is not None and split not in found:
        raise DataError(f"{path}: has no {split} split; it has {', '.join(splits(path)) or 'none'}")
    problems = Problems()
    file = _names_file(path, found.values())
    if file is not None:
        names = tuple(read_names(file, partial(problems.warn, file, "")))
    else:
        names = tuple(map(str, range(_classes(found.values()))))
        problems.warn(
            path,
            "",
            "no classes.txt names the classes; they are called by their numbers: list the names in it, one per line",
        )
    parts = {name or "": [place] for name, place in found.items()}
    return yolo.dataset(path, names, parts, split, problems)


def _names_file(folder: Path, places: Collection[Path]) -> Path | None:
    """The file with the names of the classes: in the folder, or beside the labels."""
    beside = [p for place in places for p in (place, yolo.label_folder(place))]
    candidates = (p / name for p in (folder, folder / "labels", *beside) for name in _NAMES)
    return next((file for file in candidates if file.is_file()), None)


def _texts(images: Path) -> Iterator[Path]:
    """The texts of labels for the images of a folder."""
    for place in dict.fromkeys((images, yolo.label_folder(images))):
        if place.is_dir():
            yield from (text for text in sorted(place.glob("*.txt")) if text.name not in _NAMES)


def _has_labels(images: Path) -> bool:
    """Whether a folder has images, of which some have a text that looks like YOLO's."""
    return images.is_dir() and any(map(_looks, islice(_texts(images), _LOOKED_AT))) and bool(find_images(images))


def _has_texts(images: Path) -> bool:
    """Whether a folder has images and, beside them or in its folder of labels, texts."""
    return images.is_dir() and any(_texts(images)) and bool(find_images(images))


def _looks(text: Path) -> bool:
    """Whether the first line of a text is a class number and fractions of an image."""
    try:
        first = next(iter(read_lines(text, lambda _: None, 1 << 16)), "").split()
        values = to_numbers(first, "")
    except (DataError, ValueError):
        return False
    return len(values) >= 5 and values[0].is_integer() and bool((np.abs(values[1:]) <= _FRACTION).all())


def _classes(places: Collection[Path]) -> int:
    """One more than the largest class number in all labels."""
    largest = 0
    for place in places:
        for text in _texts(place):
            try:
                lines = read_lines(text, lambda _: None)
            except DataError:
                continue  # reported when its image is read
            numbers = (word for line in lines for word in line.split()[:1] if word.isascii() and word.isdigit())
            largest = max([largest, *(int(n) for n in numbers if len(n) < 6)])
    return min(largest, _MOST) + 1
