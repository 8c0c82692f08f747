"""Files that many machines read and write: in a shared folder, or at an address that fsspec opens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from maskkit.checkpoints.listing import one_line
from maskkit.errors import DataError, FileError, MaskkitError, explain
from maskkit.files import read_bytes, remove_leftovers, replacing, require_file


def is_address(name: str) -> bool:
    """Whether a name is an address (``s3://bucket/photos``, ``zip://*.jpg::photos.zip``) and not a path."""
    return "://" in name


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises `MaskkitError` if no package opens it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # a package that is not installed; an unknown protocol
        raise MaskkitError(f"{address}: cannot be opened ({one_line(error)})") from None
    except Exception as error:  # a chained address (zip://*::photos.zip) is opened here already
        raise _explained(error, address) from None


def fetch(address: str) -> bytes:
    """The content of a file at an address. Raises `DataError` if it is missing, `FileError` if the storage fails."""
    system, path = file_system(address)
    try:
        return system.cat_file(path)
    except Exception as error:  # each file system has its own errors
        raise _explained(error, address) from None


@contextmanager
def opened(address: str) -> Iterator[BinaryIO]:
    """A file, local or at an address, open for reading. Raises as `fetch` does."""
    try:
        if is_address(address):
            system, path = file_system(address)
            with system.open(path, "rb") as file:
                yield file
        else:
            require_file(Path(address))
            with open(address, "rb") as file:
                yield file
    except (MaskkitError, OSError) as error:
        raise _explained(error, address) from None


class Storage:
    """A folder, local or at an address, to write to. Every file is either complete or absent."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if is_address(address) else os.path.abspath(address)
        self._remote = is_address(address)

    def at(self, name: str) -> str:
        """The address of a file."""
        return f"{self.address}/{name}"

    def names(self, folder: str) -> set[str]:
        """The names of the files in ``folder``; none if it does not exist."""
        if not self._remote:
            place = Path(self.at(folder))
            return {entry.name for entry in place.iterdir()} if place.is_dir() else set()
        system, path = file_system(self.at(folder))
        try:
            system.invalidate_cache()
            return {name.rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise _explained(error, self.at(folder)) from None

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `DataError` for a missing file, `FileError` where the storage fails."""
        return fetch(self.at(name)) if self._remote else read_bytes(Path(self.at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace the one with its name. Raises `FileError` where that is impossible."""
        if not self._remote:
            with replacing(Path(self.at(name))) as temporary:
                temporary.write_bytes(content)
            return
        system, path = file_system(self.at(name))
        try:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.pipe_file(path, content)  # an object appears once it is complete
        except Exception as error:
            raise FileError(f"{self.at(name)}: cannot be written ({one_line(error)}); check the address") from None

    def remove(self, name: str) -> None:
        """Remove a file if it exists; errors are ignored."""
        with suppress(Exception):
            if self._remote:
                system, path = file_system(self.at(name))
                system.rm_file(path)
            else:
                Path(self.at(name)).unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        """Remove what killed processes left in ``folder``; no process may be writing to it."""
        if not self._remote:
            remove_leftovers(Path(self.at(folder)))


def _explained(error: Exception, address: str) -> MaskkitError:
    """`DataError` for an error of this file (missing, not readable, damaged); `FileError` for one of the storage (a
    network, a mount), which would affect every file."""
    if isinstance(error, MaskkitError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{address}: there is no such file; check the address")
    if isinstance(error, OSError) and not isinstance(error, PermissionError):
        return FileError(explain(error, address) if error.errno else f"{address}: cannot be read ({one_line(error)})")
    return DataError(f"{address}: cannot be read ({one_line(error)}); check the address and its permissions")
