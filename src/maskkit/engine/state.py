"""The state of a training: everything that is needed to continue it, bit for bit.

``last.safetensors`` is a checkpoint with more tensors, under names with a slash: ``optimizer/<parameter>/<what>`` for
the optimizer and, where a moving average of the weights is kept, ``trained/<name>`` for the trained weights. The plain
names then hold the average, which is what predicts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskkit.checkpoints.checkpoint import fill, write_checkpoint
from maskkit.checkpoints.foreign import read_tensors
from maskkit.checkpoints.header import make_header, read_header
from maskkit.config import RunConfig
from maskkit.errors import DataError
from maskkit.models.base import Model
from maskkit.prediction import Categories


def save_state(
    path: Path,
    model: Model,
    average: Model | None,
    optimizer: Optimizer,
    config: RunConfig,
    categories: Categories,
    info: Mapping[str, Any],
) -> None:
    """Write everything that a training needs to continue. ``info`` holds the step and the best result so far."""
    tensors = dict((model if average is None else average).state_dict())
    if average is not None:
        tensors |= {f"trained/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= optimizer_tensors(model, optimizer)
    write_checkpoint(path, tensors, make_header(config, categories, model.decoder, info))


def load_state(path: Path, model: Model, average: Model | None, optimizer: Optimizer) -> dict[str, Any]:
    """Load the state of `save_state` into the same objects, bit for bit; returns its ``info``.

    Raises `DataError` for a file that is damaged, or holds no state.
    """
    info = read_header(path)["info"]
    if not all(type(info.get(name)) is int for name in ("step", "evaluated")) or "best" not in info:
        raise DataError(f"{path}: holds no state of a training; choose another folder with --out")
    tensors = read_tensors(path)
    plain = {n: t for n, t in tensors.items() if "/" not in n}
    if average is not None:
        fill(average, plain, path)
        plain = {n.removeprefix("trained/"): t for n, t in tensors.items() if n.startswith("trained/")}
    fill(model, plain, path)
    load_optimizer(tensors, model, optimizer, path)
    return info


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of each parameter of ``model``, as ``optimizer/<parameter>/<what>``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"optimizer/{names[parameter]}/{k}": t
        for parameter, state in optimizer.state.items()
        for k, t in state.items()
        if isinstance(t, Tensor)
    }


def load_optimizer(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer, path: Path) -> None:
    """Load the `optimizer_tensors` found in ``tensors`` of ``path``, bit for bit.

    Raises `DataError` for one that fits no parameter.
    """
    known = dict(model.named_parameters())
    saved: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, parameter, key = (*name.split("/"), "")[:3]
            if parameter not in known or (tensor.ndim and tensor.shape != known[parameter].shape):
                raise DataError(f"{path}: {name!r} fits no parameter of this model; choose another folder with --out")
            saved.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {k: _laid_out(t, parameter) for k, t in saved[names[parameter]].items()}
        for i, parameter in enumerate(parameters)
        if names[parameter] in saved
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out(saved: Tensor, parameter: Tensor) -> Tensor:
    """``saved`` in the memory order of ``parameter``: another order may round differently in vectorised kernels."""
    return torch.empty_like(parameter).copy_(saved) if saved.shape == parameter.shape and saved.ndim else saved
