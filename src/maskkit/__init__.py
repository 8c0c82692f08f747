"""maskkit: instance, semantic and panoptic segmentation on today's PyTorch.

Public names are loaded when they are first used, so that ``import maskkit`` and ``maskkit --help`` do not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "maskkit.api",
    "load": "maskkit.api",
    "Segmenter": "maskkit.api",
    "list_models": "maskkit.zoo",
    "Prediction": "maskkit.prediction",
    "Target": "maskkit.targets",
    "Masks": "maskkit.prediction",
    "Categories": "maskkit.prediction",
}
_MODULES = ("data", "eval", "geometry", "models", "prediction", "targets", "zoo")

__all__ = ["Categories", "Masks", "Prediction", "Segmenter", "Target", "create_model", "list_models", "load"]

if TYPE_CHECKING:
    from maskkit.api import Segmenter, create_model, load
    from maskkit.prediction import Categories, Masks, Prediction
    from maskkit.targets import Target
    from maskkit.zoo import list_models


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"maskkit.{name}")
    raise AttributeError(f"module 'maskkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_MODULES])
