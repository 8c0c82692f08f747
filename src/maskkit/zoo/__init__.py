"""The zoo: every method with its presets, published weights, class names and numbers.

A preset is called ``METHOD-...``; the part before the first hyphen is looked up in the table `METHODS`. Other packages
add methods by the entry point group ``maskkit.methods``: the entry point has the name before the hyphen and loads a
`maskkit.zoo.card.Method`.
"""

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from maskkit.errors import MaskkitError

if TYPE_CHECKING:
    from maskkit.models.base import Model
    from maskkit.zoo.card import Method, Preset

METHODS: dict[str, str] = {
    "blendmask": "blendmask",
    "boxinst": "boxinst",
    "condinst": "condinst",
    "deeplabv1": "deeplab",
    "deeplabv2": "deeplab",
    "deeplabv3": "deeplab",
    "deeplabv3plus": "deeplab",
    "embedding": "embedding",
    "eps": "eps",
    "eva": "eva",
    "fasterrcnn": "faster_rcnn",
    "fcis": "fcis",
    "fcn": "fcn",
    "fcn16s": "fcn",
    "fcn32s": "fcn",
    "fcn8s": "fcn",
    "fcos": "fcos",
    "instancefcn": "instancefcn",
    "mask2former": "mask2former",
    "masklab": "masklab",
    "maskrcnn": "mask_rcnn",
    "panet": "panet",
    "polarmask": "polarmask",
    "psenet": "psenet",
    "pspnet": "pspnet",
    "refinenet": "refinenet",
    "segnet": "segnet",
    "solo": "solo",
    "solov2": "solov2",
    "yolact": "yolact",
}
"""From the part of a preset's name before the first hyphen to the module of this package with its ``METHOD``."""

ENTRY_POINTS = "maskkit.methods"
"""The entry point group by which other packages add methods."""


def methods() -> "dict[str, Method]":
    """Every method by the name that its presets start with, built-in ones first. Imports all of them."""
    return {name: _load(name) for name in [*METHODS, *_foreign()]}


def method(preset_name: str) -> "Method":
    """The method of the preset called ``preset_name``. Raises `MaskkitError` when there is none."""
    name = preset_name.partition("-")[0]
    if name not in METHODS and name not in _foreign():
        raise unknown(preset_name)
    return _load(name)


def presets() -> "list[Preset]":
    """All presets, method by method. Imports every method."""
    found = {id(method): method for method in methods().values()}  # several names may share one method
    return [preset for method in found.values() for preset in method.presets]


def preset(name: str) -> "Preset":
    """The preset called ``name``. Raises `MaskkitError` with the nearest names when there is none."""
    for candidate in method(name).presets:
        if candidate.name == name:
            return candidate
    raise unknown(name)


def model_class(preset_name: str) -> "type[Model]":
    """The model class of a preset."""
    return method(preset_name).model


def list_models() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(preset.name for preset in presets())


def unknown(name: str) -> MaskkitError:
    """The error for a preset name that does not exist, with the nearest names."""
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3)
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    return MaskkitError(f"there is no model {name!r}{hint} `maskkit models` lists them all")


def _foreign() -> dict[str, object]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


@cache
def _load(name: str) -> "Method":
    if name in METHODS:
        return import_module(f"maskkit.zoo.{METHODS[name]}").METHOD
    (point,) = entry_points(group=ENTRY_POINTS, name=name)
    return point.load()
