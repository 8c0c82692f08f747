"""Which processes of this machine are running: what belongs to a process that has ended may be removed."""

import os
from pathlib import Path


def lives(pid: int, began: str | None = None) -> bool:
    """Whether a process is running; where that cannot be told, it is.

    Ids are used again: a process that did not begin at ``began`` (see `start_of`) is another one.
    """
    if os.name == "nt":  # where a signal cannot be tried without sending one
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; no id of a process
        return True
    now = start_of(pid)
    return now != "ended" and (began is None or now is None or now == began)


def start_of(pid: int) -> str | None:
    """When a process began, in ticks since the system booted; None where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return "ended" if fields[0] == "Z" else fields[19]
