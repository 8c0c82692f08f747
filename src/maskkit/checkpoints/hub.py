"""Weights that others publish, as checkpoints of ours: converted from a file, or fetched first."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.convert import convert
from maskkit.config import RunConfig
from maskkit.errors import DataError
from maskkit.prediction import Categories

HUB = "hub"
"""What stands for the weights that `fetch` finds, in place of a file."""


def import_state(state: dict[str, Tensor], preset: str, out: Path, source: str) -> Categories:
    """Write the checkpoint of an official ``state`` to ``out``; gives the classes. Raises `DataError` (`convert`)."""
    chosen = zoo.preset(preset)
    model = zoo.model_class(preset)(chosen.model)
    model.load_state_dict(convert(state, preset))
    config = RunConfig(preset, chosen.model, chosen.input, chosen.augment, chosen.train)
    save_model(out, model, config, chosen.classes, {"imported": source})
    return chosen.classes


def can_fetch(preset: str) -> bool:
    """Whether `fetch` knows weights of the preset."""
    weights = zoo.preset(preset).weights
    return weights is not None and weights.torchvision != ""


def fetch(preset: str) -> Path:
    """The checkpoint of the weights that torchvision publishes for ``preset``, by torchvision's own download.

    Both the download and what is made of it stay in the cache of `torch.hub`. Raises `DataError` when there are no
    such weights, or no network.
    """
    published = zoo.preset(preset).weights
    if published is None:
        raise DataError(f"nobody publishes weights of {preset!r} that could be loaded; train it")
    if not published.torchvision:
        raise DataError(
            f"weights of {preset!r} cannot be fetched: download them from {published}, then: "
            f"maskkit import FILE --model {preset} --out {preset}.safetensors"
        )
    weights = torchvision.models.get_weight(published.torchvision)
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
