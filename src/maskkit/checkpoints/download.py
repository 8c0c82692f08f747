"""Downloads that go on where they were broken off, and are verified before anybody sees them. No torch."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

import maskkit
from maskkit.errors import DataError, FileError, explain
from maskkit.terminal import Console

TIMEOUT = 30
"""Seconds without a byte after which a server counts as unreachable."""

_CHUNK = 1 << 20
_TRIES = 4
"""How often a broken connection is taken up again, as long as each try brings something."""


class Unreachable(DataError):
    """A download for which there was no network, or not long enough."""


@dataclass(frozen=True)
class Published:
    """A file as its publisher announces it. What is not announced is empty or None."""

    url: str
    sha256: str = ""
    """In hexadecimal, or its first digits."""
    md5: str = ""
    """In hexadecimal, or its first digits."""
    bytes: int | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return Path(urlsplit(self.url).path).name

    def mismatch(self, path: Path) -> str | None:
        """What is wrong with the file ``path``, or None."""
        size = path.stat().st_size
        if self.bytes is not None and size != self.bytes:
            return f"has {size} bytes and not {self.bytes}"
        for kind, wanted in (("sha256", self.sha256), ("md5", self.md5)):
            if wanted:
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, kind).hexdigest()
                if not found.startswith(wanted):
                    return f"has the {kind} {found[: max(len(wanted), 12)]}... and not {wanted}"
        return None


def download(published: Published, to: Path) -> None:
    """Fetch a file to ``to``, which is complete and verified or absent.

    What a broken connection has left is kept in a hidden file beside it, and the next call goes on from there. On a
    terminal a bar shows the progress. Raises `Unreachable` without a network, `DataError` for what the server refuses
    and for another content than was published, `FileError` where the disk is full or not writable: each in one line.
    """
    if urlsplit(published.url).scheme not in ("https", "http"):
        raise DataError(f"{published.url}: not an address of the web")
    part = to.with_name(f".{to.name}.part")
    with locked(to.with_name(f".{to.name}.lock")):
        if to.is_file():
            return
        try:
            _fetch(published, part)
            _verify(published, part)
            os.replace(part, to)
            _etag_file(part).unlink(missing_ok=True)
        except FileError:
            raise
        except OSError as error:
            raise FileError(explain(error, to)) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same ``path``. Raises `FileError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    except OSError as error:
        raise FileError(explain(error, path)) from error
    try:
        yield
    finally:
        lock.release()


def _verify(published: Published, part: Path) -> None:
    wrong = published.mismatch(part)
    if wrong is not None:
        _forget(part)
        raise DataError(
            f"{published.url}: the download {wrong}, as its publisher gives it; it was deleted: try again, and if it "
            "happens again, the file there is another one"
        )


def _fetch(published: Published, part: Path) -> None:
    """Write the whole file to ``part``, from where it ends."""
    for attempt in range(1, _TRIES + 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(published, part):
                return
            reason = "the connection ended too early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # there is nothing after what we have, or it is another file
                if published.mismatch(part) is None and (published.sha256 or published.bytes):
                    return
                _forget(part)
                continue
            raise DataError(
                f"{published.url}: the server answers {error.code} {error.reason}; look at its publisher's page for "
                "the new address, download it by hand and use maskkit import"
            ) from None
        except FileError:
            raise
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (http.client.HTTPException, OSError) as error:
            reason = str(error) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        if after <= before or attempt == _TRIES:
            kept = f"; {after / 1e6:.1f} MB are kept, the next try goes on from there" if after else ""
            raise Unreachable(f"{published.url}: cannot be reached ({reason}){kept}")


def _receive(published: Published, part: Path) -> bool:
    """One connection; whether the file is complete afterwards."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"maskkit/{maskkit.__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        with suppress(OSError):
            headers["If-Range"] = _etag_file(part).read_text(encoding="ascii")
    request = urllib.request.Request(published.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        left = response.headers.get("Content-Length")
        total = have + int(left) if left is not None and left.isdigit() else published.bytes
        with _opened(part, "ab" if goes_on else "wb") as file, _bar() as bar:
            etag = response.headers.get("ETag", "")
            if etag.startswith('"') and etag.isascii():  # weak ones do not say that bytes are the same
                with suppress(OSError):
                    _etag_file(part).write_text(etag, encoding="ascii")
            task = bar.add_task(published.name, total=total, completed=have)
            while chunk := response.read(_CHUNK):
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    with suppress(OSError):
                        file.close()
                    _forget(part)  # a full disk needs the room
                    raise FileError(explain(error, part)) from error
                have += len(chunk)
                bar.update(task, completed=have)
    return total is None or have >= total


def _opened(part: Path, mode: Literal["ab", "wb"]) -> IO[bytes]:
    try:
        return open(part, mode)
    except OSError as error:
        raise FileError(explain(error, part)) from error


def _forget(part: Path) -> None:
    for path in (part, _etag_file(part)):
        path.unlink(missing_ok=True)


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _bar() -> Progress:
    """A progress bar on stderr, shown only on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)
