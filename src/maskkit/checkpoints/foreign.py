"""Weight files from any source: safetensors, and PyTorch pickles, whose code is never run."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskkit.checkpoints.header import is_safetensors
from maskkit.errors import DataError
from maskkit.files import replacing, scratch_folder

_WRAPPERS = ("model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module", "params")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a weight file: safetensors, or a PyTorch pickle that contains only data.

    Common wrappers (``state_dict``, ``model``; an EMA of the weights is preferred) and the prefix ``module.`` of
    data-parallel training are removed. Raises `DataError`, also for a pickle that would run code.
    """
    path = Path(path)
    if is_safetensors(path):
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file can make the unpickler fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: not read: it is damaged, or contains more than tensors, and a pickle can run code ({reason}); "
            "if you trust it, save its state_dict with safetensors"
        ) from None
    while isinstance(content, Mapping) and (inner := next((w for w in _WRAPPERS if _is_state(content.get(w))), None)):
        content = content[inner]
    state = {str(n): t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise DataError(f"{path}: contains no named tensors; give a file with a state_dict")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises `DataError` for a damaged file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy or download it again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with tensors and string metadata, atomically. Raises `FileError` where it cannot."""
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}  # safetensors takes no shared memory
    with replacing(path) as temporary, scratch_folder(path) as folder:
        whole = folder / "tensors"  # in a folder of ours, because safetensors leaves a temporary file when it is killed
        try:
            save_file(own, whole, metadata)
        except SafetensorError as error:  # it hides the number of the system's error in its text
            raise _system_error(error) from None
        os.replace(whole, temporary)


def _system_error(error: SafetensorError) -> OSError:
    text = str(error)
    number = re.search(r"os error (\d+)", text)
    code = int(number.group(1)) if number else errno.EIO
    return OSError(code, os.strerror(code) if number else text)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0
