"""Masks that a model draws in the given boxes of a data set, whatever their classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from maskkit.config import InputConfig
from maskkit.data.convert.simplify import simplified
from maskkit.data.dataset import Dataset
from maskkit.data.records import Record, box_of
from maskkit.decode import decode
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle
from maskkit.infer.prelabel import clipped
from maskkit.infer.preprocess import prepare, stack
from maskkit.infer.torch_runtime import TorchRuntime
from maskkit.models.base import to_arrays
from maskkit.prediction import Categories


class Drawn(NamedTuple):
    """A mask in a given box, cut off at it."""

    mask: Rle
    certainty: float
    """How sure the model is of the mask's pixels, 0 to 1."""
    fit: float
    """IoU of the given box and the one around the mask: a mask that fits touches all four sides."""


def masks_in_boxes(runtime: TorchRuntime, input: InputConfig, dataset: Dataset, index: int) -> list[Drawn | None]:
    """The mask of each object of one image, by a model with ``draws_in_boxes``; None for a crowd, and for a box without
    area.

    Raises `DataError` for an image that cannot be read.
    """
    record = dataset.records[index]
    found: list[Drawn | None] = [None] * len(record.annotations)
    wanted = [i for i, a in enumerate(record.annotations) if not a.crowd]
    if not wanted:
        return found
    boxes = np.array([box_of(record.annotations[i], record.size) for i in wanted])
    inputs = stack([prepare(*dataset.pixels(index), input)], input)
    (meta,) = inputs.metas
    scale, start = meta.affine[[0, 1], [0, 1]], meta.affine[:2, 2]
    relative = (boxes.reshape(-1, 2, 2) - start) / scale / meta.input_size[::-1]
    images = runtime.to_tensor(inputs.images)
    with runtime.evaluating(images) as model:
        raw = model(images, torch.from_numpy(inputs.sizes).to(runtime.device))
        out = model.select_in(raw, torch.from_numpy(relative.reshape(1, -1, 4)).to(images))
    names = Categories.of(map(str, range(len(wanted))))
    (objects,) = [p.instances for p in decode(model.decoder, to_arrays(out), [meta], names)]
    assert objects is not None
    assert objects.masks is not None
    sure = objects.scores if objects.mask_scores is None else objects.mask_scores
    for number, rle, certainty in zip(objects.labels, objects.masks.rle(), sure, strict=True):
        x1, y1, x2, y2 = boxes[number].tolist()
        mask = clipped(rle, (x1, y1, x2, y2), record.size)
        around, given = (mask_math.xywh(b) for b in (mask_math.boxes([mask]), boxes[[number]]))
        found[wanted[number]] = Drawn(mask, float(certainty), float(mask_math.box_iou(around, given)[0, 0]))
    return found


def fill_all(record: Record, drawn: Sequence[Drawn | None], least_iou: float) -> Record:
    """The image with a polygon for each of its boxes without a mask; other labels, and boxes with empty masks, stay.

    A polygon has at least ``least_iou`` with its mask.
    """
    annotations = list(record.annotations)
    for place, (annotation, found) in enumerate(zip(record.annotations, drawn, strict=True)):
        if annotation.segmentation is None and found is not None and (outline := simplified(found.mask, least_iou)):
            annotations[place] = replace(annotation, segmentation=outline)
    return replace(record, annotations=annotations, truth=None)
