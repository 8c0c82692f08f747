"""Training: one plain loop over batches, from a `RunConfig` to a folder with weights, curves and a report.

Every step is a pure function of the configuration, the weights and the number of the step: the loader makes batch ``s``
from the seed and ``s``, the random choices inside a loss are seeded by the two, the learning rate is computed from
``s``. So a run that was killed goes on from ``last.safetensors`` to the very bits that an undisturbed run ends with.

Several processes share each batch and take the step that one would have taken with all of it: images are augmented by
their own numbers, and losses are divided by the objects of the whole batch (`maskkit.nn.losses.normaliser`). What
remains different is what a loss draws at random, and batch norm that is trained, which sees its process's images alone.

The folder of a run: ``config.json`` (resolved), ``metrics.jsonl``, ``last.safetensors`` (all that is needed to go on),
``best.safetensors`` (to predict with), its ``predictions.json`` on the validation images and ``report.html``, and
``samples/`` with some of these images as they were seen at each evaluation.
"""

import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, convert_to_fp32, gather_object
from safetensors.torch import save_file

from maskkit.checkpoints import checkpoint
from maskkit.config import RunConfig, to_dict
from maskkit.data import open_splits
from maskkit.data.check import check_datasets
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.engine.log import RunLog
from maskkit.engine.optim import learning_rate, make_optimizer, precision_notes, set_rate, update_average
from maskkit.errors import DataError, MaskkitError
from maskkit.eval.rows import Row, rows_of
from maskkit.eval.task import TASKS
from maskkit.files import replacing, write_json
from maskkit.infer.torch_runtime import predictor
from maskkit.models.base import Model
from maskkit.prediction import Prediction
from maskkit.targets import Batch
from maskkit.zoo import registry

SAMPLES = 4
"""Validation images that are drawn at each evaluation."""

SAMPLE_SCORE = 0.3
"""Least score of what is drawn there."""

T = TypeVar("T")


LABELS = {"masks": "masks", "label_map": "label maps", "boxes": "boxes", "tags": "image tags"}
"""Kinds of supervision as messages call them, the richest first."""


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run left what, and how good its best weights are."""

    out: Path
    best: Path
    last: Path
    steps: int
    metrics: dict[str, float]
    """Of the best weights: `maskkit.eval.task.Result.metrics`, the number that decided which are best first."""


def train(config: RunConfig, out: Path, resume: bool = False, weights: Path | None = None) -> TrainResult:
    """Train the preset of ``config`` on its data and write the run to the folder ``out``.

    ``resume`` goes on with the run in ``out``, which must have the same configuration, or begins it where there is none
    yet: the same command can be given until it succeeds. ``weights`` start a run: a maskkit checkpoint, of which all
    tensors that fit are taken, or a backbone with timm's names. Raises `MaskkitError` for what the user can mend.
    """
    last, best, predictions = (out / name for name in ("last.safetensors", "best.safetensors", "predictions.json"))
    accelerator = Accelerator(mixed_precision="no")  # autocast stands in the loop, where it can be seen
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    going_on = resume and last.exists()
    if not resume and (last.exists() or (out / "config.json").exists()):
        raise MaskkitError(f"{out} already holds a run; go on with it by --resume, or give another folder by --out")
    accelerator.wait_for_everyone()  # until all have looked nobody writes
    train_set, val_set, notes = once(accelerator, lambda: open_data(config))
    task = TASKS[registry.model_class(config.preset).task_of(config.model)]
    categories, images = train_set.categories, len(train_set)
    config = replace(config, model=replace(config.model, num_classes=len(categories)))
    settings = config.train
    if min(settings.batch, settings.save_every) < 1:
        raise MaskkitError("--train.batch and --train.save-every are 1 at least")
    total = settings.steps or max(1, math.ceil(settings.epochs * images / settings.batch))
    if settings.batch % world:
        raise MaskkitError(f"--train.batch {settings.batch} cannot be shared by {world} processes; give a multiple")

    notes += precision_notes(settings.precision, device)
    torch.manual_seed(settings.seed)
    model = registry.model_class(config.preset)(config.model)
    if reason := model.why_not(config.data, categories):
        raise DataError(f"{config.data.train}: {config.preset} {reason}")
    if going_on:
        checkpoint.check_same(config, categories, images, last)
    else:
        notes += checkpoint.start_weights(model, config, weights)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    average = deepcopy(model).requires_grad_(False) if settings.ema else None
    shown = model if average is None else average  # what is evaluated and saved to predict with
    optimizer = make_optimizer(model, settings)
    state: dict[str, Any] = {"step": 0, "images": images, "best": None, "metrics": {}}
    if going_on:
        state = checkpoint.load_state(last, model, average, optimizer)
        notes.append(f"going on after step {state['step']} of {total}")
    elif resume:
        notes.append(f"{out} holds no checkpoint to go on from: the run begins with step 1")

    def save() -> None:
        if accelerator.is_main_process:
            checkpoint.save_state(last, model, average, optimizer, config, categories, state)

    if not going_on:
        save()
    if accelerator.is_main_process:
        write_json(out / "config.json", to_dict(config))
    network, stepper = accelerator.prepare(model, optimizer)
    if settings.compile:
        network = torch.compile(network)
    start = state["step"]
    with RunLog(out, start, total, settings.tensorboard, accelerator.is_main_process) as log:
        for note in notes:
            log.note(note)
        for step, batch in enumerate(train_loader(train_set, config, start, total, rank, world), start):
            torch.manual_seed(mix(settings.seed, step, rank))
            rate = learning_rate(step, total, settings)
            set_rate(optimizer, rate)
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                raw = network(batch.images.contiguous(memory_format=layout), batch.sizes, batch.targets)
            terms = model.loss(convert_to_fp32(raw), batch)
            # the one time in a step that the device is waited for: a loss that is not finite may not reach the weights
            whole = accelerator.reduce(torch.stack([t.detach() for t in terms.values()]), "mean")
            values = dict(zip(terms, whole.tolist(), strict=True))  # type: ignore[union-attr]
            if not all(map(math.isfinite, values.values())):
                kept = out / ("bad_batch.safetensors" if rank == 0 else f"bad_batch_{rank}.safetensors")
                raise MaskkitError(keep_batch(batch, values, step + 1, kept))
            accelerator.backward(torch.stack(list(terms.values())).sum())
            if settings.clip:
                accelerator.clip_grad_norm_(model.parameters(), settings.clip)
            stepper.step()
            stepper.zero_grad()
            if average is not None:
                update_average(average, model, settings.ema, step)

            done = state["step"] = step + 1
            log.step(done, values, rate, settings.batch)
            if evaluation_due(done, total, settings.eval_every * images / settings.batch):
                rows = detect(shown, val_set, train_set, config, out / "samples" / f"{done:07}", log, accelerator)
                if accelerator.is_main_process:
                    metrics = task.evaluate(rows, val_set).metrics
                    log.evaluation(done, metrics)
                    decisive = next(iter(metrics.values()))
                    if state["best"] is None or decisive >= state["best"]:
                        state |= {"best": decisive, "metrics": metrics}
                        write_json(predictions, rows)
                        checkpoint.save_model(best, shown, config, categories, {"step": done, "metrics": metrics})
            if done % settings.save_every == 0 or done == total:
                save()
    if accelerator.is_main_process:
        rows = json.loads(predictions.read_bytes())
        step = checkpoint.read_header(best)["info"]["step"]
        notes = [f"weights of step {step} of {total}, trained on {images} images of {train_set.source}"]
        task.write_report(out / "report.html", task.evaluate(rows, val_set), rows, val_set, config.preset, notes)
    accelerator.wait_for_everyone()
    return TrainResult(out, best, last, total, state["metrics"])


def open_data(config: RunConfig) -> tuple[Dataset, Dataset, list[str]]:
    """Training and validation images after the data-set doctor has seen them, and lines about what was found.

    Raises `DataError` with a list of the unusable records, unless ``data.on_bad`` is ``skip``, and when the method
    cannot learn from the labels that there are.
    """
    data, kind = config.data, registry.model_class(config.preset)
    train_set, val_set = map(TASKS[kind.task_of(config.model)].view, open_splits(data.train, data.val, data.val_split))
    report = check_datasets({"train": train_set, "val": val_set}, data.train)
    train_set, val_set = report.datasets["train"], report.datasets["val"]
    notes = [f"{len(train_set)} images to train on, {len(val_set)} to validate, {len(train_set.categories)} classes"]
    if report.errors and data.on_bad == "refuse":
        shown = "\n  ".join(map(str, report.errors[:20]))
        more = f"\n  and {len(report.errors) - 20} more" if len(report.errors) > 20 else ""
        raise DataError(
            f"{data.train}: {len(report.errors)} records cannot be used:\n  {shown}{more}\n"
            "mend them (maskkit check shows all), or train without them: --data.on-bad skip"
        )
    if report.errors:
        notes.append(f"{len(report.errors)} unusable records are left out; maskkit check {data.train} lists them")
    if report.warnings:
        notes.append(f"{len(report.warnings)} doubtful records are used; maskkit check {data.train} lists them")
    for name, part in report.datasets.items():
        if len(part) == 0:
            raise DataError(f"{data.train}: no usable image for {name}; maskkit check {data.train} tells why")
    objects = [a for record in train_set.records for a in record.annotations]
    maps = [record.semantic for record in train_set.records if record.semantic is not None]
    masks = any(a.segmentation is not None for a in objects) or any(m.known for m in maps)
    there = {"tags"} | ({"boxes"} if objects else set()) | ({"masks", "label_map"} if masks else set())
    wanted = {"masks": {"masks", "label_map", "boxes", "tags"}, "boxes": {"boxes", "tags"}, "tags": {"tags"}}[
        data.labels
    ]
    if not objects and not any(m.classes for m in maps):
        raise DataError(f"{data.train}: no image has an object, there is nothing to learn; add annotations")
    supervision = kind.supervision_of(config.model)
    if not supervision & there & wanted:
        given = f"--data.labels {data.labels}" if data.labels != "masks" else "the data has none"
        enough = " or ".join(name for kind, name in LABELS.items() if kind in supervision)
        raise DataError(f"{data.train}: {config.preset} learns from {enough}, but {given}")
    if data.saliency is not None:
        train_set = train_set.with_saliency(Path(data.saliency))
    return train_set, val_set, notes


def once(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What ``work`` gives, or raises for the user to mend, in the first process; in all of them."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [work()]
        except MaskkitError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], MaskkitError):
        raise outcome[0]
    return outcome[0]


def evaluation_due(done: int, total: int, period: float) -> bool:
    """Whether an evaluation follows step ``done``, where one is wanted every ``period`` steps (0: only at the end)."""
    return done == total or (period > 0 and int(done / period) > int((done - 1) / period))


def detect(
    model: Model,
    val_set: Dataset,
    train_set: Dataset,
    config: RunConfig,
    samples: Path,
    log: RunLog,
    accelerator: Accelerator,
) -> list[Row]:
    """COCO result rows of all processes for ``val_set``; the first images are drawn into the folder ``samples``."""
    part = val_set.subset(range(accelerator.process_index, len(val_set), accelerator.num_processes))
    settings = config.train
    found = predictor(model, config.input, train_set.categories)
    predictions = found.dataset(part, batch=settings.batch, workers=settings.workers)

    def each(i: int, prediction: Prediction) -> None:
        if i < SAMPLES and accelerator.is_main_process:
            draw(prediction, samples)

    rows = rows_of(log.track(predictions, len(part), "evaluating"), each)
    return gather_object(rows)


def draw(prediction: Prediction, folder: Path) -> None:
    """Save the image of a prediction with its surer objects drawn over it."""
    found = prediction.instances
    if found is not None:
        prediction = replace(prediction, instances=found[found.scores >= SAMPLE_SCORE])
    prediction.save(folder / f"{prediction.meta.image_id}_{Path(prediction.meta.path).stem}.jpg")


def keep_batch(batch: Batch, values: Mapping[str, float], step: int, path: Path) -> str:
    """Write the batch of a loss that is not finite to ``path``; gives the message to stop with."""
    tensors = {"images": batch.images, "sizes": batch.sizes}
    for i, target in enumerate(batch.targets):
        tensors |= {f"boxes/{i}": target.boxes, f"labels/{i}": target.labels, f"crowd/{i}": target.crowd}
        if target.masks is not None:
            tensors[f"masks/{i}"] = target.masks.dense()
        if target.semantic is not None:
            tensors[f"semantic/{i}"] = target.semantic
        if target.tags is not None:
            tensors[f"tags/{i}"] = target.tags
        if target.saliency is not None:
            tensors[f"saliency/{i}"] = target.saliency
    about = {
        "step": step,
        "loss": {name: str(value) for name, value in values.items()},
        "image_ids": [meta.image_id for meta in batch.metas],
        "paths": [meta.path for meta in batch.metas],
    }
    with replacing(path) as temporary:
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, temporary, {"batch": json.dumps(about)})
    bad = ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
    return (
        f"step {step}: the loss is not finite ({bad}); its batch is kept in {path} (images {about['image_ids']}); "
        "lower --train.lr or set --train.clip 10, and look at these images with maskkit check"
    )


def mix(seed: int, step: int, rank: int) -> int:
    """One seed for the random choices of a step in a process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
