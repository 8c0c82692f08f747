"""Self-describing checkpoints: one safetensors file is enough to predict with.

Its metadata holds JSON with the configuration, the classes, the decoder and facts about the weights
(`maskkit.checkpoints.header`). Tensors with plain names are the weights. A file that a training resumes from has more
tensors, with a slash in their names, which no parameter can have (`maskkit.engine.state`); it predicts too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints.foreign import read_tensors, write_tensors
from maskkit.checkpoints.header import categories_of, decoder_of, make_header, read_header
from maskkit.config import DataConfig, RunConfig, from_dict
from maskkit.errors import DataError, MaskkitError
from maskkit.models.base import Model
from maskkit.prediction import Categories


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
    """The model of a checkpoint, on the CPU in evaluation mode.

    Raises `DataError` for a file that is not a checkpoint, or whose description does not fit its tensors or its model.
    """
    path = Path(path)
    header = read_header(path)
    config = config_of(header, path)
    model = zoo.model_class(config.preset)(config.model)
    if (decoder := decoder_of(header, path)) != model.decoder:
        raise DataError(
            f"{path}: written by maskkit {header['version']} to be decoded by {decoder}, while this version decodes "
            f"{config.preset} by {model.decoder}; use the version that wrote it"
        )
    fill(model, {n: t for n, t in read_tensors(path).items() if "/" not in n}, path)
    return Checkpoint(model.eval(), config, categories_of(header), header["info"])


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors with the description of `make_header`."""
    write_tensors(path, tensors, {"maskkit": json.dumps(header)})


def run_config(data: dict[str, Any]) -> RunConfig:
    """The configuration in a checkpoint or in ``config.json``. Raises ``ValueError`` or `MaskkitError`.

    ``start`` of ``config.json``, where the initial weights came from, is left out.
    """
    kind = type(zoo.preset(data["preset"]).model)
    rest = {name: value for name, value in data.items() if name not in ("model", "start")}
    base = from_dict({**rest, "model": {}}, RunConfig)
    return RunConfig(base.preset, from_dict(data["model"], kind), base.input, base.augment, base.train, base.data)


def config_of(header: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration of a checkpoint. Raises `DataError` for one that this version cannot use."""
    try:
        return run_config(header["config"])
    except (MaskkitError, ValueError, KeyError, TypeError) as error:
        message = (
            f"{path}: written by maskkit {header['version']} with a configuration that this version cannot use: {error}"
        )
        raise DataError(message) from None


def fill(model: Model, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a checkpoint into its model. Raises `DataError` where they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(f"{path}: its tensors do not fit its own description: {'; '.join(reasons[:3])}") from None
