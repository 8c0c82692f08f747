"""Atomic writes: every output of the package is complete or absent."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty temporary file beside ``path`` to write to; it replaces ``path`` once it is complete on the disk.

    The temporary name is unique, so that several processes may write the same file: the last one wins. Permissions
    follow the umask. An exception inside removes the temporary file and leaves ``path`` as it was; a process that is
    killed leaves a hidden file, for `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes; no other process may be writing to ``folder``."""
    for file in folder.glob(".*.????????????.tmp"):
        file.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; a list on one line, anything else indented."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=None if isinstance(value, list) else 2), encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry to the disk. Windows and some network drives cannot; there it is left to the system."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
