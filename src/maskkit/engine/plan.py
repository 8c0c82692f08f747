"""Batch and length of a training, checked before it begins; a batch of ``auto`` is fitted to the memory."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints.checkpoint import config_of
from maskkit.checkpoints.header import read_header
from maskkit.config import RunConfig, TrainConfig
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.engine.optim import precision_notes
from maskkit.engine.run import Run, once
from maskkit.errors import MaskkitError
from maskkit.models.base import Model

_MOST = 65_536
"""Largest batch: making a list of more images takes longer than anybody waits."""
ROOM = 0.6
"""Share of the free memory that a batch of ``auto`` may take: images and their numbers of objects differ."""
LARGEST = 64
"""Largest batch of ``auto``."""
LEAST_STEPS = 16
"""Least number of steps per epoch with a batch of ``auto``."""
BESIDE = 2.0
"""Memory of a step on a processor, relative to what it saves for the backward pass: gradients and work space."""


def plan_steps(run: Run, images: int) -> None:
    """Set the number of steps for a training set with this number of images.

    Raises `MaskkitError` for a batch that is too large or that the processes cannot share evenly, and for settings that
    contradict each other.
    """
    settings = run.settings
    if settings.patience and not settings.eval_every:
        raise MaskkitError(
            f"{run.flags}patience {settings.patience} waits for evaluations, of which there is one, at the end; set "
            f"{run.flags}eval-every 1"
        )
    if settings.minutes and settings.steps:
        raise MaskkitError(
            f"{run.flags}minutes and {run.flags}steps both say how long the run is; set {run.flags}steps None, or "
            f"{run.flags}minutes 0"
        )
    if settings.batch > _MOST:
        raise MaskkitError(f"{run.flags}batch {settings.batch}: must be between 1 and {_MOST}")
    if settings.batch % run.world:
        raise MaskkitError(
            f"{run.flags}batch {settings.batch} cannot be shared by {run.world} processes; give a multiple"
        )
    if settings.batch // run.world % settings.accumulate:
        each = f", {settings.batch // run.world} images in each process," if run.world > 1 else ""
        raise MaskkitError(
            f"{run.flags}batch {settings.batch}{each} has no {settings.accumulate} equal parts; give another number to "
            f"{run.flags}accumulate"
        )
    run.epoch = images / settings.batch
    run.total = steps_of(settings, images)
    run.notes += precision_notes(settings.precision, run.device)


def steps_of(settings: TrainConfig, images: int) -> int:
    """The number of steps, from ``steps`` or ``epochs``, for this number of training images."""
    return settings.steps or max(1, math.ceil(settings.epochs * images / settings.batch))


def fit_batch(run: Run, config: RunConfig, train_set: Dataset) -> RunConfig:
    """``config`` with the largest batch that fits into memory, if ``train.batch`` is ``auto`` (0); else ``config``.

    The learning rate, given for the preset's batch, is scaled: linearly for SGD (Goyal et al., 2017,
    https://arxiv.org/abs/1706.02677), by the square root for AdamW (Malladi et al., 2022,
    https://arxiv.org/abs/2205.10287). A resumed run keeps its batch. All processes have to call this.
    """
    settings = config.train
    if settings.batch:
        return config
    if run.resumed:
        batch = config_of(read_header(run.last), run.last).train.batch
    else:
        batch = once(run, lambda: largest_batch(run, config, train_set))
    usual = zoo.preset(config.preset).train.batch
    factor = batch / usual if settings.optimizer == "sgd" else math.sqrt(batch / usual)
    rate = float(f"{settings.lr * factor:.3g}")
    if not run.resumed:
        run.notes.append(
            f"{run.flags}batch auto: {batch} images per step, with {free_memory(run.device) / 1e9:.1f} GB free; "
            f"learning rate {rate:g} in place of {settings.lr:g}, which is for {usual}"
        )
    return replace(config, train=replace(settings, batch=batch, lr=rate))


def largest_batch(run: Run, config: RunConfig, train_set: Dataset) -> int:
    """The largest batch whose parts fit into memory; a part is what one process computes at a time (``accumulate``).

    It is a power of two times the number of parts, at most `LARGEST`, and small enough for `LEAST_STEPS` per epoch,
    with at least one image in each part. On CUDA devices steps with growing batches are tried; elsewhere what a step
    saves for the backward pass is counted.
    """
    parts = run.world * config.train.accumulate
    most = max(parts, min(LARGEST, len(train_set) // LEAST_STEPS))
    sizes = [n for n in (2**k for k in range(17)) if n * parts <= most]
    model = zoo.model_class(config.preset)(config.model)
    model.to(run.device, memory_format=run.layout)  # type: ignore[call-overload]
    model.train()
    free = ROOM * free_memory(run.device)
    weights = sum(p.nbytes for p in model.parameters())
    if run.device.type == "cuda":
        fitting = [1]
        for size in sizes:
            taken = peak(run.device, lambda n=size: try_step(run, model, config, train_set, n))
            if taken is None or taken + 3 * weights > free:  # two moments of the optimizer, the moving average
                break
            fitting.append(size)
        return parts * fitting[-1]
    room = free / int(os.environ.get("LOCAL_WORLD_SIZE", run.world))
    each = BESIDE * saved_bytes(model, lambda: try_step(run, model, config, train_set, 2, backward=False)) / 2
    return parts * max((n for n in sizes if 4 * weights + n * each <= room), default=1)


def try_step(run: Run, model: Model, config: RunConfig, train_set: Dataset, images: int, backward: bool = True) -> None:
    """Compute a step with the first images of the training, without changing any weight."""
    settings = replace(config.train, batch=images, workers=0, repeat=0.0)
    (batch,) = train_loader(train_set, replace(config, train=settings), 0, 1)
    batch = batch.to(run.device)
    with run.autocast():
        raw = model(batch.images.contiguous(memory_format=run.layout), batch.sizes, batch.targets)
    loss = torch.stack(list(model.loss(convert_to_fp32(raw), batch).values())).sum()
    if backward:
        loss.backward()


def peak(device: torch.device, work: Callable[[], None]) -> int | None:
    """Peak number of bytes that ``work`` takes on a CUDA device; None if there is not enough memory."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        work()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return torch.cuda.max_memory_allocated(device) - before


def saved_bytes(model: Model, work: Callable[[], None]) -> int:
    """Number of bytes that ``work`` saves for its backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return sum(saved.values())


def free_memory(device: torch.device) -> int:
    """Free bytes on a device; for processors those of the machine, or of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used, cache in (("max", "current", ""), ("limit_in_bytes", "usage_in_bytes", "total_")):
        folder = Path("/sys/fs/cgroup") / ("memory" if cache else "")  # the second version of control groups, the first
        with suppress(OSError, ValueError):  # not a container, or one without a limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / f"memory.{used}").read_text()) - int(stat.get(f"{cache}inactive_file", 0))
            free = min(free, int((folder / f"memory.{limit}").read_text()) - taken)
    return max(free, 0)
