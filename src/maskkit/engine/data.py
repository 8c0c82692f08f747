"""The data of a training: opened, checked, and compared with what the method can learn from."""

from pathlib import Path

from maskkit import zoo
from maskkit.config import SUPERVISION, DataConfig, RunConfig
from maskkit.data import open_splits
from maskkit.data.check import CheckReport, check_datasets
from maskkit.data.dataset import Dataset
from maskkit.data.rules import counted
from maskkit.errors import DataError
from maskkit.eval.task import TASKS, Task


def open_data(config: RunConfig, measure: bool = True) -> tuple[Dataset, Dataset, list[str]]:
    """Training and validation images, checked, and lines about what the check found.

    With ``measure`` it is tried whether the validation images can be measured (`try_measure`). Raises `DataError` with
    a list of the unusable records, unless ``data.on_bad`` is ``skip``, and when the method cannot learn from the labels
    of the data.
    """
    data, kind = config.data, zoo.model_class(config.preset)
    task = TASKS[kind.task_of(config.model)]
    splits = open_splits(*_files(data, task), data.val_split, allow_outside=data.allow_outside)
    train_set, val_set = map(task.view, splits)
    report = check_datasets({"train": train_set, "val": val_set}, data.train)
    if fault := report.summaries["train"].fault:
        raise DataError(f"{data.train}: {fault}")
    train_set, val_set = report.datasets["train"], report.datasets["val"]
    counts = f"{len(train_set)} images to train on, {len(val_set)} to validate, {len(train_set.categories)} classes"
    notes = [counts, *_problems(config, report)]
    for name, part in report.datasets.items():
        if len(part) == 0:
            raise DataError(f"{data.train}: no usable image for {name}; maskkit check {data.train} lists the problems")
    _check_labels(config, train_set)
    if measure:
        try_measure(config, val_set)
    if data.saliency is not None:
        train_set = train_set.with_saliency(Path(data.saliency))
    return train_set, val_set, notes


def _files(data: DataConfig, task: Task) -> tuple[Path, Path | None]:
    """The files to open for the training and the validation images; None: find or split off the validation images."""
    train = task.data_file(data.train, "train")
    if data.val is not None:
        return train, task.data_file(data.val, "val")
    val = task.data_file(data.train, "val")
    return train, val if train.is_file() and val.is_file() and val != train else None


def try_measure(config: RunConfig, val_set: Dataset) -> None:
    """Evaluate empty predictions for the validation images.

    Raises `DataError` for what would otherwise fail after the last step: data that the task cannot evaluate, and images
    without any object. A run that learns from tags may have no other labels: it is not evaluated, and its last weights
    are the best.
    """
    task = TASKS[zoo.model_class(config.preset).task_of(config.model)]
    try:
        name, value = next(iter(task.evaluate([], val_set).metrics.items()))
    except DataError as error:
        raise DataError(f"the validation images cannot be measured: {error}, or give others with --data.val") from None
    if value is None and config.data.labels != "tags":
        raise DataError(
            f"{val_set.source}: the validation images have no {task.noun}, so that {name} cannot be measured; "
            "give others with --data.val"
        )


def _problems(config: RunConfig, report: CheckReport) -> list[str]:
    data = config.data
    notes = []
    if report.errors and data.on_bad == "refuse":
        shown = "\n  ".join(map(str, report.errors[:20]))
        more = f"\n  and {len(report.errors) - 20} more" if len(report.errors) > 20 else ""
        raise DataError(
            f"{data.train}: {counted(len(report.errors), 'record')} cannot be used:\n  {shown}{more}\n"
            "correct them (maskkit check lists all), or train without them: --data.on-bad skip"
        )
    if report.errors:
        unusable = counted(len(report.errors), "unusable record", be=True)
        notes.append(f"{unusable} left out; maskkit check {data.train} shows more")
    if report.warnings:
        doubtful = counted(len(report.warnings), "doubtful record", be=True)
        notes.append(f"{doubtful} used; maskkit check {data.train} shows more")
    return notes


def _check_labels(config: RunConfig, train_set: Dataset) -> None:
    data, kind = config.data, zoo.model_class(config.preset)
    objects = [a for record in train_set.records for a in record.annotations]
    maps = [record.semantic for record in train_set.records if record.semantic is not None]
    if "label_map" not in TASKS[kind.task_of(config.model)].supervision:
        if maps and not objects:
            raise DataError(
                f"{data.train}: has label maps or tags, which do not separate objects, and {config.preset} learns from "
                "objects; take a semantic preset (maskkit models --task semantic), or add masks or boxes of objects"
            )
        maps = []
    if not objects and not any(m.classes for m in maps):
        raise DataError(f"{data.train}: no image has an object, there is nothing to learn; add annotations")
    masks = any(a.segmentation is not None for a in objects) or any(m.known for m in maps)
    there = {"tags"} | ({"boxes"} if objects else set()) | ({"masks", "label_map"} if masks else set())
    supervision = kind.supervision_of(config.model)
    if data.teacher is not None and not {"masks", "boxes"} <= supervision:
        raise DataError(
            f"{config.preset} does not learn from masks and boxes together; leave --data.teacher out, or take a preset "
            "that does, such as condinst-nanodet-320"
        )
    if not supervision & there & data.supervision:
        given = f"--data.labels {data.labels}" if data.labels != "masks" else "the data has none"
        enough = " or ".join(name for kind, name in SUPERVISION.items() if kind in supervision)
        raise DataError(f"{data.train}: {config.preset} learns from {enough}, but {given}")
