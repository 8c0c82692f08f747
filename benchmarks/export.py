"""A checkpoint and what it is exported to: AP, time from the image file to run lengths, size of the files.

    python benchmarks/export.py --data DATA/coco_instances
    python benchmarks/export.py --formats onnx openvino --presets yolact-resnet50 maskrcnn-resnet50

All runtimes take turns, so that other work on the machine affects them alike; times are medians of the rounds.
``--presets`` adds models with random weights, scaled so that they find objects, of which only the network is timed:
`forward` and `select`. bf16 and int8
are measured on the validation split of ``--data``; int8 is calibrated on its training split.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from common_timing import describe, in_turn
from maskkit import zoo
from maskkit.api import Segmenter, load
from maskkit.checkpoints.checkpoint import Checkpoint, load_model
from maskkit.checkpoints.find import find_weights
from maskkit.config import RunConfig
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.eval.numbers import shown
from maskkit.export.unit_variance import unit_variance
from maskkit.export.write import ExportConfig, export
from maskkit.infer.torch_runtime import predictor
from maskkit.prediction import Categories

FORMATS: dict[str, tuple[str, Literal["fp32", "bf16", "int8"]]] = {
    "onnx": (".onnx", "fp32"),
    "openvino": (".xml", "fp32"),
    "openvino bf16": (".xml", "bf16"),
    "onnx int8": (".onnx", "int8"),
    "openvino int8": (".xml", "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="without it, no checkpoint is measured")
    parser.add_argument("--checkpoint", default="built-in")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--presets", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=20, help="images that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    with tempfile.TemporaryDirectory() as folder:
        if given.data is not None:
            whole(given, Path(folder))
        if given.presets:
            print("| network | runtime | processor time | time | ms |\n|" + " --- |" * 5)
        for preset in given.presets:
            network(preset, Path(folder), [f for f in given.formats if FORMATS[f][1] == "fp32"], given)


def whole(given: argparse.Namespace, folder: Path) -> None:
    """The checkpoint with its data: from the image file to run lengths."""
    train_set, val_set = open_splits(str(given.data), None, 0.2, 0)
    checkpoint = load_model(find_weights(given.checkpoint))
    segmenters = {"torch": load(given.checkpoint, "cpu", given.threads)}
    sizes = {}
    for name in given.formats:
        suffix, precision = FORMATS[name]
        path = Path(folder, name.replace(" ", "-") + suffix)
        export(checkpoint, path, ExportConfig(precision=precision), data=val_set, calibration=train_set)
        segmenters[name] = load(path, threads=given.threads)
        sizes[name] = sum(f.stat().st_size for f in path.parent.glob(f"{path.stem}.*")) / 1e6
    table(segmenters, sizes, val_set, given.images, given.rounds)


def table(
    segmenters: dict[str, Segmenter], sizes: dict[str, float], val_set: Dataset, images: int, rounds: int
) -> None:
    """AP and the time of each."""
    files = [record.path for record in val_set.records[:images]]
    _, took = in_turn({n: lambda s=s: [s.predict(f, score=0.05) for f in files] for n, s in segmenters.items()}, rounds)
    print(f"{len(val_set)} images measured, {images} timed")
    print("| runtime | time | ms per image | processor ms | main metrics | MB |\n|" + " --- |" * 6)
    for name, segmenter in segmenters.items():
        metrics = ", ".join(f"{n} {shown(v)}" for n, v in segmenter.evaluate(val_set).main.items())
        processor, wall = (1000 * seconds / images for seconds in took[name])
        ratio = took[name][1] / took["torch"][1]
        cells = (name, f"{ratio:.2f}", f"{wall:.0f}", f"{processor:.0f}", metrics, f"{sizes.get(name, 0):.1f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def network(name: str, folder: Path, formats: list[str], given: argparse.Namespace) -> None:
    """The time of a random model's network in each runtime."""
    torch.manual_seed(0)
    preset = zoo.preset(name)
    config = RunConfig(name, preset.model, preset.input)
    categories = Categories.of([str(i) for i in range(preset.model.num_classes)])
    input = preset.input
    size = input.size
    if input.resize == "shorter":  # as a photograph of 3:5 would be at most
        longer = min(size[1], round(size[0] * 5 / 3))
        size = (-(-size[0] // 32) * 32, -(-longer // 32) * 32)
    noise = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    model = unit_variance(zoo.model_class(name)(preset.model), torch.from_numpy(noise))
    checkpoint = Checkpoint(model, config, categories, {})
    runtimes = {}
    for kind in formats:
        path = folder / f"{name}{FORMATS[kind][0]}"
        export(checkpoint, path, ExportConfig(size=size), force=True)
        runtimes[kind] = load(path, threads=given.threads)
        input = runtimes[kind].input
    ours = predictor(checkpoint.model, input, categories, "cpu", fold=True).runtime
    sizes = np.array([size])
    calls: dict[str, Callable] = {"torch": lambda: ours.run(noise, sizes)}
    calls |= {kind: lambda s=s: s.runtime.run(noise, sizes) for kind, s in runtimes.items()}
    _, took = in_turn(calls, given.rounds)
    for kind, (processor, wall) in took.items():
        ratios = f"{processor / took['torch'][0]:.2f} | {wall / took['torch'][1]:.2f}"
        print(f"| {name} {size[0]} x {size[1]} | {kind} | {ratios} | {1000 * wall:.0f} |", flush=True)


if __name__ == "__main__":
    main()
