"""The description in an exported file: that of a checkpoint, and what the export decided. No torch.

It is the JSON of `maskkit.checkpoints.header` with one more part, ``export``, which is an `ExportedAs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from maskkit.checkpoints.header import sound_header
from maskkit.config import InputConfig, from_dict
from maskkit.errors import DataError, MaskkitError
from maskkit.ranges import Batch, Pixels, check_ranges

Format = Literal["onnx", "openvino", "pt2"]
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
"""The format of a file by its suffix."""


@dataclass(frozen=True)
class ExportedAs:
    """What the export decided, and what it compared."""

    task: str
    """A key of `maskkit.eval.task.TASKS`."""
    format: Format
    size: tuple[Pixels, Pixels] | None
    """Height and width of the network's input; None: any multiples of 32."""
    batch: Batch | None
    """Images per call; None: any number."""
    inputs: tuple[str, ...]
    """``images``, and ``sizes`` for methods that look at the size of each image inside its padding."""
    outputs: tuple[str, ...]
    """Names of the outputs, which are fields of the decoder's outputs."""
    same: dict[str, str]
    """Fields that are not given because they equal another one."""
    precision: Literal["fp32", "bf16", "fp16", "int8"]
    weights: str
    """sha256 of the tensors that were exported."""
    checked: dict[str, Any]
    """What the export compared with the checkpoint, and what it found."""


def read_description(path: Path, text: str | None) -> dict[str, Any]:
    """The description of the exported file ``path``, from the ``text`` in its metadata. Raises `DataError`."""
    if text is None:
        raise DataError(
            f"{path}: has no description of maskkit, so its classes, its input and the meaning of its outputs are "
            "unknown; maskkit runs files that maskkit export wrote"
        )
    description = sound_header(text, path)
    exported_as(description, path)
    return description


def exported_as(description: Mapping[str, Any], path: Path) -> ExportedAs:
    """The part ``export`` of a description. Raises `DataError` for one that is missing or wrong."""
    part = description.get("export")
    if not isinstance(part, dict) or not part.keys() >= {f.name for f in fields(ExportedAs)}:
        raise DataError(f"{path}: its description does not say how it was exported; export it again")
    try:
        found = from_dict(part, ExportedAs)
        check_ranges(found, "")
    except (ValueError, MaskkitError) as error:
        raise DataError(
            f"{path}: its description says wrongly how it was exported ({error}); export it again"
        ) from None
    if "images" not in found.inputs or not set(found.same.values()) <= set(found.outputs):
        raise DataError(f"{path}: its description names inputs and outputs that do not fit; export it again")
    return found


def input_of(description: Mapping[str, Any], path: Path) -> InputConfig:
    """How images become the input of an exported file. Raises `DataError`."""
    try:
        return from_dict(description["config"]["input"], InputConfig)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: its input cannot be understood ({error}); export it again") from None
