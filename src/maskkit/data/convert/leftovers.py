"""Incomplete data sets of killed conversions: a folder's name contains the process id, and the next process removes it.

The folder has this name from its creation on, so a kill at any moment leaves nothing of unknown origin.
"""

import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from maskkit.processes import lives


def new_folder(dst: Path) -> Path:
    """The folder in which this process writes the data set ``dst``: next to it, with a unique name."""
    return dst.with_name(f".{dst.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_abandoned(dst: Path) -> None:
    """Remove incomplete folders for ``dst`` whose process on this machine has ended."""
    for folder in dst.parent.glob(f".{glob.escape(dst.name)}.*.tmp"):
        name = folder.name.removeprefix(f".{dst.name}.")
        owner = re.fullmatch(r"([0-9a-f]{8})-([0-9]{1,10})-[0-9a-f]{8}\.tmp", name)
        if owner is not None and owner[1] == _host() and not lives(int(owner[2])):
            shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
