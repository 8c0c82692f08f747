"""One chart: mask AP by milliseconds per image on two cores, from the image file to run-length masks.

    python benchmarks/chart.py --data DATA/nuclei_dsb2018 --minutes 10 --out chart
    python benchmarks/chart.py --data DATA/nuclei_dsb2018 --trained runs/*.safetensors --out chart
    python benchmarks/chart.py --data DATA/nuclei_dsb2018 --trained --published rtmdet-ins-tiny yolact-resnet50

Left: small presets, by their AP on the validation split of ``--data``, as PyTorch, OpenVINO in fp32 and OpenVINO in
int8, calibrated on the training split. Without ``--trained`` every small instance preset is trained first, for
``--minutes`` of two cores each, as by `equal_time.py`, and its checkpoint is kept beside the chart. Right: published
presets, by the mask AP that their card quotes on COCO and the time that we measure with random weights, which find
other numbers of objects than trained ones.

All models take turns on every image, so that other work on the machine affects them alike. ``OUT.json`` has the
figures, ``OUT.svg`` the chart.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from common import Training
from common_timing import describe, seconds
from maskkit import zoo
from maskkit.api import Segmenter, create_model, load
from maskkit.checkpoints.checkpoint import load_model, save_model
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.errors import MaskkitError
from maskkit.export.write import ExportConfig, export
from maskkit.zoo.card import Preset

RUNTIMES = {"torch": None, "openvino": "fp32", "openvino int8": "int8"}
"""The runtimes of the left half, and the precision of the exported file."""

TICKS = (10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)
"""Milliseconds that are named on the axes."""


@dataclass(frozen=True)
class Point:
    """A model of the chart."""

    preset: str
    runtime: str
    milliseconds: float
    """Median of the images, by the clock."""
    ap: float | None
    """Mask AP, 0 to 1: measured on the data, or the paper's on COCO."""
    published: bool


def small_presets() -> list[str]:
    """Every small preset that finds objects with masks, one of each method: its first."""
    found: dict[int, str] = {}
    for preset in zoo.presets():
        method = zoo.method(preset.name)
        has_masks = method.model.task_of(preset.model) == "instance" and "masks" in method.model.supervision_of(
            preset.model
        )
        if preset.small and has_masks:
            found.setdefault(id(method), preset.name)
    return list(found.values())


def published_presets() -> list[str]:
    """Of each method the first preset with weights to download whose card quotes a mask AP on COCO."""
    found: dict[int, str] = {}
    for preset in zoo.presets():
        if preset.weights is not None and preset.weights.fetched and quoted_ap(preset) is not None:
            found.setdefault(id(zoo.method(preset.name)), preset.name)
    return list(found.values())


def quoted_ap(preset: Preset) -> float | None:
    """The mask AP on COCO that a card quotes, 0 to 1."""
    found = re.search(r"^COCO [^,]*mask AP (\d+\.\d+)", preset.paper or "")
    return float(found[1]) / 100 if found else None


def train(name: str, data: Path, train_set: Dataset, given: argparse.Namespace) -> Path:
    """The checkpoint of a small preset that was trained for the budget; an earlier one is kept."""
    path = given.out.with_name(f"{given.out.name}-{name}.safetensors")
    if not path.exists():
        training = Training(name, data, given.weights, size=given.size)
        model, config, facts = training.run(train_set, given.minutes, given.steps)
        save_model(path, model, config, train_set.categories, facts)
    return path


def exported(checkpoint: Path, train_set: Dataset, val_set: Dataset, threads: int) -> Iterator[tuple[str, Segmenter]]:
    """The checkpoint in every runtime that can have it."""
    for runtime, precision in RUNTIMES.items():
        if precision is None:
            yield runtime, load(checkpoint, "cpu", threads)
            continue
        path = checkpoint.with_name(f"{checkpoint.stem}-{precision}.xml")
        config = ExportConfig(precision=precision)  # type: ignore[arg-type]
        try:
            export(load_model(checkpoint), path, config, data=val_set, calibration=train_set)
        except MaskkitError as error:
            print(f"{checkpoint.stem}: no {runtime}: {error}", flush=True)
            continue
        yield runtime, load(path, threads=threads)


def random_weights(name: str) -> Segmenter:
    """A published preset with random weights."""
    torch.manual_seed(0)
    preset = zoo.preset(name)
    return Segmenter.of(create_model(name).eval(), preset.input, preset.classes, device="cpu", fold=True)


def measure(models: dict[tuple[str, str], Segmenter], files: list[Path]) -> dict[tuple[str, str], float]:
    """Median milliseconds per image of each model; the first image warms up."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in models}
    for file in [files[0], *files]:
        for key, model in models.items():
            times[key].append(1000 * seconds(lambda model=model, file=file: model.predict(file, score=0.05))[2])
    return {key: statistics.median(spent[1:]) for key, spent in times.items()}


def draw(points: list[Point], path: Path) -> None:
    """Both halves, each with an axis of time in logarithmic steps; a line joins the runtimes of a preset."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    for place, (title, published) in enumerate((("small presets", False), ("published, AP of the paper", True)), 1):
        axes = figure.add_subplot(1, 2, place, xscale="log", xlabel="ms per image, end to end", title=title)
        axes.set_ylabel("mask AP")
        half = [p for p in points if p.published is published and p.ap is not None]
        for preset in dict.fromkeys(p.preset for p in half):
            of = sorted((p for p in half if p.preset == preset), key=lambda p: p.milliseconds)
            times, ap = [p.milliseconds for p in of], [p.ap or 0 for p in of]
            axes.plot(times, ap, color="lightgrey", zorder=0)
            axes.annotate(preset, (times[-1], ap[-1]), (6, -3), textcoords="offset points", fontsize=8)
        for runtime, marker in zip(RUNTIMES, "os^", strict=True):
            shown = [p for p in half if p.runtime == runtime]
            if shown:
                axes.scatter([p.milliseconds for p in shown], [p.ap or 0 for p in shown], marker=marker, label=runtime)
        if half:
            fastest, slowest = (f(p.milliseconds for p in half) for f in (min, max))
            axes.set_xlim(0.8 * fastest, 2 * slowest)  # room for the names on the right
            axes.set_xticks([t for t in TICKS if 0.8 * fastest <= t <= 2 * slowest])
            axes.get_xaxis().set_major_formatter("{x:g}")
            axes.get_xaxis().set_minor_formatter("")
            axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trained", type=Path, nargs="*", help="checkpoints; without it small presets are trained")
    parser.add_argument("--published", nargs="*", help="presets of the right half; by default one of each method")
    parser.add_argument("--weights", type=Path, help="backbone weights for the trainings: mobilenetv2_100.safetensors")
    parser.add_argument("--minutes", type=float, default=10, help="of two cores, for each training")
    parser.add_argument("--steps", type=int, help="fixed number of steps in place of --minutes")
    parser.add_argument("--size", type=int, help="side of the input in the trainings; that of the preset by default")
    parser.add_argument("--images", type=int, default=12, help="images that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("chart"), help="name of the files, without suffix")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train_set, val_set = open_splits(str(given.data), None, 0.2, 0)
    checkpoints = given.trained
    if checkpoints is None:
        checkpoints = [train(name, given.data, train_set, given) for name in small_presets()]
    models: dict[tuple[str, str], Segmenter] = {}
    ap: dict[tuple[str, str], float | None] = {}
    for checkpoint in checkpoints:
        for runtime, segmenter in exported(checkpoint, train_set, val_set, given.threads):
            key = (load_model(checkpoint).config.preset, runtime)
            models[key], ap[key] = segmenter, segmenter.evaluate(val_set).metrics["AP"]
    published = published_presets() if given.published is None else given.published
    for name in published:
        models[name, "torch"], ap[name, "torch"] = random_weights(name), quoted_ap(zoo.preset(name))
    took = measure(models, [record.path for record in val_set.records[: given.images]])
    points = [Point(*key, round(took[key], 1), ap[key], key[0] in published) for key in models]
    for point in sorted(points, key=lambda p: p.milliseconds):
        print(f"{point.preset} {point.runtime}: {point.milliseconds} ms, mask AP {point.ap}")
    print(describe(given.threads))
    content = {"machine": describe(given.threads), "data": given.data.name, "points": [asdict(p) for p in points]}
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(points, given.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
