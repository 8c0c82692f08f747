"""Preset names to presets and model classes.

A method is found by its file: the preset ``yolact-resnet50`` lives in ``models/yolact.py``, because the file's name
without underscores is the longest one that the preset's name begins with. Only that module is imported.
"""

import difflib
import pkgutil
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import maskkit.models
from maskkit.config import Preset
from maskkit.errors import MaskkitError

if TYPE_CHECKING:
    from maskkit.models.base import Model


def _stems() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(maskkit.models.__path__) if m.name != "base")


def _module(name: str) -> ModuleType:
    stems = [s for s in _stems() if name.startswith(s.replace("_", ""))]
    if not stems:
        raise unknown(name)
    return import_module(f"maskkit.models.{max(stems, key=len)}")


def unknown(name: str) -> MaskkitError:
    """The error for a preset name that does not exist, with the nearest names."""
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3)
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    return MaskkitError(f"there is no model {name!r}{hint} `maskkit models` lists them all")


def list_models() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(p.name for p in presets())


def presets() -> list[Preset]:
    """All presets; imports every method."""
    return [p for s in _stems() for p in import_module(f"maskkit.models.{s}").PRESETS]


def preset(name: str) -> Preset:
    """The preset called ``name``; `MaskkitError` with the nearest names when there is none."""
    for candidate in _module(name).PRESETS:
        if candidate.name == name:
            return candidate
    raise unknown(name)


def model_class(name: str) -> "type[Model]":
    """The model class behind a preset name."""
    return _module(name).MODEL
