"""One process, or one group of processes, per folder of a run."""

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskkit.errors import FileError, MaskkitError, explain
from maskkit.processes import lives, start_of

NAME = "run.lock"
"""Its content is the owner: process, host, and the start time of the process."""

_PAUSE = 0.01
"""Seconds until another look at an abandoned lock that another process removes."""
_BEING_WRITTEN = 10.0
"""Age in seconds from which on an unreadable lock belongs to a process that was killed while it wrote it."""


class Lock:
    """The exclusive right to write to the folder of a run, from `take` to `free`.

    The owner is a process on a host. If that process has ended, its lock is replaced. The lock of another host has to
    be removed by the user, because this host cannot know whether its owner is still running.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._text: str | None = None
        self._made = False

    def check(self) -> None:
        """Raise `MaskkitError` if another process holds the lock."""
        if (text := _read(self.path)) is not None and not _is_abandoned(self.path, text):
            raise self._refusal(text)

    def take(self) -> None:
        """Lock the folder, which is created if needed. Raises `MaskkitError` if another process holds the lock."""
        own = json.dumps(_me() | {"lock": secrets.token_hex(6)})
        try:
            self._made = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not _create(self.path, own):
                if (text := _read(self.path)) is not None:
                    self._remove(text)
        except FileError:
            raise
        except OSError as error:
            raise FileError(explain(error, self.path)) from None
        self._text = own

    def free(self) -> None:
        """Release the lock; a folder that `take` created and that is empty is removed."""
        with suppress(OSError):
            if self._text is not None and _read(self.path) == self._text:
                self.path.unlink()
                if self._made:
                    self.path.parent.rmdir()
        self._text = None

    def _remove(self, text: str) -> None:
        """Remove a lock whose owner has ended, unless another process is about to. Raises `MaskkitError` if it is still
        running."""
        if not _is_abandoned(self.path, text):
            raise self._refusal(text)
        claim = self.path.with_name(f".{NAME}.claim")  # else a slow process could remove the lock that replaced it
        if not _create(claim, json.dumps(_me())):
            if (other := _read(claim)) is not None and (
                _is_abandoned(claim, other) or (_age(claim) or 0) > _BEING_WRITTEN
            ):
                claim.unlink(missing_ok=True)  # an old one is of another host, since a claim is held for an instant
            time.sleep(_PAUSE)
            return
        try:
            if _read(self.path) == text:  # nobody without the claim removes it from now on
                self.path.unlink(missing_ok=True)
        finally:
            claim.unlink(missing_ok=True)

    def _refusal(self, text: str) -> MaskkitError:
        folder, owner = self.path.parent, _parse(text)
        if owner is None:
            return MaskkitError(f"{folder}: another process is beginning a run here; choose another folder with --out")
        return MaskkitError(
            f"{folder}: process {owner['pid']} on {owner['host']} writes a run here; choose another folder with --out, "
            f"or remove {self.path} if that process has ended"
        )


def _is_abandoned(path: Path, text: str) -> bool:
    """Whether the owner of the lock at ``path``, whose content is ``text``, has ended."""
    owner = _parse(text)
    if owner is None:
        return (age := _age(path)) is None or age > _BEING_WRITTEN
    return _place(owner) == _place(_me()) and not lives(owner["pid"], owner.get("began"))


def _age(path: Path) -> float | None:
    """Seconds since a file was written; None if it is gone."""
    with suppress(OSError):
        return time.time() - path.stat().st_mtime
    return None


def _me() -> dict[str, Any]:
    try:
        space = os.readlink("/proc/self/ns/pid")  # containers may share a host name, but have their own process ids
    except (OSError, AttributeError):
        space = None
    return {"pid": os.getpid(), "host": socket.gethostname(), "space": space, "began": start_of(os.getpid())}


def _place(owner: dict[str, Any]) -> tuple[Any, Any]:
    """The scope in which process ids are unique."""
    return owner["host"], owner.get("space")


def _parse(text: str) -> dict[str, Any] | None:
    """The owner in a lock, or None if it cannot be read."""
    try:
        owner = json.loads(text)
        return owner if isinstance(owner["pid"], int) and isinstance(owner["host"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> str | None:
    """The content of a lock, or None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None


def _create(path: Path, text: str) -> bool:
    """Create a lock atomically, with its content; False if there is one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
