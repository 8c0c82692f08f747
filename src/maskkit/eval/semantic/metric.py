"""Metrics of semantic segmentation: IoU from a confusion matrix over all pixels, and boundary IoU.

A prediction is a list of rows as in COCO's stuff results: ``image_id``, ``category_id`` and a run-length mask, one row
per class that occurs. A pixel without a row has no class, which counts as wrong. Pixels of unknown class (255) are
ignored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import ndimage

from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE
from maskkit.data.records import Record
from maskkit.errors import DataError
from maskkit.eval.numbers import Metric, known, mean, shown
from maskkit.eval.rows import Unchecked, rows_by_image
from maskkit.files import write_json
from maskkit.geometry import rle as mask_math

BAND = 0.02
"""Width of the band along contours, as a share of the image's diagonal (Boundary IoU; Cheng et al., CVPR 2021)."""


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """The result of `evaluate`. Metrics are between 0 and 1.

    None, in arrays -1, means that a class neither occurs nor is predicted.
    """

    names: tuple[str, ...]
    confusion: Int[np.ndarray, "k k+1"]
    """Pixels by true class (rows) and predicted class (columns); the last column is no class."""
    band: Int[np.ndarray, "k 3"]
    """Pixels of each class near contours: of the truth, of the prediction, and of both with the same class."""

    @property
    def iou(self) -> Float[np.ndarray, "k"]:
        """Intersection over union of each class."""
        hits = np.diagonal(self.confusion)
        return _share(hits, self.confusion.sum(1) + self.confusion[:, :-1].sum(0) - hits)

    @property
    def boundary_iou(self) -> Float[np.ndarray, "k"]:
        """Intersection over union within the bands along the contours."""
        truth, found, both = self.band.T
        return _share(both, truth + found - both)

    @property
    def accuracy(self) -> Float[np.ndarray, "k"]:
        """Share of each class's pixels that are right; -1 for a class that does not occur."""
        return _share(np.diagonal(self.confusion), self.confusion.sum(1))

    @property
    def main(self) -> dict[str, Metric]:
        """Means over the classes; ``accuracy`` is over all pixels."""
        hits = np.diagonal(self.confusion).sum(keepdims=True)
        return {
            "mIoU": mean(self.iou),
            "boundary_mIoU": mean(self.boundary_iou),
            "accuracy": known(_share(hits, self.confusion.sum(keepdims=True).ravel())[0]),
            "class_accuracy": mean(self.accuracy),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics shown during training; the first one decides which weights are best."""
        return self.main

    @property
    def per_class(self) -> dict[str, dict[str, Metric]]:
        """``pixels``, ``IoU``, ``boundary_IoU`` and ``accuracy`` of each class."""
        rows = zip(self.confusion.sum(1).tolist(), self.iou, self.boundary_iou, self.accuracy, strict=True)
        return {
            name: {"pixels": n, "IoU": known(i), "boundary_IoU": known(b), "accuracy": known(a)}
            for name, (n, i, b, a) in zip(self.names, rows, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON types."""
        return {"semantic": self.main, "per_class": self.per_class}

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    def table(self) -> Table:
        """The metrics: the means, then a row per class."""
        table = Table("", "IoU", "boundary IoU", "accuracy", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        main = self.main
        table.add_row("mean", *(shown(main[k]) for k in ("mIoU", "boundary_mIoU", "class_accuracy")))
        table.add_row("all pixels", "", "", shown(main["accuracy"]), end_section=True)
        for name, numbers in self.per_class.items():
            table.add_row(name, *(shown(numbers[k]) for k in ("IoU", "boundary_IoU", "accuracy")))
        return table


class Pair(NamedTuple):
    """The true and the predicted label map of an image; ``IGNORE`` in both where the class is unknown."""

    record: Record
    truth: UInt8[np.ndarray, "h w"]
    found: UInt8[np.ndarray, "h w"]
    """Class numbers of the data; K, the number of classes, where nothing was predicted."""


def evaluate(rows: Unchecked, dataset: Dataset) -> SemanticResult:
    """Compare the predicted ``rows`` with the label maps of ``dataset``, whose category ids they have.

    Raises `DataError` when a label map cannot be read, and for a row of an unknown image or class.
    """
    classes = len(dataset.categories)
    confusion, band = np.zeros((classes, classes + 1), np.int64), np.zeros((classes, 3), np.int64)
    for pair in pairs(rows, dataset):
        confusion += count(pair.truth, pair.found, classes)
        band += count_band(pair.truth, pair.found, classes)
    return SemanticResult(dataset.categories.titles, confusion, band)


def pairs(rows: Unchecked, dataset: Dataset) -> Iterator[Pair]:
    """True and predicted label map of each image of ``dataset``.

    Raises `DataError`, also where two predicted classes claim a pixel, as COCO's stuff API does.
    """
    numbers = {key: i for i, key in enumerate(dataset.categories.ids)}
    by_image = rows_by_image(rows, dataset)
    for record in dataset.records:
        if record.semantic is None:
            raise DataError(f"{record.path}: has no label map; semantic evaluation requires label maps")
        truth = record.semantic.read(record.size)
        found = np.full(record.size, len(numbers), np.uint8)
        for row in by_image[record.image_id]:
            mask, number = mask_math.decode([row["segmentation"]], record.size)[0], numbers[row["category_id"]]
            before = found[mask]
            if ((before != number) & (before != len(numbers))).any():
                raise DataError(
                    f"{record.path}: two predicted regions of different classes claim the same pixel of image "
                    f"{record.image_id}; a pixel of a label map has one class"
                )
            found[mask] = number
        found[truth == IGNORE] = IGNORE
        yield Pair(record, truth, found)


def count(truth: UInt8[np.ndarray, "h w"], found: UInt8[np.ndarray, "h w"], classes: int) -> Int[np.ndarray, "k k+1"]:
    """Confusion matrix over pixels of known class; the prediction ``classes`` means no class."""
    seen = truth != IGNORE
    cells = truth[seen].astype(np.int64) * (classes + 1) + found[seen]
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def count_band(
    truth: UInt8[np.ndarray, "h w"], found: UInt8[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "k 3"]:
    """Pixels of each class in the `contour_band` of the truth, of the prediction, and in both with the same class."""
    width = max(1, round(BAND * float(np.hypot(*truth.shape))))
    seen = truth != IGNORE
    near_truth, near_found = (contour_band(m, width) & seen for m in (truth, found))
    both = near_truth & near_found & (truth == found)
    columns = [truth[near_truth], found[near_found], truth[both]]
    return np.stack([np.bincount(values, minlength=classes + 1)[:classes] for values in columns], 1)


def contour_band(labels: UInt8[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels with another class, or the border, at most ``width`` steps away; a diagonal step counts one."""
    side = 2 * width + 1
    lowest, highest = (f(labels, side, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    band = lowest != highest
    band[:width] = band[-width:] = band[:, :width] = band[:, -width:] = True
    return band


def _share(part: Int[np.ndarray, "k"], whole: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    return np.divide(part, whole, out=np.full(len(part), -1.0), where=whole > 0)
