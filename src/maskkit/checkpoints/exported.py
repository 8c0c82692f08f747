"""The description in an exported file: that of a checkpoint, and what the export decided. No torch.

It is the JSON of `maskkit.checkpoints.header` with one more part, ``export``:

============= =======================================================================================================
``task``      a key of `maskkit.eval.task.TASKS`
``format``    ``onnx``, ``openvino`` or ``pt2``
``size``      height and width of the network's input; null: any multiples of 32
``batch``     images per call; null: any number
``inputs``    ``images``, and ``sizes`` for methods that look at the size of each image inside its padding
``outputs``   names of the outputs, which are fields of the decoder's outputs
``same``      fields that are not given because they equal another one
``precision`` ``fp32``, ``bf16``, ``fp16`` or ``int8``
``weights``   sha256 of the tensors that were exported
``checked``   what the export compared with the checkpoint, and what it found
============= =======================================================================================================
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskkit.checkpoints.header import sound_header
from maskkit.config import InputConfig, from_dict
from maskkit.errors import DataError

PARTS = {"task", "format", "size", "batch", "inputs", "outputs", "same", "precision", "weights", "checked"}


def read_description(path: Path, text: str | None) -> dict[str, Any]:
    """The description of the exported file ``path``, from the ``text`` in its metadata. Raises `DataError`."""
    if text is None:
        raise DataError(
            f"{path}: has no description of maskkit, so its classes, its input and the meaning of its outputs are "
            "unknown; maskkit runs files that maskkit export wrote"
        )
    description = sound_header(text, path)
    export = description.get("export")
    if not isinstance(export, dict) or not export.keys() >= PARTS:
        raise DataError(f"{path}: its description does not say how it was exported; export it again")
    return description


def input_of(description: Mapping[str, Any], path: Path) -> InputConfig:
    """How images become the input of an exported file. Raises `DataError`."""
    try:
        return from_dict(description["config"]["input"], InputConfig)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: its input cannot be understood ({error}); export it again") from None
