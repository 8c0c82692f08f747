"""Files that are whole or not there: every output of the package is written this way."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it takes the place of ``path`` when all of it is on the disk.

    A process that dies inside leaves what was there before, and a hidden file that the next writing overwrites.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, indented where it is short."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=None if isinstance(value, list) else 2), encoding="utf-8")
