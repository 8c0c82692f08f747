"""Milliseconds per image of several models, from the image file to run-length masks.

    python benchmarks/latency.py --data DATA/nuclei_dsb2018 runs/condinst.safetensors runs/yolact.safetensors
    python benchmarks/latency.py --data DATA/building_facades rtmdet-ins-tiny condinst-resnet50-3x yolact-resnet50

``--data`` is any data set that `maskkit check` accepts. The models take turns on every image, so that other work on the
machine affects all of them alike; processor time is affected least. A name of a preset instead of a checkpoint is that
model with random weights, whose class logits are spread so that it finds many objects; the number is printed.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common_timing import describe, seconds
from maskkit import zoo
from maskkit.api import Segmenter, create_model, load
from maskkit.data import open_splits
from maskkit.data.images import read_image
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops
from maskkit.prediction import ImageMeta
from maskkit.targets import Target


@torch.no_grad()
def of_preset(name: str, file: Path) -> Segmenter:
    """The preset with random weights, and class logits that differ: by a standard deviation of 5 for the image ``file``
    where each class is on its own."""
    preset = zoo.preset(name)
    torch.manual_seed(0)
    model = create_model(name).eval()
    classes = preset.model.num_classes

    def spread(layer: nn.Module, _: object, logits: torch.Tensor) -> None:
        layer.weight *= 5 / logits.std()  # type: ignore[operator]
        layer.bias.zero_()  # type: ignore[union-attr, operator]

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 3 * (classes + 1):  # YOLACT: anchors, background
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, nn.Conv2d) and module.out_channels == classes:
            hooks.append(module.register_forward_hook(spread))
    image = read_image(file)
    size = (image.shape[1], image.shape[2])
    sample = (image, Target.of([], []), ImageMeta(1, str(file), size, size))
    model(collate([apply(eval_ops(preset.input), sample, np.random.default_rng(0))], preset.input).images)
    for hook in hooks:
        hook.remove()
    return Segmenter.of(model, preset.input, preset.classes, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints, or names of presets")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.05)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    val_set = open_splits(str(given.data), None, 0.2, 0)[1]
    first = val_set.records[0]
    models = {
        Path(m).stem: load(Path(m), "cpu") if Path(m).is_file() else of_preset(m, Path(first.path))
        for m in given.models
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    found = dict.fromkeys(models, 0)
    for number, record in enumerate([first, *val_set.records[: given.images]]):
        for name, model in models.items():
            objects, *took = seconds(lambda model=model, record=record: model.predict(record.path, score=given.score))
            if number:  # the first image warms up
                times[name].append((1000 * took[0], 1000 * took[1]))
                found[name] += len(objects)
    print(describe(given.threads))
    fastest = min(statistics.median(spent for spent, _ in t) for t in times.values())
    for name, milliseconds in times.items():
        spent, clock = (statistics.median(column) for column in zip(*milliseconds, strict=True))
        print(
            f"{name}: {spent:.1f} ms of processor time, {clock:.1f} ms by the clock, {spent / fastest:.2f} of the "
            f"fastest, {found[name] / len(milliseconds):.0f} objects per image"
        )


if __name__ == "__main__":
    main()
