"""Half-made data sets of conversions that were killed: each names its process, and the next conversion removes it."""

import glob
import os
import shutil
import socket
from pathlib import Path

_MARK = ".made-by-maskkit"


def mark(folder: Path) -> None:
    """Note in ``folder`` that this process makes it."""
    (folder / _MARK).write_text(f"{socket.gethostname()}\n{os.getpid()}\n", encoding="utf-8")


def unmark(folder: Path) -> None:
    """Remove the note: the folder is complete."""
    (folder / _MARK).unlink()


def remove_abandoned(dst: Path) -> None:
    """Remove the half-made folders for ``dst`` whose process has ended. Folders without a note are not ours."""
    for folder in dst.parent.glob(f".{glob.escape(dst.name)}.????????????.tmp"):
        try:
            host, number = (folder / _MARK).read_text(encoding="utf-8").split()
            ended = host == socket.gethostname() and not _lives(int(number))
        except (OSError, ValueError, OverflowError):
            continue
        if ended:
            shutil.rmtree(folder, ignore_errors=True)


def _lives(number: int) -> bool:
    if number <= 0:
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
