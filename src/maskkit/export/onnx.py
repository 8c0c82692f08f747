"""An ONNX file of a graph, with its description in the metadata."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from google.protobuf.message import DecodeError
from onnxscript import opset20
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskkit.checkpoints.listing import one_line
from maskkit.errors import MaskkitError
from maskkit.export.graph import Graph
from maskkit.geometry.nms import NMS_MASK

if TYPE_CHECKING:
    import onnx

OPSET = 20

LARGEST = 1_900_000_000
"""Largest number of bytes of weights inside an ONNX file; protobuf is limited to 2 GiB."""

op: Any = opset20  # Any, because its type hints do not allow tensors of unknown type

FORBIDDEN = frozenset({"Loop", "Scan", "If", "SequenceEmpty", "SequenceInsert", "SequenceAt", "ConcatFromSequence"})
"""Operators that no graph of a method may have: runtimes run them slowly or not at all."""


def to_onnx(graph: Graph, description: Mapping[str, Any], names: tuple[str, ...]) -> onnx.ModelProto:
    """The graph as ONNX, opset `OPSET`. ``description`` becomes the metadata ``maskkit``; ``names`` are the classes.

    Raises `MaskkitError` for a graph with an operator of `FORBIDDEN`, with one that ONNX does not have, or with a
    ``Resize`` that antialiases.
    """
    # fused attention kernels use another memory order than the graph was traced with
    try:
        with _quiet(), sdpa_kernel(SDPBackend.MATH):
            program = torch.onnx.export(
                graph.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                custom_translation_table={NMS_MASK: _nms_mask},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        why = one_line(error.__cause__ or error)
        raise MaskkitError(f"this graph has no form in ONNX ({why}); leave --dynamic out where it was given") from None
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    if found := FORBIDDEN & {node.op_type for node in model.graph.node}:
        raise MaskkitError(f"the graph has {', '.join(sorted(found))}, which runtimes run slowly or not at all")
    if any(attribute.name == "antialias" and attribute.i for n in model.graph.node for attribute in n.attribute):
        raise MaskkitError(
            "the graph resizes with antialiasing, which OpenVINO leaves out; the model has to do it by "
            "maskkit.geometry.resample_tensors.resize_antialiased"
        )
    for node in model.graph.node:  # without source locations, which are half of the file
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    write_description(model, description, names)
    return model


def write_description(model: onnx.ModelProto, description: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Set the metadata: maskkit reads ``maskkit``, the other entries are for people and other programs."""
    del model.metadata_props[:]
    export = description["export"]
    plain = {
        "maskkit": json.dumps(description),
        "task": export["task"],
        "names": json.dumps(dict(enumerate(names))),
        "imgsz": json.dumps(export["size"]),
    }
    for key, value in plain.items():
        model.metadata_props.add(key=key, value=value)


def _nms_mask(boxes: Any, scores: Any, threshold: float) -> Any:
    """`maskkit::nms_mask` by ONNX's NMS, which returns the kept rows (image, class, box) of all images."""
    count = op.Shape(scores, start=1, end=2)
    limit = op.Constant(value_float=float(threshold))
    rows = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), count, limit)
    places = op.Gather(rows, op.Constant(value_ints=[0, 2]), axis=1)  # (kept, 2): image, box
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(rows, start=0, end=1))
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    return op.Cast(op.ScatterND(zeros, places, ones), to=9)  # bool


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's messages, which are about its internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def save(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write the file; weights of more than `LARGEST` bytes go into a second file, ``.data``.

    Returns the files, the ``.onnx`` file last. ``model`` cannot be used afterwards.
    """
    import onnx

    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)  # otherwise it would be appended to
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST
    onnx.save_model(model, str(path), save_as_external_data=large, location=data.name)
    return [data, path] if large else [path]


def weights_beside(path: Path) -> Path | None:
    """The second file of weights that the ONNX file ``path`` reads, if both are there."""
    import onnx

    data = path.with_suffix(".data")
    if not path.is_file() or not data.is_file():
        return None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:  # a damaged file, or another one of this name
        return None
    read = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    return data if data.name in read else None
