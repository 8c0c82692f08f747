"""Stand-ins for what pickles name: arrays of NumPy become tensors, and objects of training programs become nothing.

A pickle is a program that calls what it names. Here it can only name what is in this table, and nothing of it is the
real thing: arrays are made of their bytes by our own code, and an object of a training program (mmengine's log beside
the weights) is a `Nothing`, whatever is done with it.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_DIMENSIONS = 32

_SKIPPED = (
    "mmengine.",
    "mmcv.",
    "mmdet.",
    "mmseg.",
    "pytorch_lightning.",
    "fvcore.",
    "yacs.",
    "detectron2.",
    "omegaconf.",
    "argparse.Namespace",
)
"""What training programs save beside weights. Their objects are not made."""


class Nothing:
    """An object that was not made. It takes what a pickle does with it."""

    def __new__(cls, *_: Any, **__: Any) -> "Nothing":
        """Any arguments: they are not kept."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Kind:
    """A dtype of NumPy: a number in some byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code.decode("ascii") if isinstance(code, bytes) else code, "="

    def __setstate__(self, state: Any) -> None:
        """``(version, byte order, sub-array, names, fields, ...)``. Raises ``ValueError`` for a compound type."""
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise ValueError("an array of other things than numbers")
        self.order = order

    def dtype(self) -> np.dtype[Any]:
        """The type. Raises ``ValueError`` for anything but the numbers that tensors have."""
        if self.code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
            raise ValueError("an array of other things than numbers")
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


class Array:
    """An array of NumPy: the bytes in the file, and a tensor once it is asked for."""

    def __init__(self, *_: Any) -> None:
        self._parts: tuple[Any, Any, bool, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        """``(version, shape, type, whether the order is Fortran's, bytes)``."""
        _, shape, kind, fortran, content = state
        self._parts = shape, kind, bool(fortran), content

    def tensor(self) -> Tensor:
        """The numbers, in a new tensor. Raises ``ValueError`` where shape, type and bytes contradict."""
        if self._parts is None:
            raise ValueError("an array without content")
        shape, kind, fortran, content = self._parts
        content = content.encode("latin-1") if isinstance(content, str) else content
        if not isinstance(kind, Kind) or not isinstance(content, bytes | bytearray) or not _is_shape(shape):
            raise ValueError("a damaged array")
        dtype = kind.dtype()
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
        found = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(found, dtype.newbyteorder("="), order="C"))


def stand_in(name: str) -> Any:
    """What takes the place of what a pickle calls ``name`` (module, dot, name), or None where it is refused."""
    if name in _TABLE:
        return _TABLE[name]
    return _skipped(name) if name.startswith(_SKIPPED) else None


def is_skipped(name: str) -> bool:
    """Whether objects called ``name`` are not made."""
    return name.startswith(_SKIPPED)


def _skipped(name: str) -> type[Nothing]:
    return type(name.rpartition(".")[2] or "Nothing", (Nothing,), {})


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, tuple)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
    )


def _reconstruct(*_: Any) -> Array:
    """An array to which its state is given afterwards."""
    return Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any = "C") -> Array:
    """An array of protocol 5."""
    array = Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _scalar(kind: Any, content: Any = b"") -> float | None:
    """A single number of NumPy, such as a best score; None for anything else."""
    array = Array()
    array.__setstate__((1, (), kind, False, content))
    try:
        return float(array.tensor())
    except ValueError:
        return None


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin-1")


def _bytes(*parts: Any) -> bytes:
    """How protocol 2 writes no bytes at all."""
    if parts and parts != ((),):
        raise ValueError("bytes of something")
    return b""


def _nothing(*_: Any) -> Nothing:
    return Nothing()


_TABLE: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": Kind,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.getattr": _nothing,  # of an object that was not made: methods of mmengine's log
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    },
}
