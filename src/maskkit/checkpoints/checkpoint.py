"""Self-describing checkpoints: one safetensors file is enough to predict with.

Its metadata holds JSON with the configuration, the classes, the decoder and facts about the weights
(`maskkit.checkpoints.header`). Tensors with plain names are the weights. A file that a training resumes from has more
tensors, with a slash in their names, which no parameter can have (`maskkit.engine.state`); it predicts too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskkit import zoo
from maskkit.checkpoints.foreign import read_tensors, write_tensors
from maskkit.checkpoints.header import MAX_CLASSES, categories_of, decoder_of, header_in, make_header
from maskkit.checkpoints.listing import one_line, read_listing
from maskkit.checkpoints.outline import build, is_meta, outline
from maskkit.config import DataConfig, RunConfig, from_dict
from maskkit.errors import DataError, MaskkitError
from maskkit.models.base import Model
from maskkit.nn.finite import check_finite
from maskkit.prediction import Categories
from maskkit.ranges import misfits

MAX_SIDE = 20_000
"""Largest side of a network's input in a checkpoint, in pixels."""

_FORMER = ("tensorboard",)
"""Settings of ``train`` in earlier checkpoints that this version does not have; they changed no result."""

_MAX_NUMBER = 10_000_000
"""Largest number in the description of a model; none is negative."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved model with everything that is needed to use it."""

    model: Model
    config: RunConfig
    categories: Categories
    info: dict[str, Any]
    """``step``, ``metrics`` and whatever else was stored with it."""


def save_model(path: Path, model: Model, config: RunConfig, categories: Categories, info: Mapping[str, Any]) -> None:
    """Write a checkpoint to predict with, atomically.

    The paths of the data and of the initial weights are left out: they are not valid on other machines.
    """
    config = replace(config, model=config.model.portable(), data=DataConfig())
    write_checkpoint(path, model.state_dict(), make_header(config, categories, model.decoder, info))


def load_model(path: str | Path) -> Checkpoint:
    """The model of a checkpoint, on the CPU in evaluation mode. Its configuration has no paths.

    Raises `DataError` for a file that is not a checkpoint, or whose description does not fit its tensors or its model.
    """
    path = Path(path)
    listing = read_listing(path)
    header = header_in(listing, path)
    config, decoder, categories = config_of(header, path), decoder_of(header, path), categories_of(header)
    if len(categories) != config.model.num_classes:
        raise DataError(
            f"{path}: its description is damaged: {len(categories)} class names for {config.model.num_classes} classes"
        )
    model = outline(config, {n: t for n, t in listing.tensors.items() if "/" not in n}, path)
    if decoder != model.decoder:
        raise DataError(
            f"{path}: written by maskkit {header['version']} to be decoded by {decoder}, while this version decodes "
            f"{config.preset} by {model.decoder}; use the version that wrote it"
        )
    model = build(config) if is_meta(model) else model
    fill(model, {n: t for n, t in read_tensors(path).items() if "/" not in n}, path)
    config = replace(config, model=config.model.portable(), data=DataConfig())  # a file does not name further files
    return Checkpoint(model.eval(), config, categories, header["info"])


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors with the description of `make_header`."""
    write_tensors(path, tensors, {"maskkit": json.dumps(header)})


def run_config(data: dict[str, Any]) -> RunConfig:
    """The configuration in a checkpoint or in ``config.json``. Raises ``ValueError`` or `MaskkitError`.

    ``start`` of ``config.json``, where the initial weights came from, is left out.
    """
    if not isinstance(data, dict) or not all(isinstance(data.get(n), t) for n, t in (("preset", str), ("model", dict))):
        raise ValueError("it has no preset or no model")
    kind = type(zoo.preset(data["preset"][:200]).model)
    rest = {name: value for name, value in data.items() if name not in ("model", "start")}
    if isinstance(rest.get("train"), dict):
        rest["train"] = {name: value for name, value in rest["train"].items() if name not in _FORMER}
    base = from_dict({**rest, "model": {}}, RunConfig)
    return RunConfig(base.preset, from_dict(data["model"], kind), base.input, base.augment, base.train, base.data)


def config_of(header: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration of a checkpoint. Raises `DataError` for one that this version cannot use."""
    try:
        config = run_config(header["config"])
        _check_sizes(config)
    except (MaskkitError, ValueError) as error:
        raise DataError(
            f"{path}: written by maskkit {header['version']} with a configuration that this version cannot use: "
            f"{one_line(error, 600)}"
        ) from None
    return config


def _check_sizes(config: RunConfig) -> None:
    """Raise ``ValueError`` for sizes that no model has, before anything is made of them."""
    for part in ("model", "input"):
        for name, value, reason in misfits(getattr(config, part)):
            raise ValueError(f"{part}.{name} is {value}, {reason}")
    if not 1 <= config.model.num_classes <= MAX_CLASSES:
        raise ValueError(f"model.num_classes is {config.model.num_classes}, not 1 to {MAX_CLASSES}")
    for name, value in _numbers(config.model, "model"):
        if not 0 <= value <= _MAX_NUMBER:
            raise ValueError(f"{name} is {value}, not 0 to {_MAX_NUMBER}")
    if not all(1 <= side <= MAX_SIDE for side in config.input.size):
        raise ValueError(f"input.size is {config.input.size}, not 1 to {MAX_SIDE} pixels")
    if not all(divisor > 0 for divisor in config.input.std):
        raise ValueError(f"input.std is {config.input.std}, not above 0")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int | float]]:
    """All numbers of a part of a configuration, with their names."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _numbers(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float):
        yield name, value


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a checkpoint into its model. Raises `DataError` where they do not fit or are not numbers."""
    check_finite(state, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(f"{path}: its tensors do not fit its own description: {'; '.join(reasons[:3])}") from None
