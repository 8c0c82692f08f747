"""Pre-training without labels (EVA): from a folder of images to a backbone for any of the package's models.

The folder of a run: ``config.json``, ``metrics.jsonl``, ``last.safetensors`` (the state to resume from) and
``backbone.safetensors``, with timm's names, for ``--model.backbone.weights``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from jaxtyping import Bool, Float
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.transforms.v2 import functional as tv

from maskkit.checkpoints.checkpoint import fill
from maskkit.checkpoints.foreign import read_tensors, write_tensors
from maskkit.checkpoints.header import read_metadata
from maskkit.checkpoints.listing import one_line, parse_json
from maskkit.config import Pretraining, TrainConfig, to_dict
from maskkit.data.images import find_images, read_image
from maskkit.data.loader import batches, permutation
from maskkit.engine.plan import plan_steps
from maskkit.engine.run import Run, begin, finite, keep_bad_batch, open_run
from maskkit.engine.start import refuse_changes
from maskkit.engine.state import load_optimizer, optimizer_tensors
from maskkit.engine.teacher import Teacher
from maskkit.errors import DataError
from maskkit.nn.mim import MaskedStudent, block_mask, cosine_loss
from maskkit.ranges import check_ranges

_FREE_TO_CHANGE = {"workers", "save_every", "log"}
_HEADER = "maskkit-pretraining"
_ASPECT = 3 / 4
"""Least ratio of the sides of a crop."""


class Masked(NamedTuple):
    """Random crops with masked patches: the batch of a step."""

    pixels: Float[Tensor, "b 3 s s"]
    """RGB on 0 to 1."""
    mask: Bool[Tensor, "b n"]
    """Patches that the student does not see."""


def pretrain(images: Path, config: Pretraining, out: Path, resume: bool = False, device: str | None = None) -> Path:
    """Train a student on all images in a folder and its subfolders, without labels; returns the file of the backbone.

    ``resume`` continues the run in ``out``, or starts it where there is none yet. ``device`` is that of
    `maskkit.engine.train.train`. Raises `MaskkitError` for what the user can correct.
    """
    check_ranges(config)
    run = open_run(out, settings := recipe(config), resume, flags="--", device=device)
    paths = list_images(images)
    plan_steps(run, len(paths))
    mean, std = (torch.tensor(v, device=run.device)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    with run:
        learner = make_learner(run, config, len(paths))
        student, teacher, network, optimizer = learner.student, learner.teacher, learner.network, learner.optimizer
        crops = Crops(paths, config, student.grid, run.rank, run.world)
        loader = batches(crops, range(run.start, run.total), config.workers, run.log.note)
        run.exits.callback(loader.close)
        for step, batch in enumerate(loader, run.start):
            rate = run.begin_step(step, optimizer)
            pixels, mask = batch.pixels.to(run.device), batch.mask.to(run.device)
            with run.autocast():
                predicted = network((pixels - mean) / std, mask)
                wanted = teacher(pixels)[mask]
            losses = {"cosine": cosine_loss(predicted, wanted)}
            values = run.read_losses(losses)
            if not finite(values):
                raise keep_bad_batch(run, values, step, batch._asdict(), {})
            run.backward(losses)
            run.update(student, optimizer)

            run.log.step(step + 1, values, rate, settings.batch)
            run.end_step(step + 1)
            if run.save_due(step + 1):
                run.save()
        run.save()  # also in a run that was killed between its two files
    return out / "backbone.safetensors"


@dataclass
class Learner:
    """The student of a run with its teacher and its optimizer."""

    student: MaskedStudent
    teacher: Teacher
    network: nn.Module
    """The student as it is called: shared by several processes."""
    optimizer: AcceleratedOptimizer
    facts: dict[str, Any]
    """Configuration and number of images, which a run that continues must have in common with it."""


def recipe(config: Pretraining) -> TrainConfig:
    """The settings that pre-training shares with every training."""
    names = ("epochs", "steps", "batch", "lr", "warmup", "clip", "precision", "workers", "seed", "save_every", "log")
    shared = {name: getattr(config, name) for name in names}
    return TrainConfig(schedule="cosine", warmup_from=0.0, **shared)


def list_images(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders. Raises `DataError` when there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; give one with images, in subfolders too")
    paths = find_images(folder, recursive=True)
    if not paths:
        raise DataError(f"{folder}: holds no image; check the path")
    return paths


def make_learner(run: Run, config: Pretraining, images: int) -> Learner:
    """Student and teacher, with the state of the run where it is resumed.

    Raises `MaskkitError` for networks that do not fit, and where a resumed run had other settings.
    """
    torch.manual_seed(config.seed)
    with torch.device("meta"):
        probe = MaskedStudent(config.student, config.size, 1)
    teacher = Teacher(config.teacher, config.teacher_weights, probe.grid, config.size // probe.grid[0])
    student = MaskedStudent(config.student, config.size, teacher.features, drop_path_rate=config.drop_path)
    student.to(run.device)
    teacher.to(run.device)
    decaying = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decaying, "lr_factor": 1.0}, {"params": others, "lr_factor": 1.0, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-6, weight_decay=config.weight_decay)
    facts = {"config": to_dict(config), "images": images}
    start = load(run.last, facts, student, optimizer) if run.resumed else 0
    run.notes.append(f"{images} images; {config.student} learns from {config.teacher}, {config.teacher_weights}")
    network, prepared = run.accelerator.prepare(student, optimizer)
    learner = Learner(student, teacher, network, prepared, facts)
    run.keep = lambda: save(run, learner)
    begin(run, start, facts["config"])
    return learner


def save(run: Run, learner: Learner) -> None:
    """Write the backbone and then the state to resume from: what is complete has its backbone."""
    student, name = learner.student, learner.facts["config"]["student"]
    write_tensors(run.out / "backbone.safetensors", student.net.state_dict(), {"timm": name})
    tensors = student.state_dict() | optimizer_tensors(student, learner.optimizer.optimizer)
    write_tensors(run.last, tensors, {_HEADER: json.dumps(learner.facts | {"step": run.done})})


def load(last: Path, facts: Mapping[str, Any], student: MaskedStudent, optimizer: AdamW) -> int:
    """Load the state of ``last``; returns its step. Raises `MaskkitError` where that run had other settings."""
    header = read_metadata(last).get(_HEADER)
    if header is None:
        raise DataError(f"{last}: is no checkpoint of a pre-training; choose another folder with --out")
    try:
        then = parse_json(header)
        before, now = ({**known["config"], "images": known["images"]} for known in (then, facts))
        step = int(then["step"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{last}: its description is damaged ({one_line(error)}); choose another --out") from None
    refuse_changes(last, before, now, _FREE_TO_CHANGE)
    tensors = read_tensors(last)
    fill(student, {n: t for n, t in tensors.items() if "/" not in n}, last)
    load_optimizer(tensors, student, optimizer, last)
    return step


@dataclass(frozen=True)
class Crops:
    """The batch of each step: this process's share of it. No image depends on another one."""

    paths: Sequence[Path]
    config: Pretraining
    grid: tuple[int, int]
    rank: int
    world: int

    def __getitem__(self, step: int) -> Masked:
        n, batch = len(self.paths), self.config.batch
        places = range(step * batch, (step + 1) * batch)[self.rank :: self.world]
        crops = [self._crop(*divmod(place, n)) for place in places]
        return Masked(*map(torch.stack, zip(*crops, strict=True)))

    def _crop(self, epoch: int, place: int) -> tuple[Tensor, Tensor]:
        config = self.config
        index = int(permutation(len(self.paths), config.seed, epoch)[place])
        rng = np.random.default_rng([config.seed, epoch, index])
        pixels = random_crop(read_image(self.paths[index]), config.size, config.crop, rng)
        if rng.random() < config.flip:
            pixels = pixels.flip(2)
        mask = block_mask(self.grid, int(config.mask * self.grid[0] * self.grid[1]), rng)
        return pixels.float() / 255, torch.from_numpy(mask.reshape(-1))


def random_crop(image: Tensor, size: int, least: float, rng: np.random.Generator) -> Tensor:
    """A part of the image (3, H, W) of ``least`` of its area at least, as (3, size, size); sides from 3:4 to 4:3."""
    height, width = image.shape[1:]
    area = height * width * rng.uniform(least, 1)
    aspect = math.exp(rng.uniform(math.log(_ASPECT), -math.log(_ASPECT)))
    h, w = min(height, max(1, round(math.sqrt(area / aspect)))), min(width, max(1, round(math.sqrt(area * aspect))))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    mode = tv.InterpolationMode.BICUBIC
    return tv.resized_crop(image, top, left, h, w, [size, size], interpolation=mode, antialias=True)
