"""Annotation files on disk: names of splits, reading json, finding the images of a file."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from maskkit.errors import DataError

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names of folders and files for each split, ours first."""


def load_json(file: Path) -> Any:
    """Content of a json file, whatever it is. Raises `DataError` when it cannot be read."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    if not text.strip():
        raise DataError(f"{file}: the file is empty; export the annotations again")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not json ({error}); export the annotations again") from error


def image_folders(file: Path) -> list[Path]:
    """Folders that may hold the images of an annotation file, the most likely first."""
    split = file.stem.removeprefix("instances_")
    roots = [file.parent.parent, file.parent] if file.parent.name == "annotations" else [file.parent]
    nested = ("images/" + split, split, split + "/images", "images", "")
    folders = [root / sub for root in roots for sub in nested]
    return [f for f in dict.fromkeys(folders) if f.is_dir()]


def finder(folders: Iterable[Path]) -> Callable[[str], Path | None]:
    """A function that finds a ``file_name`` in ``folders``, also one that names folders of another machine."""
    places = list(folders)

    def locate(name: str) -> Path | None:
        slashed = name.replace("\\", "/")
        for candidate in dict.fromkeys((slashed, slashed.rsplit("/", 1)[-1])):
            for i, folder in enumerate(places):
                if candidate and os.path.isfile(folder / candidate):  # False, not an error, for an impossible name
                    places.insert(0, places.pop(i))  # the next image is most likely there too
                    return folder / candidate
        return None

    return locate
