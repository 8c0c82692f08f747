"""Folders of images beside index images: the grey or palette value of a pixel is its class, 255 is unknown.

Layouts: ``images/train/`` with ``masks/train/`` (the layout of ADE20K), ``train/images/`` with
``train/masks/``, ``train/`` with ``trainannot/`` (SegNet's own), and ``images/`` with ``masks/`` without splits; the
masks may also be in ``labels/`` or ``annotations/``. The classes are in ``classes.json``, or in ``classes.txt``, one
per line from value 0; without either each value that occurs is a class.
"""

from pathlib import Path
from typing import Any

import numpy as np

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, load_json
from maskkit.data.images import find_images, image_size, opened
from maskkit.data.label_map import IGNORE, LabelFile
from maskkit.data.records import Record
from maskkit.data.rules import Problems
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "Label images: images/ with masks/ (or labels/, annotations/) of index PNGs, with train/ and val/ in each"

_MASKS = ("masks", "labels", "annotations")
_NAMES = SPLITS | {"train": (*SPLITS["train"], "training")}


def find(folder: Path) -> dict[str | None, tuple[Path, Path]]:
    """Folders of images and of label images by split; None stands for a folder without splits."""
    found: dict[str | None, tuple[Path, Path]] = {}
    for split, names in _NAMES.items():
        for name in names:
            pairs = [(folder / "images" / name, folder / masks / name) for masks in _MASKS]
            pairs += [(folder / name / "images", folder / name / masks) for masks in _MASKS]
            pairs += [(folder / name, folder / f"{name}annot")]
            if pair := next(filter(_is_pair, pairs), None):
                found.setdefault(split, pair)
    whole = next(filter(_is_pair, [(folder / "images", folder / masks) for masks in _MASKS]), None)
    return found or ({None: whole} if whole else {})


def recognise(folder: Path) -> bool:
    """Whether the folder has images beside label images."""
    return bool(find(folder))


def splits(folder: Path) -> list[str]:
    """Names of the splits that the folder has."""
    return [split for split in find(folder) if split is not None]


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a ``split`` (all of them for None) with their label maps, numbered in the order of names.

    Raises `DataError` when there is no such split or the classes cannot be read.
    """
    found = find(path)
    if split is not None and split not in found:
        raise DataError(f"{path}: has no {split} split; add images/{split}/ and masks/{split}/")
    problems = Problems()
    rows: list[tuple[Path, Path]] = []
    for images, masks in found.values() if split is None else [found[split]]:
        for image in find_images(images):
            mask = masks / f"{image.stem}.png"
            if mask.is_file():
                rows.append((image, mask))
            else:
                problems.error(image, "", f"has no label image {mask}; add it, or remove the image")
    values, categories = _classes(path, [mask for _, mask in rows])
    records = []
    for number, (image, mask) in enumerate(rows, 1):
        try:
            records.append(Record(number, image, image_size(image), [], LabelFile(mask, values)))
        except DataError as error:
            problems.error(image, "", str(error))
    return Dataset(records, categories, path, "png", problems)


def _is_pair(pair: tuple[Path, Path]) -> bool:
    images, masks = pair
    return images.is_dir() and masks.is_dir() and any(masks.glob("*.png")) and bool(find_images(images))


def _classes(folder: Path, masks: list[Path]) -> tuple[dict[int, int], Categories]:
    """Class number of each value of a label image, and the classes; their ids are the values."""
    as_json, as_text = folder / "classes.json", folder / "classes.txt"
    ignored = {IGNORE}
    if as_json.is_file():
        names, void = _described(as_json)
        ignored |= void
    elif as_text.is_file():
        lines = as_text.read_text(encoding="utf-8").splitlines()
        names = dict(enumerate(line.strip() for line in lines if line.strip()))
    else:
        names = {value: str(value) for value in _values(masks)}
    names = {value: name for value, name in sorted(names.items()) if value not in ignored}
    numbers = dict.fromkeys(ignored, IGNORE) | {value: i for i, value in enumerate(names)}
    return numbers, Categories(tuple(names.values()), tuple(names))


def _described(file: Path) -> tuple[dict[int, str], set[int]]:
    """Names by value, and the values to ignore, of ``{"classes": [{"id", "name"}], "void": {"id"}}``."""
    content: Any = load_json(file)
    try:
        names = {int(c["id"]): str(c["name"]) for c in content["classes"]}
        return names, {int(content["void"]["id"])} if "void" in content else set()
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{file}: is not {{"classes": [{{"id": 0, "name": "sky"}}, ...]}} ({error!r}); correct it'
        ) from None


def _values(masks: list[Path]) -> list[int]:
    seen = np.zeros(256, bool)
    for mask in masks:
        with opened(mask) as image:
            seen[np.unique(np.asarray(image.convert("L") if image.mode == "1" else image))] = True
    return np.flatnonzero(seen).tolist()
