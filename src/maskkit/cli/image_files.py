"""The image files that the sources of a command name, and what is said of those that fail."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
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
        elif path.exists() or not glob.has_magic(source):
            found = [path]  # a missing file fails when it is read
        else:
            found = matching(source)
        if not found:
            failures.append(Failure(source, DataError(f"{source}: contains no image; check the path")))
        paths += found
    return paths


def complain_of(failures: Sequence[Failure]) -> None:
    """Name the sources that failed, and count them."""
    for failure in failures[:_NAMED]:
        complain(failure.error)
    if failures:
        more = f"; the first {_NAMED} are named" if len(failures) > _NAMED else ""
        complain(f"{len(failures)} sources failed{more}")
