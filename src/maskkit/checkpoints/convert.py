"""Conversion of official checkpoints to our parameter names, by the key map of the method and checked strictly."""

from typing import Any

import torch
from torch import Tensor

from maskkit import zoo
from maskkit.config import change
from maskkit.errors import DataError
from maskkit.nn.finite import check_finite


def convert(state: dict[str, Tensor], preset: str, **knobs: Any) -> dict[str, Tensor]:
    """The state dict of an official checkpoint under our names, ready for ``load_state_dict`` of the preset's model.

    ``knobs`` change the preset's model config (``num_classes=3`` for a checkpoint trained on three classes). Raises
    `DataError` when the method has no key map, a tensor of the checkpoint has no place in the model, one of the model's
    gets no tensor, a shape differs, or a weight is NaN or infinite.
    """
    method, found = zoo.method(preset), zoo.preset(preset)
    if method.rename is None:
        raise DataError(f"no foreign weights of {method.title} are known ({method.agreement}); train it")
    renamed = method.rename(state)
    with torch.device("meta"):
        wanted = method.model(change(found.model, **knobs)).state_dict()  # type: ignore[call-arg]
    left, missing = sorted(set(renamed) - set(wanted)), sorted(set(wanted) - set(renamed))
    # old checkpoints lack batch norm's counter, which does not affect the output
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    if left or missing:
        raise DataError(
            f"this checkpoint does not fit {preset!r}: {len(left)} tensors have no place (first: {left[:1]}), "
            f"{len(missing)} of the model's get none (first: {missing[:1]})"
        )
    for name, tensor in renamed.items():
        if tensor.shape != wanted[name].shape:
            raise DataError(
                f"{name!r} has shape {tuple(tensor.shape)} in the checkpoint, {preset!r} needs "
                f"{tuple(wanted[name].shape)}; check the number of classes and the preset"
            )
    check_finite(renamed, preset)
    counters = {n: torch.zeros_like(w, device="cpu") for n, w in wanted.items() if n not in renamed}
    return {**renamed, **counters}
