"""One small model of the kit, trained for a given processor time on real images, and its AP: rows of a table.

    python benchmarks/equal_time.py --data ../shared/data/nuclei_dsb2018 --model condinst-mobilenetv2-320 \\
        --weights ../shared/weights/mobilenetv2_100.safetensors --labels boxes --minutes 20 --out condinst-boxes.json

Every model starts from the same backbone weights (batch norm frozen) and has the same images, mirrors and colours,
optimizer (but for the learning rate, which is the preset's), batch and budget: 120 processor seconds for each of
``--minutes``, which is what two cores give in that time. The schedule is fitted to the budget by the speed of the first
steps. Forward passes are in bf16 where the processor knows it, else in fp32. Validation is not counted.
``--labels boxes`` hides the masks from the training; they are still what is measured.
Proposals, label maps and panoptic segments are measured as `maskkit eval` does it. ``--knob parts=1`` changes a field
of the method's own config, to see what one of its ideas is worth; ``--also instance semantic`` measures the weights of
a model that has several tasks (Mask2Former) in those too. The same command twice gives the same result on the
same machine but for the number of steps, which depends on its speed; ``--steps`` fixes that too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from budget import spent, train_within
from machine import describe
from maskkit import zoo
from maskkit.api import Segmenter
from maskkit.checkpoints.checkpoint import save_model
from maskkit.config import BoxOnly, DataConfig, RunConfig, change
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.engine.optim import learning_rate, make_optimizer, precision_for, set_rate, update_average
from maskkit.engine.start import load_backbone
from maskkit.eval.rows import shared_classes
from maskkit.eval.task import TASKS
from maskkit.models.base import Model
from maskkit.prediction import Categories


def knobs_for(model: str, data: Path) -> dict[str, Any]:
    """What a method has fixed in pixels, after the size of the objects: they are small where they are nuclei."""
    if model.startswith("embedding"):
        return {"unit": 8.0 if is_nuclei(data) else 16.0}
    return {}


def is_nuclei(data: Path) -> bool:
    """Whether the images come from microscopes: all objects are small, and there is no up and down."""
    return "nuclei" in str(data)


@dataclass(frozen=True)
class Training:
    """What one row of the table is."""

    model: str
    data: Path
    weights: Path | None
    """Of the backbone; None lets it begin at random."""
    labels: str = "masks"
    size: int | None = None
    """Side of a square input, when it is not to be that of the preset."""
    batch: int = 4
    seed: int = 0
    lr: float | None = None
    """Learning rate, when it is not to be that of the preset."""
    dilation: int = 2
    """Cells between the neighbours whose colours teach masks from boxes."""
    pairwise: float = 1.0
    """Weight of that comparison."""
    warmup: float = 0.1
    """Share of the training over which that weight grows."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's config that are not to be those of the preset."""

    def config(self, classes: int) -> RunConfig:
        """The run, of the preset and of what is the same for all."""
        preset = zoo.preset(self.model)
        knobs = knobs_for(self.model, self.data) | self.knobs
        boxes = BoxOnly(dilation=self.dilation, pairwise=self.pairwise, warmup=self.warmup)
        box_only = {"box_only": boxes} if hasattr(preset.model, "box_only") else {}
        return RunConfig(
            preset=preset.name,
            model=change(preset.model, num_classes=classes, **box_only, **knobs),
            input=replace(preset.input, size=(self.size, self.size)) if self.size else preset.input,
            augment=replace(preset.augment, expand=1.0, vertical_flip=0.5 if is_nuclei(self.data) else 0.0),
            train=replace(
                preset.train,
                batch=self.batch,
                optimizer="adamw",
                lr=self.lr or preset.train.lr,
                weight_decay=0.01,
                warmup=30,
                clip=10.0,
                ema=0.99,
                workers=0,
                precision=precision_for(torch.device("cpu")),
                seed=self.seed,
            ),
            data=DataConfig(train=str(self.data), labels=self.labels),  # type: ignore[arg-type]
        )

    def run(self, train_set: Dataset, minutes: float, steps: int | None) -> tuple[Model, RunConfig, dict[str, Any]]:
        """The averaged weights after ``minutes`` of two cores, or after ``steps``."""
        config = self.config(len(train_set.categories))
        torch.manual_seed(self.seed)
        model = zoo.model_class(self.model)(config.model)  # type: ignore[call-arg]
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.weights:
            load_backbone(model.backbone, self.weights)  # type: ignore[arg-type]
        optimizer = make_optimizer(model, config.train)
        batches = iter(train_loader(train_set, config, 0, 10**6))
        model.train()
        average = deepcopy(model).requires_grad_(False)

        def step(number: int, total: int) -> None:
            set_rate(optimizer, learning_rate(number, total, config.train))
            batch = replace(next(batches), progress=(number + 1) / total)
            images = batch.images.contiguous(memory_format=torch.channels_last)
            torch.manual_seed(number)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
                raw = model(images, batch.sizes, batch.targets)
            torch.stack(list(model.loss(raw, batch).values())).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
            optimizer.step()
            optimizer.zero_grad()
            update_average(average, model, config.train.ema, number)

        if steps is None:
            steps, seconds = train_within(minutes * 120, step)
        else:
            begin = spent()
            for number in range(steps):
                step(number, steps)
            seconds = spent() - begin
        facts = {"model": self.model, "labels": self.labels, "seed": self.seed, "steps": steps} | self.knobs
        facts["precision"] = config.train.precision
        if self.labels == "boxes":
            facts |= {"dilation": self.dilation, "pairwise": self.pairwise, "warmup": self.warmup}
        return average, config, facts | {"batch": self.batch, "input": config.input.size, "cpu_seconds": round(seconds)}


def with_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with some of its classes only; images without any of them stay."""
    return shared_classes(Categories.of(names), dataset)[1] if names else dataset


def knob(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``, the value as JSON or else as text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, help="data to measure with, where --data is a file without such a split")
    parser.add_argument("--model", required=True, help="preset, one of the small ones")
    parser.add_argument(
        "--weights", type=Path, help="of its backbone: mobilenetv2_100.safetensors for most; else random"
    )
    parser.add_argument("--labels", choices=["masks", "boxes"], default="masks")
    parser.add_argument("--classes", nargs="*", default=[], help="classes to learn; all when not given")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--steps", type=int, help="fixed number of steps in place of --minutes")
    parser.add_argument("--size", type=int, help="side of a square input, when it is not to be that of the preset")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, help="when it is not to be that of the preset")
    parser.add_argument("--dilation", type=int, default=2, help="cells between neighbours compared, for --labels boxes")
    parser.add_argument("--pairwise", type=float, default=1.0, help="weight of that comparison")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the training over which that weight grows")
    parser.add_argument("--knob", type=knob, action="append", default=[], help="NAME=VALUE of the method's config")
    parser.add_argument("--also", nargs="*", default=[], help="further tasks to measure the same weights in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="json file for the result rows and the figures; weights beside it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = TASKS[zoo.model_class(given.model).task_of(zoo.preset(given.model).model)]
    train_set, val_set = open_splits(str(given.data), given.val, 0.2, 0)
    train_set = with_classes(task.view(train_set), given.classes)
    begin = time.perf_counter()
    names = ("model", "data", "weights", "labels", "size", "batch", "seed", "lr", "dilation", "pairwise", "warmup")
    training = Training(**{name: getattr(given, name) for name in names}, knobs=dict(given.knob))
    model, config, facts = training.run(train_set, given.minutes, given.steps)
    if given.out:
        save_model(given.out.with_suffix(".safetensors"), model, config, train_set.categories, facts)
    segmenter = Segmenter.of(model, config.input, train_set.categories, device="cpu")
    rows, known = segmenter.detect(val_set, batch=4)
    result = segmenter.task.evaluate(rows, known)
    facts["wall_seconds"] = round(time.perf_counter() - begin)
    facts |= {name: round(value, 4) for name, value in result.metrics.items()}
    for name in given.also:
        other = type(model)(replace(model.config, task=name))  # type: ignore[call-arg]
        other.load_state_dict(model.state_dict())
        segmenter = Segmenter.of(other, config.input, train_set.categories, device="cpu")
        facts[name] = {k: round(value, 4) for k, value in segmenter.evaluate(val_set, batch=4).metrics.items()}
    print(describe(given.threads))
    print(json.dumps(facts), flush=True)
    if given.out:
        given.out.write_text(json.dumps({"facts": facts, "machine": describe(given.threads), "rows": rows}))


if __name__ == "__main__":
    main()
