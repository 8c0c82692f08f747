"""What the benchmarks share that train: a training for a budget of processor time."""

import resource
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from maskkit import zoo
from maskkit.checkpoints.find import RANDOM
from maskkit.config import BoxOnly, DataConfig, RunConfig, change
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.engine.drawn_masks import draw, with_drawn
from maskkit.engine.initial import start_weights
from maskkit.engine.optim import learning_rate, make_optimizer, precision_for, set_rate, update_average
from maskkit.models.base import Model
from maskkit.nn.winograd import use_winograd

CALIBRATION = 6
"""Steps that measure the speed; the first one, which is slowest, is left out."""


def spent() -> float:
    """Processor seconds of this process and its finished children."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def train_within(budget: float, step: Callable[[int, int], None]) -> tuple[int, float]:
    """Call ``step(number, total)`` as often as ``budget`` processor seconds allow; returns steps and seconds.

    The first steps measure the speed, and ``total`` is fitted to the budget after them.
    """
    begin, marks = spent(), []
    total = None
    number = 0
    while total is None or number < total:
        step(number, total or 10_000)
        number += 1
        marks.append(spent())
        if number == CALIBRATION:
            per_step = (marks[-1] - marks[0]) / (CALIBRATION - 1)
            total = max(number + 1, int((budget - (marks[-1] - begin)) / per_step) + number)
        if marks[-1] - begin > budget:
            break
        if number % 20 == 0:
            print(f"step {number} of {total}, {marks[-1] - begin:.0f} of {budget:.0f} processor seconds", flush=True)
    return number, spent() - begin


def knobs_for(model: str, data: Path) -> dict[str, Any]:
    """Fields that a method gives in pixels, chosen by the size of the objects: small for nuclei."""
    if model.startswith("embedding"):
        return {"unit": 8.0 if is_nuclei(data) else 16.0}
    return {}


def is_nuclei(data: Path) -> bool:
    """Whether the images are microscopy: all objects are small, and there is no up and down."""
    return "nuclei" in str(data)


@dataclass(frozen=True)
class Training:
    """One training, a row of the table."""

    model: str
    data: Path
    weights: str | Path | None
    """Initial weights: ``auto``, a checkpoint, or a file for the backbone with timm's names; None: random."""
    labels: str = "masks"
    teacher: str | None = None
    """What draws masks in boxes (`DataConfig.teacher`); its time is part of the budget."""
    size: int | None = None
    """Side of a square input in pixels; None: that of the preset."""
    resize: Literal["stretch", "pad"] | None = None
    """How an image gets the size of the input; None: as in the preset."""
    batch: int = 4
    seed: int = 0
    lr: float | None = None
    """Learning rate; None: that of the preset."""
    dilation: int = 2
    """Distance, in cells, of the neighbours in the pairwise loss of BoxInst."""
    pairwise: float = 1.0
    """Weight of that loss."""
    warmup: float = 0.1
    """Share of the training over which that weight is warmed up."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's config to change."""

    def config(self, classes: int) -> RunConfig:
        """The run's config: the preset's, with the settings that are the same for all."""
        preset = zoo.preset(self.model)
        knobs = knobs_for(self.model, self.data) | self.knobs
        boxes = BoxOnly(dilation=self.dilation, pairwise=self.pairwise, warmup=self.warmup)
        box_only = {"box_only": boxes} if hasattr(preset.model, "box_only") else {}
        size = (self.size, self.size) if self.size else preset.input.size
        return RunConfig(
            preset=preset.name,
            model=change(preset.model, num_classes=classes, **box_only, **knobs),
            input=replace(preset.input, size=size, resize=self.resize or preset.input.resize),
            augment=replace(preset.augment, expand=1.0, vertical_flip=0.5 if is_nuclei(self.data) else 0.0),
            train=replace(
                preset.train,
                batch=self.batch,
                optimizer="adamw",
                lr=self.lr or preset.train.lr,
                weight_decay=0.01,
                warmup=30,
                clip=10.0,
                workers=0,
                precision=precision_for(torch.device("cpu")),
                seed=self.seed,
            ),
            data=DataConfig(train=str(self.data), labels=self.labels, teacher=self.teacher),  # type: ignore[arg-type]
        )

    def run(self, train_set: Dataset, minutes: float, steps: int | None) -> tuple[Model, RunConfig, dict[str, Any]]:
        """Train for ``minutes`` of two cores, or for ``steps``; returns the EMA model, the config and the facts."""
        (average,), config, facts = self.averages(train_set, minutes, steps, (0.99,))
        return average, config, facts

    def averages(
        self, train_set: Dataset, minutes: float, steps: int | None, decays: Sequence[float]
    ) -> tuple[list[Model], RunConfig, dict[str, Any]]:
        """As `run`, with the EMA of the weights at each of ``decays``; 0 is the trained model itself."""
        config = self.config(len(train_set.categories))
        begin, drawn = spent(), 0
        if self.teacher is not None:
            masks = draw(train_set, config.data, torch.device("cpu"))
            train_set, drawn = with_drawn(train_set, masks), sum(m is not None for row in masks for m in row)
        drawing = spent() - begin
        torch.manual_seed(self.seed)
        model = zoo.model_class(self.model)(config.model)  # type: ignore[call-arg]
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start_weights(model, config, train_set.categories, self.weights or RANDOM)
        if config.train.precision == "fp32":  # as `maskkit train` does
            use_winograd(model, learns=True)
        optimizer = make_optimizer(model, config.train)
        batches = iter(train_loader(train_set, config, 0, 10**6))
        model.train()
        kept = [deepcopy(model).requires_grad_(False) if decay else model for decay in decays]

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
            for average, decay in zip(kept, decays, strict=True):
                if decay:
                    update_average(average, model, decay, number)

        if steps is None:
            steps, seconds = train_within(minutes * 120 - drawing, step)
        else:
            begin = spent()
            for number in range(steps):
                step(number, steps)
            seconds = spent() - begin
        facts = {"model": self.model, "labels": self.labels, "seed": self.seed, "steps": steps} | self.knobs
        facts["precision"] = config.train.precision
        if self.teacher is not None:
            facts |= {"teacher": self.teacher, "drawn": drawn, "drawing_seconds": round(drawing)}
        if self.labels == "boxes":
            facts |= {"dilation": self.dilation, "pairwise": self.pairwise, "warmup": self.warmup}
        return kept, config, facts | {"batch": self.batch, "input": config.input.size, "cpu_seconds": round(seconds)}
