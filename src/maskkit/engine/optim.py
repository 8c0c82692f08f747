"""Optimizer, learning rate and moving average of the weights, all from the `TrainConfig`; the faster precision."""

import math
import platform
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from maskkit.config import TrainConfig
from maskkit.errors import MaskkitError

_UNDECAYED = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


def param_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters in four groups, always in this order: backbone, backbone norm and bias, rest, rest of those.

    ``lr_factor`` of a group is the factor on its learning rate. Norms and biases are the parameters with at most one
    axis; with ``decay_bias`` biases outside of normalisation layers count as the rest. Embeddings count as norms.
    """
    undecayed = {p for m in model.modules() if isinstance(m, _UNDECAYED) for p in m.parameters(recurse=False)}
    groups: list[dict[str, Any]] = [
        {"params": [], "lr_factor": factor, "weight_decay": decay}
        for factor in (config.backbone_lr, 1.0)
        for decay in (config.weight_decay, config.weight_decay if config.decay_norm else 0.0)
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            apart = parameter in undecayed or (parameter.ndim <= 1 and not config.decay_bias)
            place = 2 * (not name.startswith("backbone.")) + apart
            groups[place]["params"].append(parameter)
    return groups


def freeze(model: nn.Module, parts: Sequence[str], flags: str = "--train.") -> None:
    """Keep the parameters of ``parts``, dotted names of modules, and the statistics of their batch norm as they are.

    Raises `MaskkitError` for a part that the model does not have, and where nothing is left to train.
    """
    for part in parts:
        inside = [parameter for name, parameter in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not inside:
            own = ", ".join(name for name, child in model.named_children() if any(True for _ in child.parameters()))
            raise MaskkitError(f"{flags}freeze {part}: the model has no such part; its parts are {own}")
        for parameter in inside:
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(f"{name}.".startswith(f"{p}.") for p in parts):
            module.register_forward_pre_hook(_keep_statistics)
    if parts and not any(parameter.requires_grad for parameter in model.parameters()):
        raise MaskkitError(f"{flags}freeze {' '.join(parts)}: nothing is left to train; freeze fewer parts")


def _keep_statistics(module: nn.Module, _: object) -> None:
    """Evaluation mode, whatever the mode of the model around it."""
    module.eval()


def precision_for(device: torch.device) -> Literal["fp32", "bf16"]:
    """The faster precision of the forward pass on ``device``.

    A processor without instructions for bf16 takes several times as long as in fp32: oneDNN emulates them with AVX-512
    and has no bf16 convolutions with less; torch's own ones are no faster.
    """
    if device.type != "cpu":
        return "bf16"
    return "bf16" if _processor_has_bf16() else "fp32"


def _processor_has_bf16() -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # oneDNN asks for AVX-512 alone


def precision_notes(precision: str, device: torch.device) -> list[str]:
    """Lines for the user about the speed of this ``precision`` on ``device``."""
    if precision == "bf16" and precision_for(device) == "fp32":
        return ["bf16 is several times slower than fp32 on this processor, which has no instructions for it"]
    return []


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """SGD with momentum or AdamW over `param_groups`."""
    groups = param_groups(model, config)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    return AdamW(groups, lr=config.lr)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Rate of optimizer step ``step`` (0 is the first) of ``total``.

    The schedule spans the whole run. The warm-up multiplies it by a factor that grows from ``warmup_from`` to 1; it
    takes at most a tenth of the run, so that a short run is not all warm-up.
    """
    warmup = min(config.warmup, total // 10)
    warm = config.warmup_from + (1 - config.warmup_from) * step / warmup if step < warmup else 1.0
    if config.schedule == "steps":
        return config.lr * warm * 0.1 ** sum(step >= share * total for share in config.milestones)
    if config.schedule == "poly":
        return config.lr * warm * (1 - step / total) ** 0.9
    fallen = max(0.0, step / total - config.flat) / (1 - config.flat)  # share of the cosine, 0 to 1
    return config.lr * warm * (config.least + (1 - config.least) * 0.5 * (1 + math.cos(math.pi * fallen)))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group: ``rate`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def average_decay(step: int, decay: float, warmup: float = 0.0) -> float:
    """Share of the old average that stays after step ``step`` (0 is the first): lower than ``decay`` at first.

    With a ``warmup``, in steps, the first step gives the weights themselves (``ExpMomentumEMA`` of mmdetection).
    """
    if warmup:
        return decay * (1 - math.exp(-(1 + step) / warmup)) if step else 0.0
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int, warmup: float = 0.0) -> None:
    """Update the moving average after step ``step`` by its `average_decay`."""
    decay = average_decay(step, decay, warmup)
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
