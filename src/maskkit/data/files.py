"""Annotation files on disk: names of splits, reading json, listing folders."""

import fnmatch
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskkit.errors import DataError
from maskkit.files import read_bytes

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names of folders and files for each split, ours first."""


def load_json(file: Path) -> Any:
    """Content of a json file, whatever it is. Raises `DataError` when it cannot be read."""
    text = read_bytes(file)
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
    nested = ("images/" + split, split, split + "/images", "images", "data", "")  # "data" is FiftyOne's
    folders = [root / sub for root in roots for sub in nested]
    return [f for f in dict.fromkeys(folders) if f.is_dir()]


def walk(folder: Path, recursive: bool = True) -> Iterator[Path]:
    """All files below ``folder`` in the order of their names; everything that is not a folder counts as a file.

    Links to folders are followed, and every folder is entered once, so that a link to a folder above ends. Raises
    `DataError` when a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [_entries(folder, seen)]  # of the folders that are being walked, the innermost last
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
        elif not entry[1]:
            yield entry[0]
        elif recursive:
            waiting.append(_entries(entry[0], seen))


def _entries(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
    """What a folder holds, by name, and whether each is a folder; nothing for a folder that was ``seen``."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return iter(())
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            # a link to itself cannot be followed: os.path.isdir is False then, entry.is_dir would raise
            found = sorted((e.name, os.path.isdir(e.path) if e.is_symlink() else e.is_dir()) for e in entries)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder}: cannot be listed ({reason}); check the path and its permissions") from error
    return ((folder / name, is_folder) for name, is_folder in found)


def matching(pattern: str) -> list[Path]:
    """Files that match a glob pattern, sorted; ``**`` means any folders, each of them once.

    Hidden files and folders do not match ``*``.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(p for p in map(Path, glob.glob(pattern)) if os.path.isfile(p))
    cut = parts.index("**")
    found = set()
    for start in glob.glob(str(Path(*parts[:cut]))) if cut else ["."]:
        if os.path.isdir(start):
            found |= {
                p for p in walk(Path(start)) if _matches(p.relative_to(start).parts, parts[cut:]) and os.path.isfile(p)
            }
    return sorted(found)


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        here = not names[0].startswith(".") and _matches(names[1:], pattern)
        return here or _matches(names, pattern[1:])
    hidden = names[0].startswith(".") and not pattern[0].startswith(".")
    return not hidden and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
