"""The command line: one function per verb, its options read from its signature by tyro.

Exit codes: 0 done, 1 failed (one clear line on stderr), 2 wrong usage, 130 interrupted. Verbs import what they need
when they run, so that `maskkit --help` needs no torch.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from maskkit.config import AugmentConfig, DataConfig, InputConfig, ModelConfig, RunConfig, TrainConfig
from maskkit.errors import DataError, MaskkitError

if TYPE_CHECKING:
    from maskkit.infer.predict import Failure
    from maskkit.types import Prediction

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code. Wrong usage and ``--help`` leave by ``SystemExit``, as command-line parsers do."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:1] == ["train"]:  # its options depend on the preset
            return train(_train_options(args[1:]))
        return tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="maskkit", args=args, description="Segment pictures, train on your own, measure."
        )
    except (MaskkitError, OSError) as error:
        print(f"maskkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("maskkit: interrupted", file=sys.stderr)
        return 130


def models() -> int:
    """List the presets: task, labels needed, paper's number, our number, published weights.

    Example: maskkit models
    """
    from rich.table import Table

    from maskkit import registry

    table = Table("preset", "task", "labels", "paper", "ours", "published weights")
    for preset in registry.presets():
        needs = " or ".join(preset.needs)
        table.add_row(preset.name, preset.task, needs, preset.paper or "-", preset.ours or "-", preset.published or "-")
    _stdout().print(table)
    return 0


def predict(
    sources: Positional[tuple[str, ...]],
    model: str = "built-in",
    out: Path = Path("runs/predict"),
    score: float = 0.3,
    batch: int = 1,
) -> int:
    """Segment pictures: overlays, predictions.json (COCO results) and images.json (file name of each image id).

    Pictures that cannot be read are listed at the end; the others are done all the same.

    Example: maskkit predict photo.jpg holiday/ "scans/*.png" --out found --score 0.5

    Args:
        sources: Pictures, folders, glob patterns.
        model: Checkpoint, or built-in for the model that the package carries.
        out: Folder to write to.
        score: Objects below this score are left out.
        batch: Pictures that go through the network together.
    """
    if not sources:
        _wrong_usage("predict needs a picture, a folder or a pattern")
    from maskkit.api import load

    failures: list[Failure] = []
    paths = _pictures(sources, failures)
    segmenter = load(model)
    found = segmenter.predict_many(paths, score, batch, failures.append)
    rows, images = write_predictions(_track(found, len(paths), "predicting"), paths, out)
    _stdout().print(f"{len(rows)} objects in {len(images)} pictures: {out / 'overlays'}, {out / 'predictions.json'}")
    for failure in failures:
        print(f"maskkit: {failure.error}", file=sys.stderr)
    if failures:
        print(f"maskkit: {len(failures)} of {len(images) + len(failures)} sources failed", file=sys.stderr)
    return 1 if failures else 0


def evaluate(
    data: Path,
    model: str | None = None,
    predictions: Path | None = None,
    split: str | None = None,
    out: Path = Path("runs/eval"),
    batch: int = 1,
    workers: int = 0,
) -> int:
    """Measure a model, or a COCO results file of any tool: the COCO table, metrics.json, report.html.

    Example: maskkit eval --model runs/pets/best.safetensors --data pets/
    Example: maskkit eval --predictions results.json --data pets/val.json

    Args:
        data: Folder or annotation file, of any format.
        model: Checkpoint, or built-in. Its classes are matched with those of the data by name.
        predictions: COCO results file, instead of a model.
        split: Part of a folder: train, val or test; val where there is one, else all of it.
        out: Folder to write to.
        batch: Pictures that go through the network together.
        workers: Loader processes.
    """
    if (model is None) == (predictions is None):
        _wrong_usage("eval needs either --model or --predictions")
    raise NotImplementedError


def import_(checkpoint: Positional[Path], model: str, out: Path) -> int:
    """Convert a published checkpoint of a method's official code to a maskkit one.

    A pickle is read for its tensors only; one that would run code is refused.

    Example: maskkit import yolact_resnet50_54_800000.pth --model yolact-resnet50 --out yolact-resnet50.safetensors

    Args:
        checkpoint: File of the official code, .pth or .safetensors.
        model: Preset that it belongs to.
        out: File to write.
    """
    from maskkit import published
    from maskkit.api import configure, create_model
    from maskkit.data.names import COCO, VOC
    from maskkit.engine.checkpoint import read_checkpoint, save_model

    config = configure(model)
    categories = {len(c): c for c in (COCO, VOC)}[config.model.num_classes]
    network = create_model(model)
    try:
        network.load_state_dict(published.convert(read_checkpoint(checkpoint), model))
    except DataError as error:
        message = str(error)
        raise DataError(message if str(checkpoint) in message else f"{checkpoint}: {message}") from None
    save_model(out, network, config, categories, {"imported": checkpoint.name})
    _stdout().print(f"{out}: {model} with {len(categories)} classes; try it: maskkit predict PICTURE --model {out}")
    return 0


def demo(out: Path = Path("demo"), steps: int = 300) -> int:
    """Segment real photographs with the built-in model, then train a small one on drawn pictures, in minutes.

    Example: maskkit demo --out demo

    Args:
        out: Folder to write to.
        steps: Optimizer steps of the training.
    """
    from maskkit.demo import run

    run(out, steps)
    return 0


@dataclass
class TrainOptions:
    """Train a preset on your own pictures: COCO, YOLO, Pascal VOC or LabelMe; format and class names are found.

    Every field of the preset can be changed. The run folder gets the resolved configuration, metrics.jsonl,
    best.safetensors, sample predictions and report.html.

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/ --train.epochs 50
    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/ --train.epochs 50 --resume
    """

    preset: Annotated[str, arg(name="model")]
    """Preset to start from; `maskkit models` lists them."""
    model: ModelConfig
    input: InputConfig
    augment: AugmentConfig
    train: TrainConfig
    data: DataConfig
    out: Path | None = None
    """Folder of the run; runs/PRESET when not given."""
    resume: bool = False
    """Go on with the run in the folder, or begin it where there is none."""
    weights: Path | None = None
    """Checkpoint, or backbone weights with timm's names, to start from."""


def train(options: TrainOptions) -> int:
    """Train a preset on your own pictures.

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/
    """
    from maskkit.config import to_dict
    from maskkit.engine.train import train

    config = RunConfig(options.preset, options.model, options.input, options.augment, options.train, options.data)
    shown = to_dict(config)
    del shown["model"]["num_classes"]  # known when the data have been read
    _stdout().print_json(json.dumps(shown))
    result = train(config, options.out or Path("runs", options.preset), options.resume, options.weights)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    _stdout().print(f"{result.best}: {numbers}; look at {result.out / 'report.html'} and {result.out / 'samples'}")
    return 0


VERBS = {
    "models": models,
    "predict": predict,
    "train": train,
    "eval": evaluate,
    "import": import_,
    "demo": demo,
}


def _train_options(args: list[str]) -> TrainOptions:
    """The options of `train`: those of the preset named in ``args``, changed by the rest of ``args``."""
    from maskkit import registry

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model")
    name = peek.parse_known_args(args)[0].model
    preset = registry.preset(name or "yolact-mobilenetv2-256")
    data = _annotated(
        DataConfig(),
        train=Annotated[str, arg(aliases=["--data"])],
        labels=Annotated[Literal["masks", "boxes", "tags"], arg(aliases=["--labels"])],
    )
    model = _annotated(preset.model, num_classes=tyro.conf.Suppress[int])  # comes from the data
    default = TrainOptions(name or tyro.MISSING, model, preset.input, preset.augment, preset.train, data)
    options = tyro.cli(TrainOptions, args=args, default=default, prog="maskkit train")
    options.model = type(preset.model)(**vars(options.model))
    options.data = DataConfig(**vars(options.data))
    if not options.data.train:
        _wrong_usage("train needs --data")
    return options


def _annotated(section: T, **hints: Any) -> T:
    """The config ``section`` as a subclass whose fields have other hints for tyro."""
    kind = type(section)
    changed = [(name, hint, field(default=getattr(section, name))) for name, hint in hints.items()]
    return make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True)(**vars(section))
