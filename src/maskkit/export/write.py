"""`export`: writes a checkpoint as a file for another runtime, after comparing the file with the checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from maskkit.checkpoints.checkpoint import Checkpoint
from maskkit.checkpoints.exported import SUFFIXES, ExportedAs, Format
from maskkit.checkpoints.header import make_header
from maskkit.config import BackboneModelConfig, InputConfig, to_dict
from maskkit.data.dataset import Dataset
from maskkit.errors import MaskkitError
from maskkit.eval.numbers import Metric, shown
from maskkit.export.check import LEAST, Agreement, compare
from maskkit.export.graph import DYNAMIC, MULTIPLE, Graph, trace
from maskkit.files import DEMO_IMAGES, replacing
from maskkit.infer.predict import Predictor
from maskkit.infer.runtimes import FILES, Runtime, require
from maskkit.infer.torch_runtime import TorchRuntime, predictor

Say = Callable[[str], None]

_OPEN = (384, 512)
"""Least height and width for tracing a graph of dynamic size: no map of a pyramid may have a single row or column."""

LOSS = {"fp32": 0.001, "bf16": 0.01, "fp16": 0.01, "int8": 0.01}
"""Largest allowed drop of the first main metric (AP, mIoU, PQ) in each precision."""


@dataclass(frozen=True)
class ExportConfig:
    """The choices of an export."""

    size: tuple[int, int] | None = None
    """Height and width of the network's input; by default those of the checkpoint."""
    batch: int = 1
    """Images per call of the file."""
    dynamic: tuple[Literal["batch", "size"], ...] = ()
    """What may vary from call to call: the number of images, their height and width."""
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """Precision of the arithmetic. bf16 and fp16 are for OpenVINO only; all but fp32 need ``data``."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    agreement: Agreement | None
    """With the checkpoint, with the same preprocessing; None for a lower precision, which is evaluated instead."""
    resized: Agreement | None
    """With the checkpoint and its own preprocessing, if that of the file differs; else None."""
    before: dict[str, Metric] | None
    """Main metrics of the checkpoint on the given data, or None."""
    after: dict[str, Metric] | None
    """Main metrics of the file."""


def export(
    checkpoint: Checkpoint,
    path: Path,
    config: ExportConfig = ExportConfig(),
    *,
    images: Sequence[Any] = (),
    data: Dataset | None = None,
    calibration: Dataset | None = None,
    measure: Callable[[Predictor, Dataset], Mapping[str, Metric]] | None = None,
    force: bool = False,
    say: Say = lambda line: None,
) -> Exported:
    """Write ``path``, an ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` file, from ``checkpoint``.

    The file is compared with the checkpoint on ``images`` (by default those of the package) and on an image of noise,
    and written only if at least the share `LEAST` of the objects agrees. With ``data``, ``measure`` evaluates both, and
    the file is written only if the first metric drops by at most `LOSS`; int8 is calibrated on ``calibration``.
    ``force`` writes a file that fails these checks. ``say`` is called with a line for each step. Raises `MaskkitError`
    if the method does not support this export, or if the file disagrees or loses more than allowed.
    """
    kind = _kind(checkpoint, path, config, data, calibration)
    given = checkpoint.config.input
    input = _input(given, config)
    reference = predictor(checkpoint.model, input, checkpoint.categories, "cpu", fold=True)
    assert isinstance(reference.runtime, TorchRuntime)
    compared = [*(list(images) or sorted(DEMO_IMAGES.glob("*.jpg"))), _noise()]
    say("tracing")
    graph = _trace(reference.runtime, input, config)
    description = _description(checkpoint, input, config, graph, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as folder:
        made = Path(folder) / path.name
        files = _write(made, kind, graph, description, checkpoint, config, (reference, calibration, say))
        say("checking")
        other = replace(reference, runtime=open_runtime(made))
        if config.dynamic and kind != "pt2":
            _try_other_shapes(path, reference.runtime, other.runtime, input, config)
        found = compare(reference, other, compared) if config.precision == "fp32" else None
        if found is not None and found.share < LEAST and not force:
            raise MaskkitError(
                f"{path}: not written, because it disagrees with the checkpoint ({found}); --force writes it anyway"
            )
        resized = None
        if input.resize != given.resize:
            resized = compare(replace(reference, input=given), other, compared)
        before = after = None
        if data is not None and measure is not None:
            say(f"measuring on {len(data)} images")
            before = dict(measure(replace(reference, input=given), data))
            after = dict(measure(other, data))
            if not force:
                _refuse_loss(path, before, after, config.precision)
        checked = {"agreement": _plain(found), "resized": _plain(resized), "before": before, "after": after}
        description["export"]["checked"] = checked
        _describe(made, kind, description, checkpoint.categories.names)
        del other  # Windows does not rename files that are open
        _put(files, path)
    return Exported(path, found, resized, before, after)


def _put(files: list[Path], path: Path) -> None:
    """Move the ``files`` of an export to ``path``; weights that lay beside an earlier ``.onnx`` file go with it."""
    beside = None
    if path.suffix == ".onnx":
        from maskkit.export.onnx import weights_beside

        beside = weights_beside(path)
    if len(files) > 1:  # a process killed here must not leave the graph of one model with the weights of another
        path.unlink(missing_ok=True)
    for file in files:
        with replacing(path.with_suffix(file.suffix)) as temporary:
            os.replace(file, temporary)
    if beside is not None and len(files) == 1:
        beside.unlink()


def open_runtime(path: Path, device: str | None = None, threads: int | None = None) -> Runtime:
    """The runtime of an exported file."""
    if path.suffix in FILES:
        return FILES[path.suffix](path, device, threads)
    from maskkit.infer.torch_runtime import PackageRuntime

    return PackageRuntime(path)


def _kind(
    checkpoint: Checkpoint, path: Path, config: ExportConfig, data: Dataset | None, calibration: Dataset | None
) -> Format:
    """The format of ``path``, after checking what it needs. Raises `MaskkitError`."""
    kind = SUFFIXES.get(path.suffix)
    if kind is None:
        raise MaskkitError(f"{path}: the suffix chooses the format; it is one of {', '.join(SUFFIXES)}")
    if unknown := [d for d in config.dynamic if d not in DYNAMIC]:
        raise MaskkitError(f"{unknown[0]!r} cannot be dynamic; {' and '.join(DYNAMIC)} can")
    if config.batch < 1:
        raise MaskkitError(f"a file takes at least 1 image per call, not {config.batch}")
    for module in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript")}.get(kind, ()):
        require(module, "export")
    if kind == "openvino":
        require("openvino", "openvino")
    if config.precision == "int8":
        require("nncf", "export")
    allowed = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16", "fp16", "int8"), "pt2": ("fp32",)}[kind]
    if config.precision not in allowed:
        raise MaskkitError(f"{path}: {config.precision} is not for {path.suffix} files; {' or '.join(allowed)} is")
    backbone = checkpoint.config.model
    if "size" in config.dynamic and isinstance(backbone, BackboneModelConfig) and backbone.backbone.pad_same:
        raise MaskkitError(
            f"{path}: the convolutions of {backbone.backbone.name} pad by the size of the image (as in TensorFlow), so "
            "that this cannot be left open; choose --size"
        )
    if config.precision != "fp32" and data is None:
        raise MaskkitError(f"{config.precision} changes the masks: name the data on which this is measured")
    if config.precision == "int8" and (calibration is None or len(calibration) < 50):
        raise MaskkitError(f"int8 is calibrated on at least 50 images, the data have {len(calibration or ())}")
    return kind


def _input(given: InputConfig, config: ExportConfig) -> InputConfig:
    """The input of the file: of fixed size, even if that of the checkpoint depends on the image, unless it is
    dynamic."""
    if "size" in config.dynamic:
        given = replace(given, multiple=MULTIPLE)
    if config.size is None and (given.resize != "shorter" or "size" in config.dynamic):
        return given
    short, long = given.size
    if given.resize == "shorter":  # some presets have no limit
        long = min(long, short * 5 // 3)
    size = config.size or tuple(-(-side // MULTIPLE) * MULTIPLE for side in (short, long))
    if min(size) < MULTIPLE:
        raise MaskkitError(f"an input of {size[0]} x {size[1]} is too small; the least is {MULTIPLE} x {MULTIPLE}")
    resize = "pad" if given.resize == "shorter" and "size" not in config.dynamic else given.resize
    return replace(given, size=(size[0], size[1]), resize=resize)


def _canvas(input: InputConfig) -> tuple[int, int]:
    """A possible height and width of the input."""
    if input.resize != "shorter":
        return input.size
    short = -(-input.size[0] // MULTIPLE) * MULTIPLE
    return short, -(-min(input.size[0] * 4 // 3, input.size[1]) // MULTIPLE) * MULTIPLE


def _trace(runtime: TorchRuntime, input: InputConfig, config: ExportConfig) -> Graph:
    count = 2 if "batch" in config.dynamic else config.batch
    size = _canvas(input)
    if "size" in config.dynamic:  # a dimension of one cell would become a constant of the graph
        size = tuple(max(side, least) for side, least in zip(size, _OPEN, strict=True))
    images = torch.zeros(count, 3, *size)
    # tensors created in inference mode cannot be exported
    with runtime.evaluating(images) as network, torch.inference_mode(False):
        return trace(network, images, config.dynamic, sized=input.resize != "stretch")


def _description(
    checkpoint: Checkpoint, input: InputConfig, config: ExportConfig, graph: Graph, kind: Format
) -> dict[str, Any]:
    model = checkpoint.model
    portable = replace(checkpoint.config, model=checkpoint.config.model.portable(), input=input)
    header = make_header(portable, checkpoint.categories, model.decoder, checkpoint.info)
    header["config"].pop("data", None)  # its paths are not valid elsewhere
    exported = ExportedAs(
        task=model.task,
        format=kind,
        size=None if "size" in config.dynamic else _canvas(input),
        batch=None if "batch" in config.dynamic else config.batch,
        inputs=graph.inputs,
        outputs=graph.outputs,
        same=graph.same,
        precision=config.precision,
        weights=fingerprint(model),
        checked={},
    )
    return {**header, "export": to_dict(exported)}


def fingerprint(model: nn.Module) -> str:
    """sha256 of the names and values of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _write(
    made: Path,
    kind: Format,
    graph: Graph,
    description: dict[str, Any],
    checkpoint: Checkpoint,
    config: ExportConfig,
    calibrated: tuple[Predictor, Dataset | None, Say],
) -> list[Path]:
    """Write the file, and a file of weights if they are separate; returns them, the file itself last."""
    reference, calibration, say = calibrated
    if kind == "pt2":
        from maskkit.export.package import to_package

        say("compiling")
        to_package(graph, made, description)
        return [made]
    from maskkit.export.onnx import save, to_onnx

    say("writing ONNX")
    model = to_onnx(graph, description, checkpoint.categories.names)
    onnx = made.with_suffix(".onnx")
    files = save(model, onnx)
    if config.precision == "int8":
        from maskkit.export import quantize

        assert calibration is not None
        say(f"calibrating on {len(calibration)} images")
        inputs = quantize.calibration(reference, calibration, config.batch, graph.inputs)
        if kind == "openvino":
            quantize.openvino_int8(onnx, made, description, inputs)
        else:
            files = quantize.onnx_int8(onnx, inputs)  # fewer, if its weights fit into one now
    elif kind == "openvino":
        from maskkit.export.openvino import to_openvino

        say("converting to OpenVINO")
        to_openvino(onnx, made, description, half=config.precision != "fp32")
    return files if kind == "onnx" else [made.with_suffix(".bin"), made]


def _describe(made: Path, kind: Format, description: dict[str, Any], names: tuple[str, ...]) -> None:
    """Write the description again, now with the results of the checks."""
    if kind == "onnx":
        import onnx

        from maskkit.export.onnx import save, write_description

        model = onnx.load(made)
        write_description(model, description, names)
        save(model, made)  # writes the same number of files again
    elif kind == "openvino":
        from xml.etree import ElementTree

        tree = ElementTree.parse(made)
        entry = tree.getroot().find("rt_info/maskkit")
        assert entry is not None
        entry.set("value", json.dumps(description))
        tree.write(made, encoding="utf-8", xml_declaration=True)
    else:
        from maskkit.export import package

        package.write_description(made, description)


def _refuse_loss(path: Path, before: Mapping[str, Metric], after: Mapping[str, Metric], precision: str) -> None:
    """Raise `MaskkitError` if the first metric drops by more than `LOSS`."""
    name, value = next(iter(before.items()))
    if value is not None and value - (after[name] or 0.0) > LOSS[precision]:
        raise MaskkitError(
            f"{path}: not written, because {name} falls from {shown(value)} to {shown(after[name])} on these data, and "
            f"{precision} may cost {LOSS[precision]}; --force writes it anyway"
        )


def _try_other_shapes(
    path: Path, ours: TorchRuntime, theirs: Runtime, input: InputConfig, config: ExportConfig
) -> None:
    """Run the file with other shapes than it was traced with, which may fail although the export succeeded."""
    height, width = _canvas(input)
    count = 3 if "batch" in config.dynamic else config.batch
    size = (height + MULTIPLE, width + 2 * MULTIPLE) if "size" in config.dynamic else (height, width)
    noise = np.random.default_rng(0).normal(size=(count, 3, *size)).astype(np.float32)
    sizes = np.array([size] * count)
    try:
        found = theirs.run(noise, sizes)
    except MaskkitError as error:
        reason = str(error).partition(": ")[2]  # behind the name of the temporary file
        raise MaskkitError(f"{path}: not written, because it {reason}; leave --dynamic out") from None
    wanted = ours.run(noise, sizes)
    if any(found[name].shape != array.shape for name, array in wanted.items()):
        raise MaskkitError(f"{path}: not written, because other shapes give outputs of the wrong size")


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)


def _plain(found: Agreement | None) -> dict[str, Any] | None:
    return asdict(found) if found is not None else None
