"""The folder of downloads, what a user has accepted, and whether the network may be used. No torch.

``MASKKIT_HOME`` moves the folder; by default it is ``maskkit`` in the user's cache. It holds ``converted/`` (published
weights as checkpoints), ``downloads/`` (what is being fetched), ``huggingface/`` (repositories of the Hub, as
huggingface_hub keeps them) and ``licences.json``.
"""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from maskkit.errors import MaskkitError
from maskkit.files import write_json

HOME, OFFLINE = "MASKKIT_HOME", ("MASKKIT_OFFLINE", "HF_HUB_OFFLINE")
"""Variables of the environment: where downloads are, and what forbids them."""


def home() -> Path:
    """The folder of everything that is downloaded."""
    if given := os.environ.get(HOME, "").strip():
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return Path(base or Path.home() / ".cache") / "maskkit"


def is_offline() -> bool:
    """Whether the environment forbids downloads."""
    return any(os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on") for name in OFFLINE)


def accept_licence(name: str) -> None:
    """Remember that the user accepts the licence ``name``. Raises `FileError` where that cannot be written."""
    known = _licences()
    if name not in known["accepted"]:
        write_json(_file(), {**known, "accepted": [*known["accepted"], name]})


def require_licence(name: str, whose: str, non_commercial: bool) -> None:
    """Show the licence ``name`` of ``whose`` weights, the first time, as a line of the log.

    Raises `MaskkitError` for one that does not allow every use, until it has been accepted.
    """
    known = _licences()
    if non_commercial and name not in known["accepted"]:
        raise MaskkitError(
            f"{whose}: the licence of these weights is {name!r}, which does not allow every use; read it there, and if "
            f"your use is allowed, accept it once with --accept-licence {name!r} (maskkit models takes it too)"
        )
    shown = f"{whose}: {name}"
    if shown not in known["shown"]:
        logging.getLogger("maskkit").warning("weights of %s, licence %s", whose, name)
        with suppress(OSError):  # it is shown again
            write_json(_file(), {**known, "shown": [*known["shown"], shown]})


def _file() -> Path:
    return home() / "licences.json"


def _licences() -> dict[str, list[str]]:
    """What was accepted and shown; nothing where the file is missing or damaged."""
    found: dict[str, list[str]] = {"accepted": [], "shown": []}
    with suppress(OSError, ValueError):
        content = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(content, dict):
            for key, names in found.items():
                given = content.get(key)
                names += [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    return found
