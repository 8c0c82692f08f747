"""Models of files from anywhere: compared with their tensors first, without memory for a single weight.

A description may ask for terabytes, for a million layers, or for a network that cannot be built. So the model is first
built on the meta device, where tensors have shapes and no values, and within limits that follow from the file.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from maskkit import zoo
from maskkit.checkpoints.listing import TensorInfo, one_line
from maskkit.config import RunConfig
from maskkit.errors import DataError, MaskkitError
from maskkit.models.base import Model

_PARTS_PER_TENSOR, _PARTS_AT_LEAST = 8, 5_000
"""How many modules and parameters may be made: a backbone is made twice, and has modules without weights."""

_FEW_CLASSES = 200

_MAX_TABLES = 256 << 20
"""Largest size, in bytes, of what a model computes when it is built and does not store."""


class _TooLarge(Exception):
    """A model with more parts than its file can fill."""


def outline(config: RunConfig, tensors: Mapping[str, TensorInfo], path: Path) -> Model:
    """The model of ``config``, whose names and shapes are those of ``tensors``, with undefined weights.

    It is on the meta device, but for a small preset as it is in the zoo: that has the room of its few weights at once.
    Raises `DataError`, which names the file and the first differences, where names or shapes differ, and where the
    model cannot be built.
    """
    model = build(config) if _is_small(config) else _on_meta(config, tensors, path)
    wanted = model.state_dict()
    problems = [f"{name!r} has no place" for name in tensors if name not in wanted]
    problems += [f"there is no {name!r}" for name in wanted if name not in tensors]
    for name in wanted.keys() & tensors.keys():
        ours, theirs = wanted[name], tensors[name]
        if tuple(ours.shape) != theirs.shape:
            problems.append(f"{name!r} has shape {list(theirs.shape)} and not {list(ours.shape)}")
        elif ours.is_floating_point() != theirs.floating:
            problems.append(f"{name!r} has the type {theirs.dtype}")
    if problems:
        raise DataError(
            f"{path}: its tensors do not fit its own description: {'; '.join(sorted(problems)[:3])[:600]}"
            + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        )
    tables = sum(b.numel() * b.element_size() for name, b in model.named_buffers() if name not in wanted)
    if tables > _MAX_TABLES + sum(t.numel() * t.element_size() for t in wanted.values()):
        raise DataError(f"{path}: its description is of a model that needs {tables / 2**30:.1f} GiB beside its weights")
    return model


def is_meta(model: Model) -> bool:
    """Whether the weights of a model have shapes alone."""
    return any(parameter.is_meta for parameter in model.parameters())


def _is_small(config: RunConfig) -> bool:
    """Whether this is a small preset as it is in the zoo, for some tens of classes."""
    preset, classes = zoo.preset(config.preset), config.model.num_classes
    return preset.small and classes <= _FEW_CLASSES and replace(preset.model, num_classes=classes) == config.model


def _on_meta(config: RunConfig, tensors: Mapping[str, TensorInfo], path: Path) -> Model:
    kind = zoo.model_class(config.preset)
    try:
        with torch.device("meta"), _limited(_PARTS_AT_LEAST + _PARTS_PER_TENSOR * len(tensors)):
            return kind(config.model)
    except _TooLarge:
        raise DataError(
            f"{path}: its description asks for many more parts than its {len(tensors)} tensors can fill; copy or "
            "download it again"
        ) from None
    except Exception as error:  # what a wrong size makes of the constructors of a network can be any error
        reason = one_line(error, 300)
        problem = reason if isinstance(error, MaskkitError) else f"{type(error).__name__}: {reason}"
        raise DataError(f"{path}: its description is of a model that cannot be built ({problem})") from error


def build(config: RunConfig) -> Model:
    """The model of ``config`` with undefined weights, which are faster to make than random ones."""
    with _NoInit():
        return zoo.model_class(config.preset)(config.model)


class _NoInit(TorchFunctionMode):
    """The functions of ``torch.nn.init`` do nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _limited(parts: int) -> Iterator[None]:
    """Raise `_TooLarge` inside as soon as more modules and parameters are made by this thread."""
    left, thread = parts, threading.get_ident()

    def count(module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise _TooLarge

    hooks = [register_module_module_registration_hook(count), register_module_parameter_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
