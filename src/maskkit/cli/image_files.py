"""The image files that the sources of a command name, and the messages about those that fail."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from maskkit.errors import DataError
from maskkit.terminal import complain

if TYPE_CHECKING:
    from maskkit.infer.predict import Failure


_NAMED = 20
"""Largest number of failed sources that are named."""


def image_files(sources: Iterable[str], failures: list[Failure]) -> list[Path]:
    """The image files of ``sources`` (images, folders, patterns); sources without any are added to ``failures``."""
    from maskkit.data.files import matching
    from maskkit.data.images import list_images
    from maskkit.infer.predict import Failure

    paths: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = (listed := list_images(path)).images
            if note := listed.note():
                complain(f"{path}: {note}")
            if inside := _folders_with_images(path):
                complain(f"{path}: the images in {', '.join(inside)} are left out; give {path / '**' / '*'} for all")
        elif path.exists() or not glob.has_magic(source):
            found = [path]  # a missing file fails when it is read
        else:
            found = matching(source)
        if not found:
            failures.append(Failure(source, DataError(f"{source}: contains no image; check the path")))
        paths += found
    return paths


def _folders_with_images(folder: Path) -> list[str]:
    """Folders in ``folder``, not hidden, that have a file with the suffix of an image; three at most."""
    from maskkit.data.images import SUFFIXES

    def has_image(entry: os.DirEntry[str]) -> bool:
        try:
            with os.scandir(entry) as files:
                return any(os.path.splitext(file.name)[1].lower() in SUFFIXES for file in files)
        except OSError:
            return False

    with os.scandir(folder) as entries:
        inside = [e for e in sorted(entries, key=lambda e: e.name) if e.is_dir() and not e.name.startswith(".")]
    return [entry.name for entry in islice(filter(has_image, inside), 3)]


def complain_of(failures: Sequence[Failure]) -> None:
    """Name the sources that failed, and count them."""
    for failure in failures[:_NAMED]:
        complain(failure.error)
    if failures:
        more = f"; the first {_NAMED} are named" if len(failures) > _NAMED else ""
        complain(f"{len(failures)} sources failed{more}")
