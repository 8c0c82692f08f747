"""`maskkit train`: train a preset, every field of which is an option."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import arg

from maskkit.cli.console import wrong_usage
from maskkit.cli.options import Fetch, refuse_ranges
from maskkit.config import (
    SUPERVISION,
    AugmentConfig,
    DataConfig,
    InputConfig,
    ModelConfig,
    RunConfig,
    Tracker,
    TrainConfig,
)
from maskkit.errors import DataError, MaskkitError
from maskkit.terminal import say

if TYPE_CHECKING:
    from maskkit.zoo.card import Preset

T = TypeVar("T")

SECTIONS = ("model", "input", "augment", "train")
"""Parts of a `RunConfig` that a preset has too."""


@dataclass
class TrainOptions:
    """Train a preset on your own images. The data format and the class names are detected.

    Without --model a preset is chosen by the labels and the number of images, and a line says why.

    Every field of the preset can be changed. The run folder contains the resolved configuration, metrics.jsonl,
    best.safetensors, sample predictions and report.html.

    Example: maskkit train --data pets/

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/ --train.epochs 50

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/ --train.epochs 50 --resume

    Example: torchrun --nproc-per-node 2 -m maskkit train --data pets/ --out runs/pets
    """

    preset: Annotated[str, arg(name="model")]
    """Preset to train; `maskkit models` lists them. By default one is chosen for the data."""
    model: ModelConfig
    input: InputConfig
    augment: AugmentConfig
    train: TrainConfig
    data: DataConfig
    out: Path | None = None
    """Folder of the run; by default runs/PRESET."""
    resume: bool = False
    """Continue the run in the folder, or start it if there is none. With more --train.epochs a finished run becomes
    longer."""
    device: str = "auto"
    """auto for an accelerator where there is one, cpu, cuda, cuda:1 or mps."""
    fetch: Annotated[Fetch, arg(name="")] = Fetch()  # noqa: RUF009 (frozen)
    weights: str = "auto"
    """Initial weights: a checkpoint, built-in, a backbone file with timm's names, hub for the published ones, random,
    or auto for the best of those in the package, published ones and timm's backbone."""
    config: Path | None = None
    """Settings to start from instead of a preset's: config.json of a run, or best.json of maskkit tune."""


Options = TypeVar("Options", bound=TrainOptions)


def train(options: TrainOptions) -> int:
    """Train a preset on your own images.

    Example: maskkit train --data pets/
    """
    options.fetch.apply()
    from maskkit.checkpoints.find import initial_weights
    from maskkit.engine.train import train
    from maskkit.eval.numbers import shown

    weights = initial_weights(options.weights, options.preset)
    config = RunConfig(options.preset, options.model, options.input, options.augment, options.train, options.data)
    out = options.out or Path("runs", options.preset)
    for line in summary(config, out):
        say(line)
    result = train(config, out, options.resume, weights, options.device)
    numbers = ", ".join(f"{name} {shown(value)}" for name, value in result.metrics.items())
    say(f"{result.best}: {numbers}; see {result.out / 'report.html'} and {result.out / 'samples'}")
    return 0


def summary(config: RunConfig, out: Path) -> list[str]:
    """What will be trained, in a few lines; the folder ``out`` gets all settings."""
    from maskkit import zoo
    from maskkit.config import to_dict
    from maskkit.plain_types import flat

    preset, model, settings = zoo.preset(config.preset), zoo.model_class(config.preset), config.train
    plain = RunConfig(config.preset, preset.model, preset.input, preset.augment, preset.train)
    before, now = (flat(to_dict(c)) for c in (plain, config))
    changed = [f"{k} {now[k]}" for k in now if now[k] != before.get(k) and k not in ("data.train", "model.num_classes")]
    length = f"{settings.steps} steps" if settings.steps else f"{settings.epochs:g} epochs"
    length = f"{settings.minutes:g} minutes" if settings.minutes else length
    height, width = config.input.size
    title, task = zoo.method(config.preset).title, model.task_of(config.model)
    return [
        f"{config.preset}: {title}, {task} model, on {config.data.train}",
        f"input {width} x {height} ({config.input.resize}), {length} of {settings.batch or 'as many'} images per step"
        f"{'' if settings.batch else ' as memory holds'}, "
        f"{settings.optimizer}, learning rate {settings.lr:g}, {settings.precision}",
        *([f"other than in the preset: {', '.join(changed)}"] if changed else []),
        f"all settings: {out / 'config.json'}",
    ]


def parse(args: list[str], kind: type[Options] = TrainOptions, prog: str = "maskkit train") -> Options:
    """The options of ``kind``: a file of settings, or the preset in ``args`` or the one for the data, overridden by the
    rest of ``args``."""
    from maskkit import zoo

    name, preset = preset_in(args)
    given = settings_in(args, name)
    chosen = preset_for_data(args) if name is None and given is None else None
    if chosen is not None:
        name, preset = chosen[0], zoo.preset(chosen[0])
    elif given is not None:
        name, preset = given.preset, replace(zoo.preset(given.preset), **{n: getattr(given, n) for n in SECTIONS})
    data = annotated(
        DataConfig() if given is None else given.data,
        train=Annotated[str, arg(aliases=["--data"])],
        labels=Annotated[Literal["masks", "boxes", "tags"], arg(aliases=["--labels"])],
        allow_outside=Annotated[bool, arg(aliases=["--allow-outside"])],
    )
    train = annotated(
        preset.train,
        log=Annotated[tuple[Tracker, ...], arg(aliases=["--log"])],
        batch=Literal["auto"] | int,
    )
    model = annotated(preset.model, num_classes=tyro.conf.Suppress[int])  # taken from the data
    default = kind(name or tyro.MISSING, model, preset.input, preset.augment, train, data)
    options = tyro.cli(kind, args=args, default=default, prog=prog)
    options.model = type(preset.model)(**vars(options.model))
    settings: dict[str, Any] = {n: 0 if (n, v) == ("batch", "auto") else v for n, v in vars(options.train).items()}
    options.train = TrainConfig(**settings)
    options.data = DataConfig(**vars(options.data))
    refuse_ranges(options, "--")
    if not options.data.train:
        wrong_usage(f"{prog.split()[-1]} takes --data")
    if chosen is not None:
        say(chosen[1])
    return options


def preset_in(args: list[str]) -> "tuple[str | None, Preset]":
    """The name after ``--model``, if any, and its preset, by default a small one."""
    from maskkit import zoo

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model")
    name = peek.parse_known_args(args)[0].model
    return name, zoo.preset(name or "yolact-mobilenetv2-256")


def settings_in(args: list[str], preset: str | None) -> RunConfig | None:
    """The settings in the file after ``--config``, if any. Raises `MaskkitError` where it has none, or those of another
    preset than ``preset``."""
    import json

    from maskkit.checkpoints.checkpoint import run_config
    from maskkit.files import read_bytes

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    file = peek.parse_known_args(args)[0].config
    if file is None:
        return None
    try:
        found = run_config(json.loads(read_bytes(file)))
    except ValueError as error:
        raise DataError(f"{file}: holds no settings of a training ({error}); give config.json of a run") from None
    if preset is not None and preset != found.preset:
        raise MaskkitError(f"{file}: holds settings of {found.preset}; leave --model {preset} out")
    return found


def preset_for_data(args: list[str]) -> tuple[str, str] | None:
    """Name and reason of the preset for the data in ``args``; a run that is continued keeps its preset.

    None where the command line asks for help, or is wrong.
    """
    from maskkit.checkpoints.checkpoint import config_of
    from maskkit.checkpoints.header import read_header
    from maskkit.engine.choose import choose

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--data", "--data.train")
    peek.add_argument("--labels", "--data.labels", default="masks")
    peek.add_argument("--allow-outside", "--data.allow-outside", action="store_true")
    peek.add_argument("--out", type=Path)
    peek.add_argument("--resume", action="store_true")
    peek.add_argument("--device")
    found = peek.parse_known_args(args)[0]
    if not found.data or found.labels not in SUPERVISION or {"-h", "--help"} & set(args):
        return None
    last = found.out / "last.safetensors" if found.out else None
    if found.resume and last is not None and last.is_file():
        name = config_of(read_header(last), last).preset
        return name, f"{last} is a run of --model {name}"
    return choose(DataConfig(found.data, labels=found.labels, allow_outside=found.allow_outside), found.device)


def annotated(section: T, **hints: Any) -> T:
    """The config ``section`` as an instance of a subclass whose fields have other type hints, for tyro."""
    kind = type(section)
    changed = [(name, hint, field(default=getattr(section, name))) for name, hint in hints.items()]
    return make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True)(**vars(section))
