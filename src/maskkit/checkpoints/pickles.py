"""PyTorch's own files: pickles of plain tensors, whose code is never run, and whose sizes are looked at first."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskkit.checkpoints.listing import one_line
from maskkit.checkpoints.other_formats import other_format
from maskkit.errors import DataError

MAX_PICKLE = 16 << 20
"""Largest pickle within a file of PyTorch, in bytes; the tensors are not in it."""

_MAX_ENTRIES = 200_000


def load_pickle(path: Path) -> Any:
    """What `torch.load` gives for plain tensors, lists and dicts.

    Raises `DataError` for a damaged file, a file of another framework, a pickle that would run code, and one that
    unpacks to more than the file has.
    """
    is_zip = _check_zip(path)
    try:
        with warnings.catch_warnings():  # about how the file was written, of no use to who reads it
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file can make the unpickler fail in any way
        hint = other_format(path)
        if hint is not None and not is_zip:
            raise DataError(f"{path}: not read: {hint}") from None
        raise DataError(
            f"{path}: not read: it is damaged, or contains more than tensors, and a pickle can run code "
            f"({_reason(error)}); if you trust it, save its state_dict with safetensors"
        ) from None


def tensors_in(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors directly in a mapping. Raises `DataError` for one that is no plain array of what the file holds."""
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    size = path.stat().st_size
    for name, tensor in state.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_complex() or tensor.numel() * tensor.element_size() > max(size, 64):
            raise DataError(
                f"{path}: not read: {name[:200]!r} is no plain tensor whose values are all in the file; save the "
                "state_dict of the model anew"
            )
    return state


def mappings_in(
    content: Any, depth: int = 6, most: int = 10_000
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping in nested mappings with the keys that lead to it, the outermost first, each once.

    A pickle can contain itself: what was seen is not entered again, and neither depth nor number is unlimited.
    """
    seen: set[int] = set()
    row: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(depth):
        following: list[tuple[tuple[str, ...], Any]] = []
        for place, value in row:
            if isinstance(value, Mapping) and id(value) not in seen and len(seen) < most:
                seen.add(id(value))
                yield place, value
                following += [((*place, str(key)), inner) for key, inner in value.items() if isinstance(inner, Mapping)]
        row = following


def _check_zip(path: Path) -> bool:
    """Whether the file is a zip archive. Raises `DataError` for one that is larger unpacked than packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return False
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names and "data.pkl" in names:
        raise DataError(
            f"{path}: not read: it looks like a TorchScript module, which is code; save the state_dict of the model: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    if "data.pkl" not in names and entries:
        inside = "NumPy arrays" if any(name.endswith(".npy") for name in names) else "a zip archive of something else"
        kind = "a Keras model" if "config.json" in names and "model.weights.h5" in names else inside
        raise DataError(
            f"{path}: not read: it looks like {kind}, not like a checkpoint of PyTorch; unpack it, or save its tensors "
            "with safetensors.torch.save_file under the names of the official PyTorch code"
        )
    if unpacked > size or len(entries) > _MAX_ENTRIES or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise DataError(
            f"{path}: not read: it is packed to unpack to {unpacked} bytes from {size}, which PyTorch never writes; "
            "download it from its source again"
        )
    if any(e.filename.endswith("data.pkl") and e.file_size > MAX_PICKLE for e in entries):
        raise DataError(f"{path}: not read: its pickle is larger than {MAX_PICKLE} bytes; save only the state_dict")
    return True


def _reason(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"Unsupported (?:global: GLOBAL|class|operand) (\S+)", text):
        return f"it holds {one_line(found.group(1))}"
    return one_line(text.strip().splitlines()[0]) if text.strip() else type(error).__name__
