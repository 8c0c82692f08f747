"""PyTorch's own files: pickles of plain tensors, whose code is never run, and whose sizes are looked at first."""

import logging
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskkit.checkpoints.array_pickles import globals_of, is_pickle, load_arrays
from maskkit.checkpoints.inert import Array, is_skipped, stand_in
from maskkit.checkpoints.listing import first_bytes, one_line
from maskkit.checkpoints.other_formats import other_format
from maskkit.errors import DataError

MAX_PICKLE = 16 << 20
"""Largest pickle within a file of PyTorch, in bytes; the tensors are not in it."""

_MAX_ENTRIES = 200_000

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of PyTorch before 1.6 begin: a pickle of a number."""

_LOCK = threading.Lock()
"""The names that PyTorch allows are those of the process."""


def load_pickle(path: Path) -> Any:
    """What `torch.load` gives for plain tensors, lists and dicts, and `load_arrays` for a pickle of NumPy arrays.

    Arrays are `maskkit.checkpoints.inert.Array`. Objects of training programs, which some save beside the weights, are
    left out, and a warning in the log names them. Raises `DataError` for a damaged file, a file of another framework,
    a pickle that would run code, and one that unpacks to more than the file has.
    """
    is_zip = _check_zip(path)
    hint = None if is_zip else other_format(path)
    start = first_bytes(path, len(_LEGACY))
    if not is_zip and hint is None and is_pickle(start) and start != _LEGACY:
        return load_arrays(path)
    try:
        names = _names_in(path, is_zip)
        stand_ins: list[Any] = [(found, name) for name in sorted(names) if (found := stand_in(name)) is not None]
        with warnings.catch_warnings(), _LOCK:  # about how the file was written, of no use to who reads it
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(stand_ins):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file can make the unpickler fail in any way
        if hint is not None:
            raise DataError(f"{path}: not read: {hint}") from None
        raise DataError(
            f"{path}: not read: it is damaged, or contains more than tensors, and a pickle can run code "
            f"({_reason(error)}); if you trust it, save its state_dict with safetensors"
        ) from None
    if skipped := sorted(filter(is_skipped, names)):
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        logging.getLogger("maskkit").warning(
            "%s: left out what is no weight: objects of %s%s", path, ", ".join(skipped[:3]), more
        )
    return content


def _names_in(path: Path, is_zip: bool) -> set[str]:
    """What the pickles of a file of PyTorch name and PyTorch itself does not know."""
    names: set[str] = set()
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as file:
                        names |= globals_of(file.read())
    else:
        with open(path, "rb") as file:
            for _ in range(5):  # a number, a version, the machine, the content, the keys of its tensors
                names |= globals_of(file)
    return {name for name in names if name not in ("_codecs.encode", "collections.OrderedDict")}


def tensors_in(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors directly in a mapping. Raises `DataError` for one that is no plain array of what the file holds."""
    try:
        plain_values = {n: value.tensor() if isinstance(value, Array) else value for n, value in content.items()}
    except ValueError as error:
        raise DataError(f"{path}: not read: it holds {error}; copy or download it again") from None
    state = {str(name): value for name, value in plain_values.items() if isinstance(value, Tensor)}
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
