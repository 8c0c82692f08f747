"""Masks for objects of which only the boxes are known, drawn by a model that is already trained.

Each mask is a guess. It is used only where it fits its box and the model is sure of its pixels; the other objects are
learnt from their boxes, as without a teacher. The masks are drawn once and kept in the folder of the run.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress

from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.find import find_weights
from maskkit.config import DataConfig
from maskkit.data.dataset import Dataset
from maskkit.data.rules import counted
from maskkit.engine.run import Run, once
from maskkit.errors import DataError, MaskkitError
from maskkit.files import read_bytes, write_json
from maskkit.geometry.rle import Rle, to_text
from maskkit.infer.in_boxes import Drawn, masks_in_boxes
from maskkit.infer.torch_runtime import TorchRuntime
from maskkit.terminal import Console

FILE = "drawn_masks.json"
"""In the folder of the run: for each training image a list with the run lengths of each object's mask, or null."""
SURE = 0.75
"""Certainty from which on a mask is used."""
FITS = 0.7
"""IoU of the given box and the one around the mask from which on the mask is used."""

DrawnMasks = list[list[Rle | None]]
"""For each image the mask of each object; None where it is learnt from its box, or where the file has a mask."""


def taught(run: Run, data: DataConfig, train_set: Dataset) -> Dataset:
    """The training images with the masks of ``data.teacher``, if there is one.

    The first process draws them; a run that is continued reads them from its folder. Raises `MaskkitError` for a
    teacher that cannot be used.
    """
    if data.teacher is None:
        return train_set
    file = run.out / FILE
    masks = once(run, lambda: read(file, train_set) if run.resumed else draw(train_set, data, run.device))
    if run.main and not run.resumed:
        write_json(file, [[mask and to_text(mask)["counts"] for mask in row] for row in masks])
    boxes, drawn = sum(map(len, masks)), sum(mask is not None for row in masks for mask in row)
    run.notes.append(f"the teacher {data.teacher} draws the masks of {drawn} of {counted(boxes, 'object')}")
    return with_drawn(train_set, masks)


def draw(dataset: Dataset, data: DataConfig, device: torch.device) -> DrawnMasks:
    """What ``data.teacher`` draws for the objects whose masks are unknown, or with ``data.labels`` ``boxes`` for all.

    Raises `DataError` for a teacher that cannot be read, `MaskkitError` for one that draws no masks in given boxes.
    """
    assert data.teacher is not None
    teacher = load_model(find_weights(data.teacher))
    if not teacher.model.draws_in_boxes:
        raise MaskkitError(
            f"--data.teacher {data.teacher}: a {teacher.config.preset} draws no masks in given boxes; take built-in"
        )
    runtime = TorchRuntime(teacher.model, device, fold=True)
    masks: DrawnMasks = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:
        for index, record in enumerate(bars.track(dataset.records, description="drawing masks in boxes")):
            wanted = [data.labels == "boxes" or a.segmentation is None for a in record.annotations]
            if not any(wanted):
                masks.append([None] * len(wanted))
                continue
            found = masks_in_boxes(runtime, teacher.config.input, dataset, index)
            masks.append([d.mask if w and d and accepted(d) else None for w, d in zip(wanted, found, strict=True)])
    return masks


def accepted(drawn: Drawn) -> bool:
    """Whether a mask is used."""
    return drawn.certainty >= SURE and drawn.fit >= FITS


def read(file: Path, dataset: Dataset) -> DrawnMasks:
    """The masks that `taught` has kept in ``file`` for ``dataset``. Raises `DataError` where they are not there."""
    try:
        rows = json.loads(read_bytes(file))
        return [
            [text and {"size": list(record.size), "counts": text.encode()} for _, text in pairs]
            for record, row in zip(dataset.records, rows, strict=True)
            for pairs in [zip(record.annotations, row, strict=True)]
        ]
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{file}: is damaged; the run cannot be continued, choose another folder with --out") from None


def with_drawn(dataset: Dataset, masks: DrawnMasks) -> Dataset:
    """The data set whose objects have these masks as `Annotation.drawn`."""
    records = []
    for record, row in zip(dataset.records, masks, strict=True):
        pairs = zip(record.annotations, row, strict=True)
        records.append(replace(record, annotations=[replace(a, drawn=mask) for a, mask in pairs]))
    return replace(dataset, records=records)
