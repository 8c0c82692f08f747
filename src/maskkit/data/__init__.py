"""Data sets: open one in whatever format it is, check it, convert it.

The format is found by looking; `open_dataset` reads, `open_splits` gives a training and a validation part.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from maskkit.errors import DataError

if TYPE_CHECKING:
    from maskkit.data.dataset import Dataset

FORMATS = ("coco", "yolo", "voc", "labelme", "png", "tags")
"""In the order in which they are looked for. Each is a module of `maskkit.data.formats` with ``recognise``, ``splits``
and ``read``."""


def open_dataset(path: str | Path, split: str | None = None) -> Dataset:
    """The data set at ``path``: an annotation file or a folder, in any of the formats.

    ``split`` chooses ``train``, ``val`` or ``test`` of a folder that has splits; None, or a data set without splits,
    reads everything. Raises `DataError` when nothing is recognised, the split is not among those of the folder, or the
    annotation file as a whole cannot be read. Bad records do not raise: they are left out and listed in ``problems``.
    """
    reader = _reader(Path(path))
    return reader.read(Path(path), split if reader.splits(Path(path)) else None)


def find_splits(path: str | Path) -> list[str]:
    """The splits (``train``, ``val``, ``test``) that a data set brings along; none for a single file."""
    return _reader(Path(path)).splits(Path(path))


def open_splits(
    train: str | Path, val: str | Path | None = None, val_split: float = 0.2, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """Training and validation data with the same classes, those of the training data.

    Without ``val`` the validation part is looked for in ``train``; when there is none, the share ``val_split`` of the
    images is set aside, always the same ones for the same ``seed``. Raises `DataError`.
    """
    training = open_dataset(train, "train")
    if val is not None or "val" in find_splits(train):
        validation = open_dataset(val or train, "val")
    elif len(training) < 2:
        raise DataError(f"{train}: has {len(training)} usable images; training and validation need one each")
    elif not 0 < val_split < 1:
        raise DataError(f"the share of images kept for validation lies between 0 and 1, got {val_split}")
    else:
        return training.split(val_split, seed)
    return training, validation.with_categories(training.categories)


def _reader(path: Path) -> ModuleType:
    """The module that reads ``path``."""
    modules = {name: f"maskkit.data.formats.{name}" for name in FORMATS}
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; check the path")
    if path.is_file():
        by_ending = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".csv": "tags"}
        if path.suffix.lower() not in by_ending:
            kinds = "neither a COCO .json nor a YOLO .yaml nor a .csv of tags"
            raise DataError(f"{path}: is {kinds}; give one of them, or a folder")
        return import_module(modules[by_ending[path.suffix.lower()]])
    readers = [import_module(name) for name in modules.values()]
    for reader in readers:
        if reader.recognise(path):
            return reader
    looked_for = "\n".join(f"  {reader.LAYOUT}" for reader in readers)
    raise DataError(f"{path}: no data set is recognised in this folder. Looked for\n{looked_for}")
