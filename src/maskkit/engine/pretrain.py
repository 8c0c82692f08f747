"""Pre-training without labels (EVA): a folder of images in, a backbone for any of the package's models out.

As in `maskkit.engine.train`, every step is a pure function of the configuration, the weights and its number, so that a
run that was killed goes on to the very bits that an undisturbed one ends with. The folder of a run holds
``config.json``, ``metrics.jsonl``, ``last.safetensors`` (all that is needed to go on) and ``backbone.safetensors``,
with timm's names, for ``--model.backbone-weights``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor
from torch.optim import AdamW
from torchvision.transforms.v2 import functional as tv

from maskkit.checkpoints.checkpoint import load_optimizer, optimizer_tensors
from maskkit.checkpoints.foreign import read_metadata, read_tensors, write_tensors
from maskkit.config import Pretraining, TrainConfig, to_dict
from maskkit.data.images import find_images, read_image
from maskkit.data.loader import batches, permutation
from maskkit.engine.log import RunLog
from maskkit.engine.optim import learning_rate, precision_notes, set_rate
from maskkit.engine.train import mix
from maskkit.errors import DataError, MaskkitError
from maskkit.files import write_json
from maskkit.nn.mim import MaskedStudent, block_mask, cosine_loss
from maskkit.nn.teacher import Teacher

_FREE_TO_CHANGE = {"workers", "save_every"}
_HEADER = "maskkit-pretraining"
_ASPECT = 3 / 4
"""Least ratio of the sides of a crop."""


class Views(NamedTuple):
    """What a step is made of."""

    pixels: Float[Tensor, "b 3 s s"]
    """RGB on 0 to 1."""
    mask: Bool[Tensor, "b n"]
    """Patches that the student does not see."""


def pretrain(images: Path, config: Pretraining, out: Path, resume: bool = False) -> Path:
    """Train a student on all images below a folder, without any label; gives the file of the backbone.

    ``resume`` goes on with the run in ``out``, or begins it where there is none yet. Raises `MaskkitError` for what the
    user can mend.
    """
    last, backbone = out / "last.safetensors", out / "backbone.safetensors"
    accelerator = Accelerator(mixed_precision="no")
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    going_on = resume and last.exists()
    if not resume and (last.exists() or (out / "config.json").exists()):
        raise MaskkitError(f"{out} already holds a run; go on with it by --resume, or give another folder by --out")
    accelerator.wait_for_everyone()  # until all have looked nobody writes
    if not images.is_dir():
        raise DataError(f"{images}: is no folder; give one with images, in folders of it too")
    paths = find_images(images, recursive=True)
    if not paths:
        raise DataError(f"{images}: holds no image; check the path")
    if config.batch < 1 or config.batch % world or config.save_every < 1:
        raise MaskkitError(f"--batch is a multiple of the {world} processes, and --save-every 1 at least")
    total = config.steps or max(1, math.ceil(config.epochs * len(paths) / config.batch))

    torch.manual_seed(config.seed)
    with torch.device("meta"):
        probe = MaskedStudent(config.student, config.size, 1)
    teacher = Teacher(config.teacher, config.teacher_weights, probe.grid, config.size // probe.grid[0])
    student = MaskedStudent(config.student, config.size, teacher.features, drop_path_rate=config.drop_path)
    student.to(device)
    teacher.to(device)
    decaying = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decaying, "lr_factor": 1.0}, {"params": others, "lr_factor": 1.0, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-6, weight_decay=config.weight_decay)
    facts = {"config": to_dict(config), "images": len(paths)}
    start = _go_on(last, facts, student, optimizer) if going_on else 0

    def save(step: int) -> None:
        if accelerator.is_main_process:
            tensors = student.state_dict() | optimizer_tensors(student, optimizer)
            write_tensors(last, tensors, {_HEADER: json.dumps(facts | {"step": step})})
            write_tensors(backbone, student.net.state_dict(), {"timm": config.student})

    if accelerator.is_main_process:
        write_json(out / "config.json", facts["config"])
    network, stepper = accelerator.prepare(student, optimizer)
    schedule = TrainConfig(lr=config.lr, schedule="cosine", warmup=config.warmup, warmup_from=0.0)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    steps = _Steps(paths, config, student.grid, rank, world)
    with RunLog(out, start, total, main=accelerator.is_main_process) as log:
        for note in precision_notes(config.precision, device):
            log.note(note)
        log.note(f"{len(paths)} images; {config.student} learns from {config.teacher}, {config.teacher_weights}")
        for step, views in enumerate(batches(steps, range(start, total), config.workers), start):
            torch.manual_seed(mix(config.seed, step, rank))
            rate = learning_rate(step, total, schedule)
            set_rate(optimizer, rate)
            pixels, mask = views.pixels.to(device), views.mask.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                predicted = network((pixels - mean) / std, mask)
                wanted = teacher(pixels)[mask]
            loss = cosine_loss(predicted, wanted)
            value = float(accelerator.reduce(loss.detach(), "mean"))  # type: ignore[arg-type]
            if not math.isfinite(value):
                raise MaskkitError(f"step {step + 1}: the loss is {value}; lower --lr and go on by --resume")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(student.parameters(), config.clip)
            stepper.step()
            stepper.zero_grad()
            log.step(step + 1, {"cosine": value}, rate, config.batch)
            if (step + 1) % config.save_every == 0 or step + 1 == total:
                save(step + 1)
    accelerator.wait_for_everyone()
    return backbone


@dataclass(frozen=True)
class _Steps:
    """The views of a step, of each the share of process ``rank`` of ``world``; no image depends on another."""

    paths: Sequence[Path]
    config: Pretraining
    grid: tuple[int, int]
    rank: int
    world: int

    def __getitem__(self, step: int) -> Views:
        n, batch = len(self.paths), self.config.batch
        places = range(step * batch, (step + 1) * batch)[self.rank :: self.world]
        views = [self._view(*divmod(place, n)) for place in places]
        return Views(*map(torch.stack, zip(*views, strict=True)))

    def _view(self, epoch: int, place: int) -> tuple[Tensor, Tensor]:
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


def _go_on(last: Path, facts: dict, student: MaskedStudent, optimizer: AdamW) -> int:
    """Put the state of ``last`` back; gives its step. Raises `MaskkitError` where that run was another one."""
    header = read_metadata(last).get(_HEADER)
    if header is None:
        raise DataError(f"{last}: is no checkpoint of a pre-training; give another folder by --out")
    then, now = json.loads(header), facts["config"] | {"images": facts["images"]}
    before = then["config"] | {"images": then["images"]}
    changed = [k for k in now if now[k] != before.get(k) and k not in _FREE_TO_CHANGE]
    if changed:
        what = "; ".join(f"{k} was {before.get(k)!r} and is {now[k]!r}" for k in changed)
        raise MaskkitError(f"{last}: cannot go on, that run was another one: {what}; or another folder by --out")
    tensors = read_tensors(last)
    student.load_state_dict({n: t for n, t in tensors.items() if "/" not in n})
    load_optimizer(tensors, student, optimizer)
    return then["step"]
