"""What a safetensors file holds, from the JSON at its start: names, types and shapes of its tensors, and texts.

A safetensors file starts with eight bytes, the length of a JSON text, and this text. Nothing behind it is read here,
and nothing in it is believed: the file may come from anywhere.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskkit.errors import DataError
from maskkit.files import require_file

MAX_LISTING = 8 << 20
"""Largest length of the JSON text, in bytes; ours have some tens of thousands."""

_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_BYTES |= {
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file that has not been read."""

    dtype: str
    """As in the format: F32, BF16, I64, ..."""
    shape: tuple[int, ...]

    @property
    def floating(self) -> bool:
        """Whether its values are real numbers."""
        return self.dtype.startswith(("F", "BF"))


@dataclass(frozen=True)
class Listing:
    """The start of a safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` is a safetensors file, by its content: users rename files.

    Raises `DataError` for a file that cannot be read, and at once for what is no file (a folder, a named pipe, a
    device).
    """
    return first_bytes(path, 9)[8:] == b"{"


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file. Raises `DataError` for one that cannot be read, or is no regular file."""
    require_file(path, "weight file")
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def read_listing(path: Path) -> Listing:
    """What a safetensors file holds. Raises `DataError` for any other file, and for a damaged one."""
    if not is_safetensors(path):
        raise DataError(f"{path}: not a safetensors file; convert other formats: maskkit import {path} --model PRESET")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size:
                raise ValueError("the list of tensors is incomplete")
            if length > MAX_LISTING:
                raise ValueError(f"its list of tensors has {length} bytes, more than {MAX_LISTING}")
            content = parse_json(file.read(length))
        metadata = content.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are no texts")
        ends = [_end(entry, name) for name, entry in content.items()]
        tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in content.items()}
        place = 0
        for begin, end in sorted(ends):
            if begin != place:
                raise ValueError("its tensors overlap or leave gaps")
            place = end
        if 8 + length + place != size:
            raise ValueError(f"{size} bytes instead of {8 + length + place}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); copy or download it again") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged or cut off ({one_line(error)}); copy or download it again") from None
    return Listing(metadata, tensors)


def parse_json(text: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises ``ValueError`` or ``RecursionError`` for anything else, and for a name that comes twice."""
    content = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def one_line(error: BaseException | str, most: int = 200) -> str:
    """A message about data from anywhere for within a line: short, and without control characters."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = " ".join(str(error).split())[:most]
    return "".join(c if c.isprintable() else "?" for c in text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _end(entry: Any, name: str) -> tuple[int, int]:
    """Where a tensor begins and ends. Raises ``ValueError`` for an entry that contradicts itself."""
    name = repr(name[:100])
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"tensor {name} has an unknown type")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError(f"tensor {name} has an impossible shape or place")
    if len(shape) > 32 or len(offsets) != 2 or offsets[1] - offsets[0] != _BYTES[dtype] * math.prod(shape):
        raise ValueError(f"tensor {name} has another size than its shape says")
    return offsets[0], offsets[1]
