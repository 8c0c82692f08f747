"""Weights that are numbers: files with NaN or infinity in them are refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from maskkit.errors import DataError


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise `DataError`, which names the first tensor, where a weight of ``source`` is NaN or infinite."""
    bad = [name for name, tensor in state.items() if not _finite(tensor)]
    if bad:
        tensor = state[bad[0]]
        wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
        raise DataError(
            f"{source}: {len(bad)} of {len(state)} tensors hold NaN or infinity, the first is {bad[0]!r} ({wrong} of "
            f"its {tensor.numel()} values): its training failed or the file is damaged; take an earlier checkpoint"
        )


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:  # a meta tensor has no values
        return True
    # a finite sum has finite terms; only where it overflows is every value looked at
    return bool(torch.isfinite(tensor.float().sum())) or bool(torch.isfinite(tensor).all())
