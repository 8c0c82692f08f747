"""The description in a weight file, read from the JSON at its start, without torch and without the tensors.

The entry ``maskkit`` of a safetensors file's texts describes the model completely. It is data from anywhere: each part
is checked here for its type and range, and the configuration by `maskkit.checkpoints.checkpoint.config_of`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import maskkit
from maskkit.checkpoints.listing import Listing, is_safetensors, one_line, parse_json, read_listing
from maskkit.config import RunConfig, to_dict
from maskkit.decode import Decoder
from maskkit.decode import from_dict as decoder_from_dict
from maskkit.decode import to_dict as decoder_to_dict
from maskkit.errors import DataError
from maskkit.prediction import Categories

FORMAT = 1
"""Version of the layout; a file with a higher one is refused."""

MAX_CLASSES = 100_000
"""Largest number of classes that a file may have."""

_PARTS = {"version": str, "config": dict, "categories": dict, "decoder": dict, "info": dict}
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,60}")


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
    return header_in(read_listing(path), path)


def header_in(listing: Listing, path: Path) -> dict[str, Any]:
    """The description in the file that starts with ``listing``; see `read_header`."""
    text = listing.metadata.get("maskkit")
    if text is None:
        raise DataError(
            f"{path}: contains tensors but no maskkit model; convert it: maskkit import {path} --model PRESET"
        )
    return sound_header(text, path)


def sound_header(text: str, path: Path) -> dict[str, Any]:
    """The description that ``text`` is, each part checked. Raises `DataError`, which names ``path``."""
    try:
        header = parse_json(text)
        layout = header.get("format")
        if type(layout) is not int or layout < 1:
            raise ValueError("it has no format")
        if layout > FORMAT:
            raise DataError(f"{path}: its layout {layout} is newer than this maskkit; upgrade maskkit")
        for part, kind in _PARTS.items():
            if not isinstance(header.get(part), kind):
                raise ValueError(f"{part} is {'missing' if part not in header else 'of another type'}")
        if not _VERSION.fullmatch(header["version"]):
            raise ValueError("version is none")
        categories_of(header)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: its description is damaged ({one_line(error)}); copy or download it again") from None
    return header


def categories_of(header: Mapping[str, Any]) -> Categories:
    """The classes of a checkpoint; all are things where the file does not say.

    Raises ``ValueError`` where they are damaged, which `read_header` has looked for.
    """
    parts = header["categories"]
    if not parts.keys() <= {"names", "ids", "things"}:
        raise ValueError("categories have unknown fields")
    names, ids, things = (parts.get(field, []) for field in ("names", "ids", "things"))
    for field, values, kinds in (("names", names, (str,)), ("ids", ids, (int, str)), ("things", things, (bool,))):
        if not isinstance(values, list) or not all(type(value) in kinds for value in values):
            raise ValueError(f"categories.{field} is no list of {' or '.join(kind.__name__ for kind in kinds)}")
        if len(values) > MAX_CLASSES:
            raise ValueError(f"categories.{field} has more than {MAX_CLASSES} entries")
    if not len(names) == len(ids) or len(things) not in (0, len(ids)) or len(set(ids)) != len(ids):
        raise ValueError("categories have not one name, one id of their own and one flag for each class")
    return Categories(tuple(names), tuple(ids), tuple(things))


def decoder_of(header: Mapping[str, Any], path: Path) -> Decoder:
    """The decoder of a checkpoint. Raises `DataError` for one that this version does not have."""
    try:
        return decoder_from_dict(header["decoder"])
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: written by maskkit {header['version']}: {one_line(error, 300)}; upgrade maskkit"
        ) from None


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a checkpoint of maskkit, rather than weights from elsewhere."""
    return is_safetensors(path) and "maskkit" in read_metadata(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises `DataError` for any other file, and for a damaged one."""
    return read_listing(path).metadata
