"""Files of tensors from anywhere, read without running what is in them: safetensors, and plain PyTorch pickles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskkit.errors import DataError
from maskkit.files import replacing

_WRAPPERS = ("model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module", "params")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a weight file from anywhere: safetensors, or a PyTorch pickle that holds nothing but data.

    Common wrappers (``state_dict``, ``model``, an average of the weights first) and the ``module.`` of data-parallel
    training are taken off. A pickle that would run code is refused unread. Raises `DataError`.
    """
    path = Path(path)
    if is_safetensors(path):
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can make the unpickler fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: not read: damaged, or it holds more than tensors, and a pickle can run code ({reason}); "
            "save its state_dict again with safetensors where you trust it"
        ) from None
    while isinstance(content, Mapping) and (inner := next((w for w in _WRAPPERS if _is_state(content.get(w))), None)):
        content = content[inner]
    state = {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise DataError(f"{path}: holds no named tensors; give a file with a state_dict")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` is one by content, eight bytes of length and then JSON: users rename files."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors. Raises `DataError` for any other file."""
    if not is_safetensors(path):
        raise DataError(f"{path}: no safetensors file; convert other formats: maskkit import {path} --model PRESET")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy or download it again") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises `DataError` for a damaged one."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy or download it again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with texts beside the tensors."""
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}  # safetensors takes no shared memory
    with replacing(path) as temporary:
        save_file(own, temporary, metadata)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0
