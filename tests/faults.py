"""Disks that fail: inside `failing`, one read, write or rename below a folder goes wrong, as a kernel has it.

`recorded` tells which operations a piece of work does, `failing` lets one of them fail. Both see what goes through
``open``, ``os.replace``, ``os.rename``, ``os.mkdir``, ``os.fsync`` and the writer of safetensors, which is no python.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError

Kind = Literal["read", "write", "rename", "folder", "sync"]
FAULTS: dict[Kind, tuple[int, ...]] = {
    "read": (errno.EIO, 0),
    "write": (errno.ENOSPC, errno.EIO),
    "rename": (errno.EIO,),
    "folder": (errno.ENOSPC,),
    "sync": (errno.EIO,),
}
"""Error numbers of each kind of operation; 0 is a file that ends half way, without an error."""


@dataclass(frozen=True)
class Operation:
    """Something that a program asks of the file system."""

    kind: Kind
    path: Path


class _Broken(io.RawIOBase):
    """A file that opens and cannot be read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class _Full:
    """A file on which half of the first piece finds room; the error names no file, as that of a kernel does not."""

    def __init__(self, file: Any, number: int) -> None:
        self._file, self._number = file, number

    def write(self, content: Any) -> int:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        raise OSError(self._number, os.strerror(self._number))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def fileno(self) -> int:
        raise io.UnsupportedOperation("every byte goes through write")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Full":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


Decide = Callable[[Operation], int | None]
"""The error number with which an operation fails, None where it succeeds."""


@contextmanager
def _watched(root: Path, decide: Decide) -> Iterator[None]:
    real_open, real = io.open, {name: getattr(os, name) for name in ("replace", "rename", "mkdir", "fsync")}
    real_serialize = safetensors.torch.serialize_file

    def below(path: Any) -> Path | None:
        if isinstance(path, int):
            return None
        path = Path(os.path.abspath(os.fsdecode(path)))
        return path if path.is_relative_to(root) else None

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        path = below(file)
        if path is None or path.is_dir():
            return real_open(file, mode, *args, **options)
        writes = bool(set(mode) & set("wax+"))
        if mode == "rb+":  # opened to flush it, not to write
            return real_open(file, mode, *args, **options)
        number = decide(Operation("write" if writes else "read", path))
        if number == 0 and path.suffix == ".safetensors":
            number = None  # the tensors are read past python, so half a header is no sign of half a file
        if number is None or (not writes and not path.exists()):
            return real_open(file, mode, *args, **options)
        if writes:
            return _Full(real_open(file, mode, *args, **options), number)
        raw: Any = io.BufferedReader(_Broken()) if number else io.BytesIO(_half(path, real_open))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding=options.get("encoding") or "utf-8")

    def moved(name: str) -> Callable[..., None]:
        def move(source: Any, target: Any, **options: Any) -> None:
            path = below(target)
            number = decide(Operation("rename", path)) if path else None
            if number:
                raise OSError(number, os.strerror(number), os.fspath(source), None, os.fspath(target))
            real[name](source, target, **options)

        return move

    def mkdir(path: Any, mode: int = 0o777, **options: Any) -> None:
        place = below(path)
        number = decide(Operation("folder", place)) if place and not place.exists() and place.parent.exists() else None
        if number:
            raise OSError(number, os.strerror(number), os.fspath(path))
        real["mkdir"](path, mode, **options)

    def fsync(handle: int) -> None:
        path = below(os.readlink(f"/proc/self/fd/{handle}"))
        number = decide(Operation("sync", path)) if path and path.is_file() else None
        if number:
            raise OSError(number, os.strerror(number))
        real["fsync"](handle)

    def serialize(tensors: Any, filename: Any, *args: Any, **options: Any) -> None:
        path = below(filename)
        number = decide(Operation("write", path)) if path else None
        if number:
            Path(filename).write_bytes(b"\x10\0\0\0\0\0\0\0half")
            raise SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
        real_serialize(tensors, filename, *args, **options)

    builtins.open = io.open = opened
    os.replace, os.rename, os.mkdir, os.fsync = moved("replace"), moved("rename"), mkdir, fsync
    safetensors.torch.serialize_file = serialize
    try:
        yield
    finally:
        builtins.open = io.open = real_open
        os.replace, os.rename, os.mkdir, os.fsync = (real[n] for n in ("replace", "rename", "mkdir", "fsync"))
        safetensors.torch.serialize_file = real_serialize


def _half(path: Path, opener: Callable[..., Any]) -> bytes:
    with opener(path, "rb") as file:
        content = file.read()
    return content[: len(content) // 2]


@contextmanager
def recorded(root: Path) -> Iterator[list[Operation]]:
    """All operations below ``root``, in their order."""
    done: list[Operation] = []

    def decide(operation: Operation) -> None:
        done.append(operation)

    with _watched(root, decide):
        yield done


@contextmanager
def failing(root: Path, place: int, number: int) -> Iterator[list[Operation]]:
    """The operation ``place`` below ``root``, counted from 0, fails with ``number``; it is the one in the list."""
    count = 0
    failed: list[Operation] = []

    def decide(operation: Operation) -> int | None:
        nonlocal count
        count += 1
        if count - 1 != place or number not in FAULTS[operation.kind]:
            return None
        failed.append(operation)
        return number

    with _watched(root, decide):
        yield failed
