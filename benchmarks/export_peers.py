"""Files that other libraries export, beside ours, in the same runtimes: milliseconds of the network.

    python benchmarks/export_peers.py
    python benchmarks/export_peers.py --ultralytics PYTHON

Each library writes its file by its own means and with random weights; ONNX Runtime and OpenVINO then run all files of
a group in turn, on the same noise. PYTHON is the interpreter of an environment of its own with ultralytics, onnx and
openvino in it: their licence is the AGPL, so they are measured there and never imported here. A library that cannot
write a file is a line with its error.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
import torchvision
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from common import describe, in_turn
from maskkit import zoo
from maskkit.checkpoints.checkpoint import Checkpoint
from maskkit.checkpoints.listing import one_line
from maskkit.config import RunConfig
from maskkit.export.unit_variance import unit_variance
from maskkit.export.write import ExportConfig, export
from maskkit.prediction import Categories

GROUPS = {
    "Mask R-CNN, ResNet-50, 640 x 640": ("torchvision", "maskrcnn-resnet50", 640),
    "Mask2Former, ResNet-50, 512 x 512": ("transformers", "mask2former-resnet50", 512),
    "Mask2Former, Swin-T, 512 x 512": ("transformers", "mask2former-swin-t", 512),
}

ULTRALYTICS = """
from ultralytics import YOLO
model = YOLO("{name}.yaml", task="segment")
model.export(format="{format}", imgsz={size}, nms={nms}, device="cpu", project="{folder}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ultralytics", type=Path, help="an interpreter that has ultralytics")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (library, preset, size) in GROUPS.items():
            files: dict[str, Callable[[], Path]] = {f"maskkit {preset}": partial(ours, folder, preset, size)}
            files[library] = partial(theirs, folder, preset, size)
            group(title, files, size, given)
        if given.ultralytics is not None:
            small = ("yolact-mobilenetv2-320", "condinst-mobilenetv2-320", "solov2-mobilenetv2-320")
            files = {f"maskkit {p}": partial(ours, folder, p, 640) for p in small}
            for model in ("yolo11n-seg", "yolov8n-seg"):
                files[f"ultralytics {model} with NMS"] = partial(ultralytics, given.ultralytics, folder, model, True)
            group("Small models, 640 x 640", files, 640, given)


def group(title: str, files: dict[str, Callable[[], Path]], size: int, given: argparse.Namespace) -> None:
    """Write the files of a group, run them in turn and print a table."""
    print(f"\n{title}\n\n| file | runtime | time | ms | processor ms | MB |\n|" + " --- |" * 6)
    calls, megabytes = {}, {}
    noise = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    for name, write in files.items():
        try:
            path = write()
        except Exception as error:  # of another library
            print(f"| {name} | - | cannot be written: {type(error).__name__}: {one_line(error)[:200]} | | | |")
            continue
        megabytes[name] = sum(f.stat().st_size for f in path.parent.glob(f"{path.stem}.onnx*")) / 1e6
        for runtime, load in (("ONNX Runtime", in_onnx_runtime), ("OpenVINO", in_openvino)):
            try:
                call = load(path, given.threads, noise)
                call()
            except Exception as error:  # of another library
                print(f"| {name} | {runtime} | cannot run: {type(error).__name__}: {one_line(error)[:200]} | | | |")
                continue
            calls[name, runtime] = call
    _, took = in_turn({" in ".join(key): call for key, call in calls.items()}, given.rounds)
    first = next(iter(took.values()))[1]
    for name, runtime in calls:
        processor, wall = took[f"{name} in {runtime}"]
        cells = (f"{wall / first:.2f}", f"{1000 * wall:.0f}", f"{1000 * processor:.0f}", f"{megabytes[name]:.1f}")
        print(f"| {name} | {runtime} | {' | '.join(cells)} |", flush=True)


def ours(folder: Path, name: str, size: int) -> Path:
    """The ONNX file of a preset with random weights."""
    path = folder / f"{name}-{size}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        preset = zoo.preset(name)
        categories = Categories.of([str(i) for i in range(preset.model.num_classes)])
        config = RunConfig(name, preset.model, preset.input)
        model = unit_variance(zoo.model_class(name)(preset.model), torch.randn(1, 3, size, size))
        export(Checkpoint(model, config, categories, {}), path, ExportConfig(size=(size, size)), least=0)
    return path


def theirs(folder: Path, preset: str, size: int) -> Path:
    """The ONNX file of torchvision or transformers, by PyTorch's own exporter."""
    torch.manual_seed(0)
    path = folder / f"theirs-{preset}.onnx"
    if preset == "maskrcnn-resnet50":
        model: nn.Module = torchvision.models.detection.maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, min_size=size, max_size=size, box_score_thresh=0.0
        )
        example: tuple = ([torch.rand(3, size, size)],)
    else:
        kind = ResNetConfig if "resnet" in preset else SwinConfig
        backbone = kind(out_features=[f"stage{i}" for i in range(1, 5)])  # type: ignore[call-arg]
        config = Mask2FormerConfig(backbone_config=backbone, num_labels=80)  # type: ignore[call-arg]
        model = Mask2FormerForUniversalSegmentation(config)
        example = (torch.rand(1, 3, size, size),)
    errors = []
    for dynamo in (True, False):
        try:
            torch.onnx.export(model.eval(), example, str(path), dynamo=dynamo)
        except Exception as error:  # a dozen kinds
            errors.append(f"{'dynamo' if dynamo else 'TorchScript'} {type(error).__name__}: {one_line(error)[:150]}")
        else:
            return path
    raise RuntimeError("; ".join(errors))


def ultralytics(python: Path, folder: Path, name: str, nms: bool) -> Path:
    """The ONNX file that ultralytics' own command writes."""
    place = folder / name
    place.mkdir(exist_ok=True)
    code = ULTRALYTICS.format(name=name, format="onnx", size=640, nms=nms, folder=place)
    done = subprocess.run([python, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    found = sorted(place.rglob("*.onnx"))
    if not found:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return found[0]


def in_onnx_runtime(path: Path, threads: int, noise: np.ndarray) -> Callable[[], object]:
    """A call that runs the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {}
    for given in session.get_inputs():
        if "int" in given.type:  # the size of the image
            feeds[given.name] = np.array([noise.shape[2:]], np.int64)
        else:
            feeds[given.name] = noise[0] if len(given.shape) == 3 else noise
    return lambda: session.run(None, feeds)


def in_openvino(path: Path, threads: int, noise: np.ndarray) -> Callable[[], object]:
    """A call that runs the file in fp32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    feeds = {}
    for given in compiled.inputs:
        if given.element_type.is_integral():
            feeds[given.any_name] = np.array([noise.shape[2:]], np.int64)
        else:
            feeds[given.any_name] = noise[0] if len(given.partial_shape) == 3 else noise
    return lambda: request.infer(feeds)


if __name__ == "__main__":
    sys.exit(main())
