"""A training with a budget in minutes: some steps are timed, and the number of steps that fit is fixed before step 1.

From then on everything is as in a run with that number of steps. The state stores it, so a resumed run keeps it. The
run exceeds its budget if the machine becomes slower.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from maskkit.config import RunConfig
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.data.rules import counted
from maskkit.engine.run import Run, once
from maskkit.errors import MaskkitError
from maskkit.infer.torch_runtime import predictor
from maskkit.models.base import Model
from maskkit.targets import Batch

WARM_UP = 2
"""First steps that are not timed: loader processes start, kernels are chosen."""
LEAST, MOST = 3, 30
"""Least and largest number of steps that are timed."""
SHARE = 0.05
"""Share of the budget after which no more steps are timed."""
MARGIN = 0.03
"""Share of the budget that is reserved for the report and for slower steps."""


def fit_steps(
    run: Run,
    model: Model,
    average: Model | None,
    take: Callable[[Batch, int], object],
    config: RunConfig,
    train_set: Dataset,
    val_set: Dataset,
) -> int:
    """The number of steps that fit into ``train.minutes``, with their evaluations; it is added to the notes of ``run``.

    ``take`` takes an optimizer step. The timed steps are undone in the models; the caller clears the optimizer. All
    processes have to call this.
    """
    settings = config.train
    with undone(model, average):
        step = time_steps(run, take, config, train_set)
    evaluation = time_evaluation(model if average is None else average, config, train_set, val_set) / run.world
    period = settings.eval_every * run.epoch
    spent = time.monotonic() - run.opened
    total, step, evaluation = once(
        run, lambda: (steps_in(60 * settings.minutes - spent, step, evaluation, period), step, evaluation)
    )
    run.notes.append(
        f"{run.flags}minutes {settings.minutes:g}: a step takes {step:.2g} s, an evaluation about {evaluation:.2g} s; "
        f"{counted(total, 'step')}, {total / run.epoch:.1f} epochs, will fit"
    )
    return total


def steps_in(seconds: float, step: float, evaluation: float, period: float) -> int:
    """The number of steps of ``step`` seconds that fit into ``seconds``, at least one.

    An evaluation of ``evaluation`` seconds follows every ``period`` steps (0: none) and the last step.
    """
    left = seconds * (1 - MARGIN) - evaluation
    total = left / step
    if period and total > period:
        total = max(period, left / (step + evaluation / period))
    return max(1, int(total))


def time_steps(run: Run, take: Callable[[Batch, int], object], config: RunConfig, train_set: Dataset) -> float:
    """Seconds per step, loading included."""
    loader = train_loader(train_set, config, 0, WARM_UP + MOST, run.rank, run.world, lambda line: None)
    began = first = time.monotonic()
    timed = 0
    try:
        for step, batch in enumerate(loader):
            run.interrupts.begin_step()
            torch.manual_seed(step)
            take(batch, step)
            run.interrupts.end_step()
            timed = step + 1 - WARM_UP
            if timed == 0:
                first = time.monotonic()
            elif once(run, lambda n=timed: n >= LEAST and time.monotonic() - began > _most(config)):
                break
    finally:
        loader.close()
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return max((time.monotonic() - first) / timed, 1e-6)


def _most(config: RunConfig) -> float:
    """Seconds after which no more steps are timed."""
    return SHARE * 60 * config.train.minutes


def time_evaluation(model: Model, config: RunConfig, train_set: Dataset, val_set: Dataset) -> float:
    """Seconds that predicting the validation images takes in one process, extrapolated from a few of them."""
    part = val_set.subset(range(min(len(val_set), 2 * config.train.batch)))
    found = predictor(model, config.input, train_set.categories)
    began = time.monotonic()
    for _ in found.dataset(part, batch=config.train.batch, workers=config.train.workers):
        pass
    return (time.monotonic() - began) / len(part) * len(val_set)


@contextmanager
def undone(model: nn.Module, average: nn.Module | None) -> Iterator[None]:
    """Restores all weights and buffers at the end."""
    tensors = [t for m in (model, average) if m is not None for t in chain(m.parameters(), m.buffers())]
    before = [t.detach().to("cpu", copy=True) for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def stored_steps(info: object, path: object) -> int:
    """The number of steps that `fit_steps` found when the run in ``path`` began. Raises `MaskkitError`."""
    total = info.get("total") if isinstance(info, dict) else None
    if type(total) is not int or total < 1:
        raise MaskkitError(
            f"{path}: does not say how many steps fit into its minutes; choose another folder with --out"
        )
    return total
