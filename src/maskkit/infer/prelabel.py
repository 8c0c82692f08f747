"""Predictions as labels for people to correct: polygons with few corners, as the records of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskkit.data.convert.simplify import simplified
from maskkit.data.dataset import Dataset
from maskkit.data.label_map import BACKGROUND_NAME
from maskkit.data.records import Annotation, Box, Record, box_of, number
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories, ImageMeta, Prediction

FORMAT = "predictions"
"""`Dataset.format` of labels that a model made."""


LEAST_SCORE = 0.05
"""Score from which on an object can fill a given box; it is low, because the box says that there is an object."""
_SAME_BOX = 0.5
"""IoU with a given box from which on a detected object can fill it."""
_SAME_CLASS = 0.25
"""Bonus, added to the IoU, for an object of the same class."""


class Candidate(NamedTuple):
    """One object, segment or region that a model finds."""

    label: int
    """Class number 0..K-1."""
    score: float
    mask: Rle | None
    box: Box | None
    """``x1 y1 x2 y2``; None: the box of the mask."""


@dataclass(frozen=True)
class Labeller:
    """Turns predictions into labels."""

    score: float
    """Candidates with a lower score do not become labels."""
    least_iou: float = 0.95
    """Least IoU of a polygon with its mask; 1 for polygons along the edges of the pixels."""

    def record(self, meta: ImageMeta, found: Iterable[Candidate]) -> Record:
        """The image with its labels. Empty masks are left out."""
        labels = []
        for label, score, mask, box in found:
            if score < self.score:
                continue
            if mask is None:
                labels.append(Annotation(0, label, box))
            elif polygons := simplified(mask, self.least_iou):
                labels.append(Annotation(0, label, None, polygons))
        return Record(meta.image_id, Path(meta.path), meta.size, labels)


def fill_boxes(record: Record, prediction: Prediction, categories: Categories, least_iou: float) -> Record:
    """The image with a mask for each box without one, if the model finds an object in nearly the same box.

    ``categories`` are the classes of the record. Boxes and objects are matched so that the sum of their IoU is largest,
    with a bonus for the same class; the mask is clipped to the given box. Other labels, and boxes in which nothing is
    found, do not change.
    """
    found = prediction.instances
    waiting = [i for i, a in enumerate(record.annotations) if a.segmentation is None and not a.crowd]
    if found is None or found.masks is None or not waiting or not len(found):
        return record
    boxes = mask_math.xywh([box_of(record.annotations[i], record.size) for i in waiting])
    overlaps = mask_math.box_iou(boxes, mask_math.xywh(found.boxes))  # (boxes, found)
    same = categories.numbers_in(prediction.categories)
    labels = np.array([same.get(record.annotations[i].label, -1) for i in waiting])
    value = np.where(overlaps >= _SAME_BOX, overlaps + _SAME_CLASS * (labels[:, None] == found.labels), 0)
    annotations = list(record.annotations)
    for row, column in zip(*linear_sum_assignment(value, maximize=True), strict=True):
        if value[row, column] > 0:
            place = waiting[row]
            inside = clipped(found.masks.rle()[column], box_of(annotations[place], record.size), record.size)
            if polygons := simplified(inside, least_iou):
                annotations[place] = replace(annotations[place], segmentation=polygons)
    return replace(record, annotations=annotations, truth=None)


def clipped(mask: Rle, box: Box, size: tuple[int, int]) -> Rle:
    """The pixels of a mask whose centres are inside a box."""
    region, top, left = mask_math.decode_region(mask)
    x1, y1, x2, y2 = box
    rows = np.arange(top, top + region.shape[0]) + 0.5
    columns = np.arange(left, left + region.shape[1]) + 0.5
    inside = ((rows > y1) & (rows < y2))[:, None] & (columns > x1) & (columns < x2)
    return mask_math.encode_region(region & inside, top, left, size)


def candidates(prediction: Prediction) -> Iterator[Candidate]:
    """The objects, segments or regions of a prediction, without the background; regions of a label map have score 1."""
    names = prediction.categories.names
    if prediction.instances is not None:
        found = prediction.instances
        masks = found.masks.rle() if found.masks is not None else [None] * len(found)
        for i, mask in enumerate(masks):
            x1, y1, x2, y2 = found.boxes[i].tolist()
            yield Candidate(int(found.labels[i]), float(found.scores[i]), mask, (x1, y1, x2, y2))
    elif prediction.panoptic is not None:
        for segment in prediction.panoptic.segments:
            mask = mask_math.encode((prediction.panoptic.ids == segment.id)[None])[0]
            yield Candidate(segment.label, segment.score, mask, None)
    elif prediction.semantic is not None:
        for label, name in enumerate(names):
            region = prediction.semantic == label
            if name != BACKGROUND_NAME and region.any():
                yield Candidate(label, 1.0, mask_math.encode(region[None])[0], None)


def as_dataset(records: list[Record], categories: Categories, source: Path) -> Dataset:
    """The images as a data set, with object ids from 1, and without a class called background."""
    kept = [n for n, name in enumerate(categories.names) if name != BACKGROUND_NAME]
    numbers = {n: i for i, n in enumerate(kept)}
    return Dataset(number([r.with_labels(numbers) for r in records]), categories.subset(kept), source, FORMAT)
