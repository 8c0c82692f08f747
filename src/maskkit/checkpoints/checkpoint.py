"""Files of weights: self-describing, without pickle, and never half written.

A checkpoint is one safetensors file. Its metadata holds a JSON text with the run's configuration, the class names and
what is known about the weights, so that the file alone is enough to predict. Tensors with plain names are the weights
to predict with. ``last.safetensors`` has more, under names with a slash, which no module can have:
``optimizer/<parameter>/<what>`` and, where a running average is kept (and is the plain one), ``trained/<name>``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import maskkit
from maskkit import zoo
from maskkit.checkpoints.foreign import is_safetensors, read_metadata, read_tensors, write_tensors
from maskkit.config import DataConfig, RunConfig, from_dict, to_dict
from maskkit.errors import DataError, MaskkitError
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone, load_backbone
from maskkit.nn.backbones.vgg import Vgg
from maskkit.prediction import Categories

FORMAT = 1
"""Version of the layout; a file with a higher one is refused."""

_FREE_TO_CHANGE = ("train.workers", "train.save_every", "train.tensorboard")
"""Settings that do not touch the result of a run."""


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was saved, with all that is needed to use it."""

    model: Model
    config: RunConfig
    categories: Categories
    info: dict[str, Any]
    """``step``, ``metrics`` and what else was known when it was saved."""


def save_model(path: Path, model: Model, config: RunConfig, categories: Categories, info: Mapping[str, Any]) -> None:
    """Write a checkpoint to predict with. The file is whole or not there, whenever the process dies.

    It does not say where data and first weights lay: folders of one machine mean nothing on the next.
    """
    config = replace(config, model=config.model.portable(), data=DataConfig())
    _write(path, model.state_dict(), _header(config, categories, info))


def load_model(path: str | Path) -> Checkpoint:
    """The model of a checkpoint, on the CPU in evaluation mode. Raises `DataError` for any file that is not one."""
    path = Path(path)
    header = read_header(path)
    config = _config(header, path)
    categories = _categories(header)
    model = zoo.model_class(config.preset)(config.model)
    _fill(model, {n: t for n, t in read_tensors(path).items() if "/" not in n}, path)
    return Checkpoint(model.eval(), config, categories, header["info"])


def save_state(
    path: Path,
    model: Model,
    average: Model | None,
    optimizer: Optimizer,
    config: RunConfig,
    categories: Categories,
    info: Mapping[str, Any],
) -> None:
    """Write everything a training needs to go on. ``info`` holds the step and the best result so far."""
    tensors = dict((model if average is None else average).state_dict())
    if average is not None:
        tensors |= {f"trained/{name}": tensor for name, tensor in model.state_dict().items()}
    _write(path, tensors | optimizer_tensors(model, optimizer), _header(config, categories, info))


def load_state(path: Path, model: Model, average: Model | None, optimizer: Optimizer) -> dict[str, Any]:
    """Put the state of `save_state` back into the same objects, bit for bit; returns its ``info``."""
    tensors = read_tensors(path)
    plain = {n: t for n, t in tensors.items() if "/" not in n}
    if average is not None:
        _fill(average, plain, path)
        plain = {n.removeprefix("trained/"): t for n, t in tensors.items() if n.startswith("trained/")}
    _fill(model, plain, path)
    load_optimizer(tensors, model, optimizer)
    return read_header(path)["info"]


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter of ``model``, as ``optimizer/<parameter>/<what>``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"optimizer/{names[parameter]}/{k}": t
        for parameter, state in optimizer.state.items()
        for k, t in state.items()
        if isinstance(t, Tensor)
    }


def load_optimizer(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    """Put the `optimizer_tensors` among ``tensors`` back, bit for bit."""
    saved: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, parameter, key = name.split("/")
            saved.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {k: _laid_out(t, parameter) for k, t in saved[names[parameter]].items()}
        for i, parameter in enumerate(parameters)
        if names[parameter] in saved
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_header(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says of itself: ``version``, ``config``, ``categories``, ``info``. Reads no tensor."""
    path = Path(path)
    text = read_metadata(path).get("maskkit")
    if text is None:
        raise DataError(f"{path}: holds tensors but no maskkit model; convert it: maskkit import {path} --model PRESET")
    try:
        header = json.loads(text)
        known = header["format"] <= FORMAT
        complete = {"version", "config", "categories", "info"} <= header.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        known, complete, header = True, False, {}
    if not known:
        raise DataError(f"{path}: its layout {header['format']} is newer than this maskkit; upgrade maskkit")
    if not complete:
        raise DataError(f"{path}: its description is damaged; copy or download it again")
    return header


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a file that `load_model` can describe, rather than weights from elsewhere."""
    return is_safetensors(path) and "maskkit" in read_metadata(path)


def run_config(data: dict[str, Any]) -> RunConfig:
    """The configuration in a checkpoint or in ``config.json``. Raises ``ValueError`` or `MaskkitError`."""
    kind = type(zoo.preset(data["preset"]).model)
    rest = {name: value for name, value in data.items() if name != "model"}
    base = from_dict({**rest, "model": {}}, RunConfig)
    return RunConfig(base.preset, from_dict(data["model"], kind), base.input, base.augment, base.train, base.data)


def start_weights(model: Model, config: RunConfig, weights: Path | None) -> list[str]:
    """Fill a fresh model from ``weights``, or its backbone from what the configuration names; says what did not fit.

    ``weights`` is a maskkit checkpoint, or a file with timm's names for the backbone. Raises `DataError`.
    """
    source = weights or config.model.backbone_weights
    if source is None:
        return ["all weights start from random values"]
    if source != weights or not is_checkpoint(Path(source)):
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, Backbone | Vgg):
            raise DataError(f"{source}: {config.preset} has no backbone that timm knows; give a maskkit checkpoint")
        unused = load_backbone(backbone, source)
        model.adopt_backbone()
        return [f"the backbone starts from {source}" + (f"; not used: {_some(unused)}" if unused else "")]
    own, given = model.state_dict(), read_tensors(Path(source))
    fitting = {n: t for n, t in given.items() if n in own and t.shape == own[n].shape}
    if not fitting:
        raise DataError(f"{source}: no tensor fits {config.preset} by name and shape; give weights of the same preset")
    model.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    return [
        f"{len(fitting)} of {len(own)} tensors start from {source}"
        + (f"; random values for {_some(left)}" if left else "")
    ]


def check_same(config: RunConfig, categories: Categories, images: int, last: Path) -> None:
    """Raise `MaskkitError` when the run in ``last`` was another one than is asked for now, with every difference."""
    header = read_header(last)
    then, now = (_flat(to_dict(c)) for c in (_config(header, last), config))
    before = header["info"].get("images")
    for facts, known, count in ((then, _categories(header), before), (now, categories, images)):
        facts |= {"classes": list(known.names), "class ids": list(known.ids), "things": list(known.things)}
        facts["training images"] = count
    changed = [k for k in sorted(then | now) if then.get(k) != now.get(k) and k not in _FREE_TO_CHANGE]
    if changed:
        what = "; ".join(f"{k} was {then.get(k)!r} and is {now.get(k)!r}" for k in changed)
        raise MaskkitError(
            f"{last}: cannot go on, that run was another one: {what}; use its values, or another folder by --out"
        )


def _categories(header: dict[str, Any]) -> Categories:
    """The classes of a checkpoint; one from before there was stuff does not say which are things."""
    return Categories(**{name: tuple(values) for name, values in header["categories"].items()})


def _config(header: dict[str, Any], path: Path) -> RunConfig:
    try:
        return run_config(header["config"])
    except (MaskkitError, ValueError, KeyError, TypeError) as error:
        message = (
            f"{path}: written by maskkit {header['version']} with a configuration that this one cannot use: {error}"
        )
        raise DataError(message) from None


def _header(config: RunConfig, categories: Categories, info: Mapping[str, Any]) -> dict[str, Any]:
    names = {"names": list(categories.names), "ids": list(categories.ids), "things": list(categories.things)}
    version = maskkit.__version__
    return {"format": FORMAT, "version": version, "config": to_dict(config), "categories": names, "info": dict(info)}


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    write_tensors(path, tensors, {"maskkit": json.dumps(header)})


def _laid_out(saved: Tensor, parameter: Tensor) -> Tensor:
    """``saved`` in the memory order of ``parameter``: another order may round differently in vectorised kernels."""
    return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape and saved.ndim else saved


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(f"{path}: its tensors do not fit its own description: {'; '.join(reasons[:3])}") from None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
