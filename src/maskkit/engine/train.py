"""Training: one plain loop over batches, from a `RunConfig` to a folder with weights, curves and a report.

Several processes share each batch and take the step that one would have taken with all of it: images are augmented by
their own numbers, and losses are divided by the objects of the whole batch (`maskkit.nn.losses.normaliser`). Two things
still differ: what a loss draws at random, and trained batch norm, which sees the images of its own process alone.

The folder of a run: ``config.json`` (all settings), ``metrics.jsonl``, ``last.safetensors`` (the state to resume from),
``best.safetensors`` (the weights to predict with), its ``predictions.json`` on the validation images and
``report.html``, and ``samples/`` with some of these images as predicted at each evaluation. ``run.lock`` is
there while a process writes. With ``data.teacher`` there is ``drawn_masks.json`` too.

A run that ended early, by whatever cause, continues with ``resume`` from the last save: there is one after every
evaluation, every ``save_every`` steps, about once a minute, and after a signal (Ctrl-C, SIGTERM).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import convert_to_fp32
from torch import Tensor

from maskkit import zoo
from maskkit.config import RunConfig, to_dict
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.engine.budget import fit_steps, stored_steps
from maskkit.engine.data import open_data
from maskkit.engine.drawn_masks import taught
from maskkit.engine.initial import start_weights
from maskkit.engine.optim import freeze, learning_rate, make_optimizer, set_rate, update_average
from maskkit.engine.plan import fit_batch, plan_steps
from maskkit.engine.run import Run, begin, finite, keep_bad_batch, once, open_run
from maskkit.engine.start import check_same
from maskkit.engine.state import load_state, save_state
from maskkit.engine.validate import ends_early, evaluate, evaluation_due, keep_best, write_report
from maskkit.errors import DataError
from maskkit.eval.numbers import Metric
from maskkit.models.base import Model
from maskkit.nn.winograd import use_winograd
from maskkit.prediction import Categories
from maskkit.ranges import check_ranges
from maskkit.targets import Batch

Watch = Callable[[int, int, float], bool]
"""Called in the first process after each evaluation with its step, the number of steps and the decisive metric; whether
the training ends here."""


@dataclass(frozen=True)
class TrainResult:
    """The files of a finished run, and the metrics of its best weights."""

    out: Path
    best: Path
    last: Path
    steps: int
    metrics: dict[str, Metric]
    """Of the best weights: `maskkit.eval.task.Result.metrics`. The first one decided which weights are best."""


@dataclass
class Learner:
    """The model of a run with its optimizer."""

    model: Model
    average: Model | None
    """The moving average of the weights, where one is kept."""
    network: Callable[..., Any]
    """The model to call: compiled, or wrapped for several processes."""
    optimizer: AcceleratedOptimizer
    info: dict[str, Any]
    """``step``, the last one that was ``evaluated``, number of training ``images`` and of ``processes``, ``best`` value
    and ``metrics``; with ``train.patience`` the decisive metric of all ``evaluations``, by step; with ``train.minutes``
    the ``total`` of steps."""

    @property
    def shown(self) -> Model:
        """The model that is evaluated and saved for prediction."""
        return self.model if self.average is None else self.average


def train(
    config: RunConfig,
    out: Path,
    resume: bool = False,
    weights: str | Path | None = None,
    device: str | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train the preset of ``config`` on its data and write the run to the folder ``out``.

    ``resume`` continues the run in ``out``, which must have the same configuration, or starts it where there is none
    yet, so the same command can be repeated until it succeeds. With more epochs or steps a finished run continues.
    ``weights`` are the initial ones (`start_weights`). ``device`` is ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None
    uses an accelerator where there is one. ``watch`` may end the training after an evaluation. Raises `MaskkitError`
    for whatever the user can correct.
    """
    check_ranges(config)
    run = open_run(out, config.train, resume, device=device)
    train_set, val_set, notes = once(run, lambda: open_data(config, measure=not run.resumed))
    run.notes = notes + run.notes
    config = replace(config, model=replace(config.model, num_classes=len(train_set.categories)))
    config = fit_batch(run, config, train_set)
    settings = run.settings = config.train
    plan_steps(run, len(train_set))
    with run:
        train_set = taught(run, config.data, train_set)
        learner = make_learner(run, config, train_set, val_set, weights)
        ended = measure(run, learner, config, train_set, val_set, watch)  # where a run was stopped in an evaluation
        stop = run.start if ended else run.total
        loader = train_loader(train_set, config, run.start, stop, run.rank, run.world, run.log.note)
        run.exits.callback(loader.close)
        for step, batch in enumerate(loader, run.start):
            rate = run.begin_step(step, learner.optimizer)
            values = take_step(run, learner, batch, step)
            done = learner.info["step"] = step + 1
            run.log.step(done, values, rate, settings.batch)
            run.end_step(done)
            if run.save_due(done):
                run.save()
            if measure(run, learner, config, train_set, val_set, watch):
                break
        write_report(run, config, train_set, val_set)
    return TrainResult(out, out / "best.safetensors", run.last, learner.info["step"], learner.info["metrics"])


def take_step(run: Run, learner: Learner, batch: Batch, step: int) -> dict[str, float]:
    """Change the weights by the gradients of a batch; returns its losses, averaged over its parts and the processes.

    Raises `MaskkitError` for a loss that is not finite, before anything is changed.
    """
    settings, parts = run.settings, split(batch, run.settings.accumulate)
    total: dict[str, float] = {}
    for part in parts:
        part = part.to(run.device)
        with run.autocast():
            raw = learner.network(part.images.contiguous(memory_format=run.layout), part.sizes, part.targets)
        losses = learner.model.loss(convert_to_fp32(raw), part)
        if len(parts) > 1:
            losses = {name: loss / len(parts) for name, loss in losses.items()}
        values = run.read_losses(losses)
        if not finite(values):
            raise keep_bad_batch(run, values, step, batch_tensors(part), batch_images(part))
        run.backward(losses)
        total = {name: total[name] + value if total else value for name, value in values.items()}
    run.update(learner.model, learner.optimizer)
    if learner.average is not None:
        update_average(learner.average, learner.model, settings.ema, step, settings.ema_warmup)
    return total


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch as ``parts`` batches with the same number of images each, which keep their padding."""
    if parts == 1:
        return [batch]
    size = len(batch) // parts
    ranges = [slice(i * size, (i + 1) * size) for i in range(parts)]
    return [
        replace(batch, images=batch.images[r], sizes=batch.sizes[r], targets=batch.targets[r], metas=batch.metas[r])
        for r in ranges
    ]


def measure(
    run: Run,
    learner: Learner,
    config: RunConfig,
    train_set: Dataset,
    val_set: Dataset,
    watch: Watch | None,
) -> bool:
    """Evaluate if that is due after this step, and save the result.

    Returns whether the training ends here, before its last step.
    """
    info, settings, ended = learner.info, config.train, False
    period = settings.eval_every * info["images"] / settings.batch
    if info["step"] > info["evaluated"] and evaluation_due(info["step"], run.total, period):
        value = evaluate(run, learner.shown, info, config, train_set.categories, val_set)
        if watch is not None:  # before the save: after an interruption in between, both are repeated
            ended = once(run, lambda: watch(info["step"], run.total, value))
        run.save()
    return ends_early(run, info) or ended


def make_learner(
    run: Run, config: RunConfig, train_set: Dataset, val_set: Dataset, weights: str | Path | None
) -> Learner:
    """The model with the state of the run, or with its initial weights, and the files of the run's beginning.

    Raises `DataError` where the model cannot learn from the data, `MaskkitError` where a resumed run had other
    settings.
    """
    settings, categories, images = config.train, train_set.categories, len(train_set)
    torch.manual_seed(settings.seed)
    model = zoo.model_class(config.preset)(config.model)
    if reason := model.why_not(config.data, categories):
        raise DataError(f"{config.data.train}: {config.preset} {reason}")
    if run.resumed:
        run.notes += check_same(config, categories, images, run.last, run.world)
    else:
        with run.first():  # which downloads them, if need be
            start = start_weights(model, config, categories, weights)
        run.notes.append(start.note)
    model.to(run.device, memory_format=run.layout)  # type: ignore[call-overload]
    if settings.precision == "fp32":
        use_winograd(model, learns=True)
    average = deepcopy(model).requires_grad_(False) if settings.ema else None
    freeze(model, settings.freeze)
    optimizer = make_optimizer(model, settings)
    info: dict[str, Any] = {"step": 0, "evaluated": 0, "images": images, "best": None, "metrics": {}}
    info["processes"] = run.world
    if not run.resumed:
        info["start"] = start.facts()
    else:
        info = load_state(run.last, model, average, optimizer)
        keep_best(run, info)
    network, prepared = run.accelerator.prepare(model, optimizer)
    if settings.compile:
        network = torch.compile(network)
    learner = Learner(model, average, network, prepared, info)
    run.keep = lambda: save(run, learner, config, categories)
    if settings.minutes and run.resumed:
        run.total = stored_steps(info, run.last)
    elif settings.minutes:
        run.total = info["total"] = time_budget(run, learner, config, train_set, val_set)
    if not run.resumed:
        run.save()
    begin(run, info["step"], {**to_dict(config), "start": info.get("start")}, info["evaluated"])
    return learner


def time_budget(run: Run, learner: Learner, config: RunConfig, train_set: Dataset, val_set: Dataset) -> int:
    """`fit_steps` by steps of the learner, which is unchanged afterwards."""

    def take(batch: Batch, step: int) -> None:
        set_rate(learner.optimizer, learning_rate(0, run.total, config.train))
        take_step(run, learner, batch, step)

    total = fit_steps(run, learner.model, learner.average, take, config, train_set, val_set)
    learner.optimizer.optimizer.state.clear()
    return total


def save(run: Run, learner: Learner, config: RunConfig, categories: Categories) -> None:
    """Write the state to resume from."""
    optimizer = learner.optimizer.optimizer
    save_state(run.last, learner.model, learner.average, optimizer, config, categories, learner.info)


def batch_tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name, those of its targets as ``<name>/<image>``."""
    tensors = {"images": batch.images, "sizes": batch.sizes}
    for i, target in enumerate(batch.targets):
        masks = None if target.masks is None else target.masks.dense()
        parts = {"boxes": target.boxes, "labels": target.labels, "crowd": target.crowd, "masks": masks}
        parts |= {"semantic": target.semantic, "tags": target.tags, "saliency": target.saliency}
        tensors |= {f"{name}/{i}": tensor for name, tensor in parts.items() if tensor is not None}
    return tensors


def batch_images(batch: Batch) -> dict[str, Any]:
    """Which images a batch is made of."""
    return {"image_ids": [m.image_id for m in batch.metas], "paths": [m.path for m in batch.metas]}
