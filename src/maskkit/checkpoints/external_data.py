"""The files in which an ONNX file keeps its weights, read from its protobuf messages. No torch, and no onnx: what runs
such a file does not need that library."""

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from maskkit.errors import DataError

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2
"""Numbers of fields in onnx.proto: of ModelProto, GraphProto, TensorProto, and twice of StringStringEntryProto."""

Part = tuple[int, int]
"""Where a message begins and ends in its file."""


def external_files(path: Path) -> list[str]:
    """The files that hold weights of the ONNX file ``path``, each once, relative to its folder.

    Raises `DataError` for a file that is damaged, or that names one outside of its folder.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = list(dict.fromkeys(_locations(content)))
    except (ValueError, IndexError):  # an empty file cannot be mapped
        raise DataError(f"{path}: is not an ONNX file, or a damaged one; export it again") from None
    for name in names:
        place = PurePosixPath(name)
        if not place.parts or place.is_absolute() or ".." in place.parts or set(name) & set("\\:\0"):
            raise DataError(f"{path}: its weights would be in {name!r}, which is outside of its folder; do not use it")
    return names


def _locations(content: mmap.mmap) -> Iterator[str]:
    """The ``location`` of every tensor of the graph that has one."""
    for graph in _fields(content, (0, len(content)), _GRAPH):
        for tensor in _fields(content, graph, _INITIALIZER):
            for entry in _fields(content, tensor, _EXTERNAL_DATA):
                key, value = (
                    b"".join(content[start:stop] for start, stop in _fields(content, entry, number))
                    for number in (_KEY, _VALUE)
                )
                if key == b"location":
                    yield value.decode()


def _fields(content: mmap.mmap, message: Part, wanted: int) -> Iterator[Part]:
    """The fields of a message with the number ``wanted``, which are messages or texts; all others are passed over.

    Raises `ValueError` or `IndexError` where the bytes are no message.
    """
    place, end = message
    while place < end:
        tag, place = _varint(content, place)
        match tag & 7:
            case 0:
                _, place = _varint(content, place)
            case 1:
                place += 8
            case 2:
                length, place = _varint(content, place)
                if tag >> 3 == wanted and place + length <= end:
                    yield place, place + length
                place += length
            case 5:
                place += 4
            case kind:
                raise ValueError(f"no field has the type {kind}")
    if place != end:
        raise ValueError("a field ends behind its message")


def _varint(content: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError("a number has more than ten bytes")
