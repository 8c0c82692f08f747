"""Training: one plain loop over batches, from a `RunConfig` to a folder with weights, curves and a report.

Every step is a pure function of (configuration, weights, step number): the loader makes batch ``s`` from the seed and
``s``, the random choices inside a loss are seeded by them, the learning rate is computed from them. So a run that was
killed goes on from ``last.safetensors`` to the very bits that an uninterrupted run ends with.

The folder: ``config.json`` (resolved), ``metrics.jsonl``, ``last.safetensors`` (everything), ``best.safetensors`` (to
predict with) and its ``predictions.json`` and ``report.html``, ``samples/`` (validation pictures at each evaluation).
"""

import json
import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32, gather_object
from safetensors.torch import save_file
from torch import Tensor

from maskkit import registry
from maskkit.config import RunConfig, to_dict
from maskkit.data import open_splits
from maskkit.data.check import check
from maskkit.data.loader import train_loader
from maskkit.data.records import Dataset
from maskkit.engine import checkpoint
from maskkit.engine.log import RunLog
from maskkit.engine.optim import learning_rate, make_optimizer, set_rate, update_average
from maskkit.errors import MaskkitError
from maskkit.eval.coco import evaluate
from maskkit.eval.report import write_report
from maskkit.files import replacing, write_json
from maskkit.infer.predict import predict_dataset
from maskkit.models.base import Model
from maskkit.types import Batch, Categories, Prediction

SAMPLES = 4
"""Validation pictures that are drawn at each evaluation."""

_KNOWS = {"masks": ("masks", "boxes", "tags"), "boxes": ("boxes", "tags"), "tags": ("tags",)}


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run left what, and how good its best weights are."""

    out: Path
    best: Path
    last: Path
    steps: int
    metrics: dict[str, float]


def train(config: RunConfig, out: Path, resume: bool = False, weights: Path | None = None) -> TrainResult:
    """Train the preset of ``config`` on its data and write the run to the folder ``out``.

    ``resume`` goes on with the run in ``out``, which must have the same configuration, or begins it where there is none
    yet: the same command can be given until it succeeds. ``weights`` start a run: a maskkit checkpoint, of which all
    tensors that fit are taken, or a backbone with timm's names. Raises `MaskkitError` for what the user can mend.
    """
    accelerator = Accelerator(mixed_precision="no")  # autocast stands in the loop, where it can be seen
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    last, best = out / "last.safetensors", out / "best.safetensors"
    if not resume and (out / "config.json").exists():
        raise MaskkitError(f"{out} already holds a run; go on with it by --resume, or give another folder with --out")

    train_set, val_set, notes = open_data(config)
    categories = train_set.categories
    config = replace(config, model=replace(config.model, num_classes=len(categories)))
    settings = config.train
    total = settings.steps or max(1, math.ceil(settings.epochs * len(train_set) / settings.batch))

    torch.manual_seed(settings.seed)
    model = registry.model_class(config.preset)(config.model)
    if resume and last.exists():
        checkpoint.check_same(config, categories, len(train_set), last)
    else:
        notes += checkpoint.start_weights(model, config, weights)
    model.to(
        accelerator.device, memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format
    )
    average = deepcopy(model).requires_grad_(False) if settings.ema else None
    optimizer = make_optimizer(model, settings)
    state: dict[str, Any] = {"step": 0, "pictures": len(train_set), "best": None, "metrics": {}}
    if resume and last.exists():
        state = checkpoint.load_state(last, model, average, optimizer)
        notes.append(f"going on with {out} after step {state['step']} of {total}")
    elif resume:
        notes.append(f"{out} holds no checkpoint yet: the run begins with step 0")

    def save() -> None:
        if main:
            checkpoint.save_state(last, model, average, optimizer, config, categories, state)

    if not last.exists():
        save()
    if main:
        write_json(out / "config.json", to_dict(config))
    network, stepper = accelerator.prepare(model, optimizer)
    if settings.compile:
        network = torch.compile(network)
    start = state["step"]
    with RunLog(out, start, total, settings.tensorboard, main) as log:
        for note in notes:
            log.note(note)
        for step, batch in enumerate(train_loader(train_set, config, start, total, rank, world), start):
            torch.manual_seed(mix(settings.seed, step, rank))
            rate = learning_rate(step, total, settings)
            set_rate(optimizer, rate)
            batch = batch.to(accelerator.device)
            if settings.channels_last:
                batch.images = batch.images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                raw = network(batch.images, batch.targets)
            terms = model.loss(convert_to_fp32(raw), batch)
            values = dict(zip(terms, torch.stack([t.detach() for t in terms.values()]).tolist(), strict=True))
            if not all(map(math.isfinite, values.values())):
                raise MaskkitError(stop_at(batch, values, step, out / "bad_batch.safetensors"))
            accelerator.backward(torch.stack(list(terms.values())).sum())
            if settings.clip:
                accelerator.clip_grad_norm_(model.parameters(), settings.clip)
            stepper.step()
            stepper.zero_grad()
            if average is not None:
                update_average(average, model, settings.ema, step)

            done = state["step"] = step + 1
            log.step(done, values, rate, settings.batch)
            if evaluation_due(done, total, settings.eval_every * len(train_set) / settings.batch):
                rows = detect(
                    average or model, val_set, config, categories, out / "samples" / f"{done:07}", log, accelerator
                )
                if main:
                    metrics = measure(rows, val_set)
                    log.evaluation(done, metrics)
                    if state["best"] is None or metrics["AP"] > state["best"]:
                        state |= {"best": metrics["AP"], "metrics": metrics}
                        info = {"step": done, "metrics": metrics}
                        write_json(out / "predictions.json", rows)
                        checkpoint.save_model(best, average or model, config, categories, info)
            if done % settings.save_every == 0 or done == total:
                save()
    if main:
        rows = json.loads((out / "predictions.json").read_text())
        write_report(out / "report.html", rows, val_set)
    accelerator.wait_for_everyone()
    return TrainResult(out, best, last, total, state["metrics"])


def open_data(config: RunConfig) -> tuple[Dataset, Dataset, list[str]]:
    """Training and validation pictures after the doctor has seen them, and what there is to say about it.

    Raises `DataError` with the whole list of unusable records, unless ``data.on_bad`` is ``skip``.
    """
    data = config.data
    train_set, val_set = open_splits(data.train, data.val, data.val_split, config.train.seed)
    return train_set, val_set, []


def evaluation_due(done: int, total: int, period: float) -> bool:
    """Whether an evaluation follows step ``done``, where one is wanted every ``period`` steps (0: only at the end)."""
    return done == total or (period > 0 and int(done / period) > int((done - 1) / period))


def detect(
    model: Model,
    data: Dataset,
    config: RunConfig,
    categories: Categories,
    samples: Path,
    log: RunLog,
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    """COCO result rows of all processes for ``data``; the first pictures are drawn to ``samples``."""
    part = data.subset(range(accelerator.process_index, len(data), accelerator.num_processes))
    rows: list[dict[str, Any]] = []
    found = predict_dataset(model, part, config.input, categories, config.train.batch, config.train.workers)
    for i, prediction in enumerate(log.track(found, len(part), "evaluating")):
        rows += prediction.to_coco()
        if i < SAMPLES and accelerator.is_main_process:
            draw(prediction, samples)
    return gather_object(rows)


def stop_at(batch: Batch, values: dict[str, float], step: int, path: Path) -> str:
    """Write the batch whose loss is not finite to ``path``; the message to stop with."""
    tensors = {"images": batch.images.contiguous(), "valid": batch.valid}
    for i, target in enumerate(batch.targets):
        tensors |= {f"boxes/{i}": target.boxes, f"labels/{i}": target.labels, f"crowd/{i}": target.crowd}
    where = json.dumps(
        {"step": step, "loss": {n: str(v) for n, v in values.items()}, "pictures": [m.path for m in batch.metas]}
    )
    with replacing(path) as temporary:
        save_file({n: t.detach().cpu() for n, t in tensors.items()}, temporary, metadata={"batch": where})
    bad = ", ".join(f"{n} is {v}" for n, v in values.items() if not math.isfinite(v))
    pictures = some([m.path or str(m.image_id) for m in batch.metas])
    return (
        f"step {step + 1}: {bad}; the batch ({pictures}) is kept in {path}; "
        "lower --train.lr, set --train.clip 10, or look at the labels of these pictures with maskkit check"
    )


def mix(seed: int, step: int, rank: int) -> int:
    """One seed for the random choices of a step in a process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
