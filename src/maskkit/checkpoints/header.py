"""The description in a weight file, read from the JSON at its start, without torch and without the tensors.

A safetensors file starts with eight bytes, the length of a JSON text, and this text. It lists the tensors and has
string metadata; the entry ``maskkit`` describes the model completely.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import maskkit
from maskkit.config import RunConfig, to_dict
from maskkit.decode import Decoder
from maskkit.decode import from_dict as decoder_from_dict
from maskkit.decode import to_dict as decoder_to_dict
from maskkit.errors import DataError
from maskkit.prediction import Categories

FORMAT = 1
"""Version of the layout; a file with a higher one is refused."""

_PARTS = {"version", "config", "categories", "decoder", "info"}


def make_header(config: RunConfig, categories: Categories, decoder: Decoder, info: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a checkpoint, as `read_header` returns it."""
    classes = {"names": list(categories.names), "ids": list(categories.ids), "things": list(categories.things)}
    return {
        "format": FORMAT,
        "version": maskkit.__version__,
        "config": to_dict(config),
        "categories": classes,
        "decoder": decoder_to_dict(decoder),
        "info": dict(info),
    }


def read_header(path: str | Path) -> dict[str, Any]:
    """The description in a checkpoint: ``version``, ``config``, ``categories``, ``decoder`` and ``info``.

    Raises `DataError` for a file that is missing, damaged, too new, or not a checkpoint of maskkit.
    """
    path = Path(path)
    text = read_metadata(path).get("maskkit")
    if text is None:
        raise DataError(
            f"{path}: contains tensors but no maskkit model; convert it: maskkit import {path} --model PRESET"
        )
    try:
        header = json.loads(text)
        known = header["format"] <= FORMAT
        complete = header.keys() >= _PARTS
    except (ValueError, KeyError, TypeError, AttributeError):
        known, complete, header = True, False, {}
    if not known:
        raise DataError(f"{path}: its layout {header['format']} is newer than this maskkit; upgrade maskkit")
    if not complete:
        raise DataError(f"{path}: its description is damaged; copy or download it again")
    return header


def categories_of(header: Mapping[str, Any]) -> Categories:
    """The classes of a checkpoint; all are things where the file does not say."""
    return Categories(**{name: tuple(values) for name, values in header["categories"].items()})


def decoder_of(header: Mapping[str, Any], path: Path) -> Decoder:
    """The decoder of a checkpoint. Raises `DataError` for one that this version does not have."""
    try:
        return decoder_from_dict(header["decoder"])
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: written by maskkit {header['version']}: {error}; upgrade maskkit") from None


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a checkpoint of maskkit, rather than weights from elsewhere."""
    return is_safetensors(path) and "maskkit" in read_metadata(path)


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` is a safetensors file, by its content: users rename files."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises `DataError` for any other file, and for a damaged one."""
    if not is_safetensors(path):
        raise DataError(f"{path}: not a safetensors file; convert other formats: maskkit import {path} --model PRESET")
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size:
                raise ValueError("the list of tensors is incomplete")
            content = json.loads(file.read(length))
        texts = content.pop("__metadata__", None) or {}
        end = max((tensor["data_offsets"][1] for tensor in content.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes instead of {8 + length + end}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy or download it again") from None
    return texts
