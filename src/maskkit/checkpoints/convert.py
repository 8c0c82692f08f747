"""Conversion of official checkpoints to our parameter names, by the key map of the method and checked strictly."""

from typing import Any

import torch
from torch import Tensor

from maskkit import zoo
from maskkit.config import ModelConfig, change
from maskkit.errors import DataError
from maskkit.nn.finite import check_finite
from maskkit.zoo.key_maps import bgr_to_rgb, is_mmdetection

Shapes = dict[str, tuple[int, ...]]


def convert(
    state: dict[str, Tensor], preset: str, config: ModelConfig | None = None, **knobs: Any
) -> dict[str, Tensor]:
    """The state dict of an official checkpoint under our names, ready for ``load_state_dict`` of the preset's model.

    ``config`` is the model's where it is not the preset's; ``knobs`` change it (``num_classes=3`` for a checkpoint
    trained on three classes). Raises `DataError` when the method has no key map, a tensor of the checkpoint has no
    place in the model, one of the model's gets no tensor, a shape differs, or a weight is NaN or infinite; where the
    shapes are those of another number of classes, the error says which.
    """
    method, found = zoo.method(preset), zoo.preset(preset)
    if method.rename is None:
        raise DataError(f"no foreign weights of {method.title} are known ({method.agreement}); train it")
    renamed = method.rename(state)
    if found.weights is not None and found.weights.bgr and is_mmdetection(state):
        renamed = bgr_to_rgb(renamed)
    config = change(config or found.model, **knobs)
    with torch.device("meta"):
        wanted = method.model(config).state_dict()
    left, missing = sorted(set(renamed) - set(wanted)), sorted(set(wanted) - set(renamed))
    # old checkpoints lack batch norm's counter, which does not affect the output
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    if left or missing:
        raise DataError(
            f"this checkpoint does not fit {preset!r}: {len(left)} tensors have no place (first: {left[:1]}), "
            f"{len(missing)} of the model's get none (first: {missing[:1]})"
        )
    other = [name for name, tensor in renamed.items() if tensor.shape != wanted[name].shape]
    if other:
        classes = _classes_in({n: tuple(t.shape) for n, t in renamed.items()}, preset, config)
        if classes is not None:
            raise DataError(
                f"this checkpoint has {classes} classes, {preset!r} has {config.num_classes}: add --num-classes "
                f"{classes}, or --classes with a file of their names"
            )
        raise DataError(
            f"{len(other)} tensors have another shape, the first is {other[0]!r}: {tuple(renamed[other[0]].shape)} in "
            f"the checkpoint, {preset!r} needs {tuple(wanted[other[0]].shape)}; check the preset and its --model "
            "options"
        )
    check_finite(renamed, preset)
    counters = {n: torch.zeros_like(w, device="cpu") for n, w in wanted.items() if n not in renamed}
    return {**renamed, **counters}


def _classes_in(given: Shapes, preset: str, config: ModelConfig) -> int | None:
    """The number of classes with which every shape of the model would be the ``given`` one, or None."""
    here, more = _shapes(preset, config, config.num_classes), _shapes(preset, config, config.num_classes + 1)
    candidates: set[int] = set()
    for name in here.keys() & more.keys() & given.keys():
        for now, next_, there in zip(here[name], more[name], given[name], strict=False):
            if next_ != now:
                candidates.add(config.num_classes + (there - now) // (next_ - now))
    if len(candidates) != 1 or (count := candidates.pop()) < 1:
        return None
    shapes = _shapes(preset, config, count)
    return count if all(shapes.get(name) == shape for name, shape in given.items()) else None


def _shapes(preset: str, config: ModelConfig, classes: int) -> Shapes:
    """The shapes of the model's tensors with so many classes; none where there is no such model."""
    try:
        with torch.device("meta"):
            state = zoo.model_class(preset)(change(config, num_classes=classes)).state_dict()
    except (ValueError, RuntimeError, ArithmeticError, LookupError):
        return {}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
