"""Names of backbones: only those in timm's registry, so that a name never leads to a file or to the network."""

import difflib
import re

import timm

from maskkit.errors import MaskkitError

_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,100}")


def check_name(name: str, noun: str = "backbone", family: str = "") -> None:
    """Raise `MaskkitError`, with the nearest names, unless ``name`` is a network of timm's registry.

    timm itself would take ``hf-hub:...`` and ``local-dir:...`` too, and download or open what they name. ``family`` is
    a pattern for `timm.list_models`, of the names that could be meant.
    """
    if isinstance(name, str) and _NAME.fullmatch(name) and timm.is_model(name):
        return
    text = str(name)
    if not _NAME.fullmatch(text):
        raise MaskkitError(
            f"{text[:100]!r} is no {noun}: its name is one of timm's registry (timm.list_models()), never a folder or "
            "an address; weights from a file are given by --model.backbone.weights FILE"
        )
    near = difflib.get_close_matches(text, timm.list_models(family), n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    raise MaskkitError(f"timm has no {noun} {text!r}{hint} timm.list_models({family and repr(family)}) lists them all")
