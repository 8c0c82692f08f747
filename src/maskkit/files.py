"""Atomic writes: every output of the package is complete or absent. Reads that never wait: only regular files."""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maskkit.errors import DataError, FileError, explain

DEMO_IMAGES = Path(__file__).parent / "demo_images"
"""The folder of the photographs in the package."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_file(path: Path, noun: str = "file") -> None:
    """Raise `DataError` unless ``path`` is a regular file: a pipe or a device could keep a reader waiting for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such {noun}; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is {_KINDS.get(stat.S_IFMT(mode), 'no file')}; put a regular file there")


def digest(path: Path, kind: str = "sha256") -> str:
    """Checksum of a file, in hexadecimal. Raises `DataError`, which names it, where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    except OSError as error:
        raise DataError(explain(error, path)) from error


def read_bytes(path: Path) -> bytes:
    """Content of a regular file. Raises `DataError` when it cannot be read, and for a pipe or a device."""
    require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty temporary file beside ``path`` to write to; it replaces ``path`` once it is complete on the disk.

    The temporary name is unique, so that several processes may write the same file: the last one wins. Permissions
    follow the umask, also if the writer replaces the temporary file by another. An exception inside
    removes the temporary file and leaves ``path`` as it was; a process that is killed leaves a hidden file, for
    `remove_leftovers`. Raises `FileError`, which names ``path``, where the system cannot write.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # errors about other files, which the caller reads inside, keep their own name
        if isinstance(error, OSError) and not isinstance(error, FileError) and _about(error, path):
            raise FileError(explain(OSError(error.errno, error.strerror or str(error)), path)) from error
        raise
    _sync_folder(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside the file ``path``, for libraries that make temporary files of their own.

    It is removed at the end, and by `remove_leftovers` where the process was killed.
    """
    folder = _temporary(path)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes; no other process may be writing to ``folder``."""
    for left in folder.glob(".*.????????????.tmp"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; a list or another sequence on one line, item by item, anything else indented."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        if isinstance(value, Iterable) and not isinstance(value, Mapping | str):
            file.write("[")
            for i, item in enumerate(value):
                file.write((", " if i else "") + json.dumps(item))
            file.write("]")
        else:
            file.write(json.dumps(value, indent=2))


def in_file_name(value: int | str, digits: int = 1) -> str:
    """An id of the user as part of a file name: a number with at least ``digits``, a text without special characters.

    Different texts may give the same part.
    """
    return f"{value:0{digits}d}" if isinstance(value, int) else re.sub(r"[^\w.-]+", "-", value)[:80]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _about(error: OSError, path: Path) -> bool:
    """Whether an error is about writing ``path``: about it, its temporary file or folder, or no file in particular."""
    if error.filename is None:
        return True
    name = os.fsdecode(error.filename)
    ours = Path(name).parent == path.parent and Path(name).name.startswith(f".{path.name}.")
    return ours or name == str(path) or str(path).startswith(name + os.sep)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry to the disk. Windows and some network drives cannot; there it is left to the system."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
