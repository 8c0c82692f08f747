"""Weights that others publish, as checkpoints of ours: converted from a file, or fetched first."""

from importlib import import_module
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from maskkit.checkpoints import convert as published
from maskkit.checkpoints.checkpoint import save_model
from maskkit.config import RunConfig
from maskkit.errors import DataError
from maskkit.prediction import Categories
from maskkit.zoo import registry
from maskkit.zoo.class_names import names_for

HUB = "hub"
"""What stands for the weights that `fetch` finds, in place of a file."""


def import_state(state: dict[str, Tensor], preset: str, out: Path, source: str) -> Categories:
    """Write the checkpoint of an official ``state`` to ``out``; gives the classes. Raises `DataError` (`convert`)."""
    chosen = registry.preset(preset)
    model = registry.model_class(preset)(chosen.model)
    model.load_state_dict(published.convert(state, preset))
    categories = names_for(chosen.model.num_classes)
    config = RunConfig(preset, chosen.model, chosen.input, chosen.augment, chosen.train)
    save_model(out, model, config, categories, {"imported": source})
    return categories


def can_fetch(preset: str) -> bool:
    """Whether `fetch` knows weights of the preset."""
    return preset in _names(preset)


def fetch(preset: str) -> Path:
    """The checkpoint of the weights that torchvision publishes for ``preset``, by torchvision's own download.

    Both the download and what is made of it stay in the cache of `torch.hub`. Raises `DataError` when there are no
    such weights, or no network.
    """
    if not can_fetch(preset):
        where = registry.preset(preset).published or "nobody publishes any that it could load; train it"
        raise DataError(f"weights of {preset!r} cannot be fetched: {where}")
    weights = torchvision.models.get_weight(_names(preset)[preset])
    name = Path(weights.url).stem
    cached = Path(torch.hub.get_dir()) / "maskkit" / f"{preset}-{name}.safetensors"
    if not cached.is_file():
        try:
            state = weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network; a download that is not what was published
            raise DataError(
                f"torchvision's weights for {preset!r} could not be fetched ({error}); where there is a network, "
                f"download {weights.url}, then: maskkit import {name}.pth --model {preset} --out {preset}.safetensors"
            ) from error
        cached.parent.mkdir(parents=True, exist_ok=True)
        import_state(dict(state), preset, cached, weights.url)
    return cached


def _names(preset: str) -> dict[str, str]:
    """Presets of the same method to torchvision's names of weights."""
    method = registry.model_class(preset).__module__.rpartition(".")[2]
    try:
        source = import_module(f"maskkit.zoo.{method}")
    except ModuleNotFoundError:  # a method without published weights
        return {}
    return getattr(source, "HUB", {})
