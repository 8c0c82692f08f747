"""The zoo: every method with its presets, published weights, class names and numbers.

A preset is called ``METHOD-...``; the part before the first hyphen is looked up in the table `METHODS`. Other packages
add methods by the entry point group ``maskkit.methods``: the entry point has the name before the hyphen and loads a
`maskkit.zoo.card.Method`.
"""

import difflib
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from maskkit.errors import MaskkitError

if TYPE_CHECKING:
    from maskkit.models.base import Model
    from maskkit.zoo.card import Method, Preset

METHODS: dict[str, str] = {
    "blendmask": "blendmask",
    "boxinst": "boxinst",
    "cascadercnn": "cascade_rcnn",
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
    "lraspp": "deeplab",
    "mask2former": "mask2former",
    "masklab": "masklab",
    "maskrcnn": "mask_rcnn",
    "nanodet": "nanodet",
    "nanoinst": "nanoinst",
    "panet": "panet",
    "polarmask": "polarmask",
    "psenet": "psenet",
    "pspnet": "pspnet",
    "refinenet": "refinenet",
    "rtmdet": "rtmdet_ins",
    "segnet": "segnet",
    "solo": "solo",
    "solov2": "solov2",
    "yolact": "yolact",
}
"""From the part of a preset's name before the first hyphen to the module of this package with its ``METHOD``."""

ENTRY_POINTS = "maskkit.methods"
"""The entry point group by which other packages add methods."""


def methods() -> "dict[str, Method]":
    """Every method by the name that its presets start with, built-in ones first. Imports all of them.

    Raises `MaskkitError`, which names the package, for a method of another package that cannot be used.
    """
    return {name: _load(name) for name in [*METHODS, *_foreign()]}


def method(preset_name: str) -> "Method":
    """The method of the preset called ``preset_name``. Raises `MaskkitError` when there is none or it is broken."""
    name = preset_name.partition("-")[0]
    if name not in {*METHODS, *_foreign()}:
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


def model_class(preset_name: str) -> "type[Model[Any, Any]]":
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


def _foreign() -> dict[str, EntryPoint]:
    """The methods of other packages. Raises `MaskkitError` for a name that is taken."""
    return _find(tuple(sys.path))


@cache
def _find(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What `_foreign` gives while ``path`` is where Python looks for packages."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        owner = "maskkit" if point.name in METHODS else _package(found[point.name]) if point.name in found else None
        if owner is not None:
            raise MaskkitError(
                f"the package {_package(point)} adds a method {point.name!r}, but {owner} already has one of that "
                "name; uninstall the package, or ask its author to rename the method"
            )
        found[point.name] = point
    return found


def _package(point: EntryPoint) -> str:
    """The name that the package of an entry point is installed by."""
    return point.dist.name if point.dist is not None else point.module


@cache
def _load(name: str) -> "Method":
    if name in METHODS:
        return import_module(f"maskkit.zoo.{METHODS[name]}").METHOD
    return _load_foreign(_foreign()[name])


def _load_foreign(point: EntryPoint) -> "Method":
    from maskkit.zoo.card import Method

    origin = f"the method {point.name!r} of the package {_package(point)}"
    try:
        loaded: object = point.load()
    except Exception as error:  # whatever the package does when it is imported
        raise MaskkitError(
            f"{origin} cannot be loaded from {point.value}: {type(error).__name__}: {error}; "
            "update the package or uninstall it"
        ) from error
    if not isinstance(loaded, Method):
        raise MaskkitError(f"{origin} is a {type(loaded).__name__} ({point.value}), not a maskkit.zoo.card.Method")
    return loaded
