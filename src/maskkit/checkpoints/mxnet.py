"""MXNet's files of parameters (``.params``), as FCIS publishes them: a list of arrays and a list of their names.

All numbers are little-endian. The file: 64 bits ``0x112``, 64 bits 0, the number of arrays (64 bits), the arrays, the
number of names (64 bits), and each name with its length (64 bits). An array of MXNet 0.9 and before begins with its
number of dimensions; later ones begin with a version, ``0xF993FAC8`` to ``CA``, and have sides of 64 bits in place of
32. Then follow the device (two times 32 bits), the type (32 bits), and the values.
"""

import math
import mmap
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskkit.checkpoints.listing import one_line
from maskkit.errors import DataError

MAGIC = b"\x12\x01" + bytes(6)
"""How such a file begins."""

_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
_MOST = 1_000_000


class _Reader:
    """The numbers of a file one after the other. Raises ``ValueError`` at its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place = content, 0

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > len(self._content) - self._place:
            raise ValueError("it ends too early")
        self._place += count
        return self._content[self._place - count : self._place]

    def number(self, layout: str) -> int:
        """A whole number: ``I`` and ``i`` have 32 bits, ``Q`` and ``q`` 64."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))[0]

    def count(self) -> int:
        """A number of things."""
        if (found := self.number("Q")) > _MOST:
            raise ValueError(f"{found} parts")
        return found

    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self._place == len(self._content)


def read_mxnet(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of parameters by name (``arg:...``, ``aux:...``). Raises `DataError` for a damaged file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content)
            if reader.take(16) != MAGIC + bytes(8):
                raise ValueError("another start")
            arrays = [_array(reader) for _ in range(reader.count())]
            names = [reader.take(reader.count()).decode("utf-8") for _ in range(reader.count())]
            if len(names) != len(arrays) or len(set(names)) != len(names) or not reader.at_end():
                raise ValueError(f"{len(arrays)} arrays with {len(set(names))} names")
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: not read: damaged parameters of MXNet ({one_line(error)}); copy or download it again"
        ) from None
    return {name: tensor for name, tensor in zip(names, arrays, strict=True) if tensor is not None}


def _array(reader: _Reader) -> Tensor | None:
    """The next array; None for an empty one."""
    first = reader.number("I")
    if first in (_V2, _V3) and (kind := reader.number("i")) != 0:
        raise ValueError(f"an array of the sparse kind {kind}")
    newer = first in (_V1, _V2, _V3)
    dimensions = reader.number("i") if newer else first
    if first != _V3 and dimensions == 0:
        return None
    if not 0 <= dimensions <= 32:
        raise ValueError(f"an array of {dimensions} dimensions")
    shape = [reader.number("q" if newer else "I") for _ in range(dimensions)]
    reader.take(8)  # the device
    number = reader.number("I")
    if number >= len(_TYPES) or any(side < 0 for side in shape):
        raise ValueError(f"an array of type {number} and shape {shape}")
    dtype = np.dtype(_TYPES[number])
    values = np.frombuffer(reader.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    return torch.from_numpy(values.copy())
