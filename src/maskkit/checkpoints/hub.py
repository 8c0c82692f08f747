"""Published weights as maskkit checkpoints: converted from a file, or downloaded first."""

from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.convert import convert
from maskkit.config import InputConfig, ModelConfig, RunConfig
from maskkit.errors import DataError
from maskkit.prediction import Categories

HUB = "hub"
"""The name, in place of a file, of the weights that `fetch` downloads."""


def import_state(
    state: dict[str, Tensor],
    preset: str,
    out: Path,
    source: str,
    model: ModelConfig | None = None,
    input: InputConfig | None = None,
    classes: Categories | None = None,
    **facts: str,
) -> Categories:
    """Convert an official ``state`` and write it to ``out``. Returns the classes.

    ``model``, ``input`` and ``classes`` are the preset's where they are not given; ``facts`` about the weights are
    stored with them. Raises `DataError` (`convert`), and where there are not as many names as classes.
    """
    chosen = zoo.preset(preset)
    config = RunConfig(preset, model or chosen.model, input or chosen.input, chosen.augment, chosen.train)
    names = chosen.classes if classes is None else classes
    if len(names) != config.model.num_classes:
        raise DataError(f"there are {len(names)} names for {config.model.num_classes} classes; give a name for each")
    converted = convert(state, preset, config.model)
    network = zoo.model_class(preset)(config.model)
    network.load_state_dict(converted)
    save_model(out, network, config, names, {"imported": source, **facts})
    return names


def can_fetch(preset: str) -> bool:
    """Whether `fetch` can download weights of the preset."""
    weights = zoo.preset(preset).weights
    return weights is not None and weights.torchvision != ""


def published_name(preset: str) -> str:
    """What the weights that `fetch` downloads are called."""
    weights = zoo.preset(preset).weights
    return f"torchvision: {weights.torchvision}" if weights is not None else preset


def fetch(preset: str) -> Path:
    """A checkpoint with the weights that torchvision publishes for ``preset``, by torchvision's own download.

    The download and the converted checkpoint are cached in the folder of `torch.hub`. Raises `DataError` when there are
    no such weights, or no network.
    """
    published = zoo.preset(preset).weights
    if published is None:
        raise DataError(f"there are no published weights of {preset!r} that could be loaded; train it")
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
            state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except (OSError, RuntimeError, UnpicklingError) as error:  # no network, or another file than was published
            raise DataError(
                f"torchvision's weights for {preset!r} could not be fetched ({error}); on a machine with a network, "
                f"download {weights.url}, then: maskkit import {name}.pth --model {preset} --out {preset}.safetensors"
            ) from error
        cached.parent.mkdir(parents=True, exist_ok=True)
        import_state(dict(state), preset, cached, weights.url)
    return cached
