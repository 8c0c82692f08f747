"""`maskkit tune`: search for the settings of a training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from maskkit.cli.train import TrainOptions
from maskkit.cli.train import parse as parse_train
from maskkit.config import RunConfig
from maskkit.ranges import Count
from maskkit.terminal import say


@dataclass
class TuneOptions(TrainOptions):
    """Search for better settings of a training: several trainings with different settings.

    The first trial has the given settings; trials that fall behind are pruned. The best settings are written to
    best.json, for maskkit train --config. Takes all options of maskkit train.

    Example: maskkit tune --data pets/ --trials 12 --train.epochs 10

    Example: maskkit train --config runs/tune-maskrcnn-mobilenetv2-320/best.json --train.epochs 50
    """

    trials: Count = 12
    """Number of trainings. With a larger number and --resume, a finished search continues."""
    space: tuple[str, ...] = ()
    """Settings to search, such as train.lr augment.expand; by default all that docs/training.md names."""
    out: Path | None = None
    """Folder of the search; by default runs/tune-PRESET."""
    resume: bool = False
    """Continue the search in the folder, or start it if there is none."""


def parse(args: list[str]) -> TuneOptions:
    """The options of `tune`."""
    return parse_train(args, TuneOptions, "maskkit tune")


def tune(options: TuneOptions) -> int:
    """Search for better settings of a training.

    Example: maskkit tune --data pets/ --trials 12 --train.epochs 10
    """
    options.fetch.apply()
    from maskkit.checkpoints.find import initial_weights
    from maskkit.engine import tune as engine
    from maskkit.eval.numbers import shown

    weights = initial_weights(options.weights, options.preset)
    config = RunConfig(options.preset, options.model, options.input, options.augment, options.train, options.data)
    out = options.out or Path("runs", f"tune-{options.preset}")
    space = options.space or tuple(engine.SPACE)
    best = engine.tune(config, out, options.trials, space, options.resume, weights, options.device, say)
    say(f"best: trial {best.trial}, {shown(best.value)}; its run is {best.run}")
    say(f"train with its settings: maskkit train --config {shlex.quote(str(best.file))} --out runs/tuned")
    return 0
