"""Panoptic quality (Kirillov et al., CVPR 2019) by COCO's protocol.

A predicted segment matches a true segment of the same class when their IoU exceeds 0.5, so that matches are unique.
``SQ`` is the mean IoU of the matches, ``RQ`` the F1 score, ``PQ`` their product; all are means over the classes that
occur or are predicted. Pixels without a true segment are void: they are left out of the union, and a predicted segment
of which more than half is void, or inside a crowd of its class, does not count as false.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.box import SIMPLE_HEAD
from rich.table import Table

from maskkit.data.dataset import Dataset
from maskkit.data.records import Record
from maskkit.errors import DataError
from maskkit.eval.numbers import Metric, known, shown
from maskkit.eval.rows import Unchecked, rows_by_image
from maskkit.files import write_json
from maskkit.geometry import rle as mask_math

QUALITIES = ("PQ", "SQ", "RQ")


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """The result of `evaluate`. Metrics are between 0 and 1.

    None, in arrays -1, means that a class neither occurs nor is predicted.
    """

    names: tuple[str, ...]
    things: tuple[bool, ...]
    iou: Float[np.ndarray, "k"]
    """Sum of the IoU of the matches of each class."""
    hit: Int[np.ndarray, "k"]
    """True segments with a match."""
    false: Int[np.ndarray, "k"]
    """Predicted segments without a match."""
    missed: Int[np.ndarray, "k"]
    """True segments without a match."""

    @property
    def qualities(self) -> Float[np.ndarray, "k 3"]:
        """PQ, SQ and RQ of each class."""
        weight = self.hit + (self.false + self.missed) / 2
        pq, sq, rq = (
            np.divide(part, whole, out=np.zeros(len(weight)), where=whole > 0)
            for part, whole in ((self.iou, weight), (self.iou, self.hit), (self.hit, weight))
        )
        return np.where(weight[:, None] > 0, np.stack([pq, sq, rq], 1), -1.0)

    @property
    def main(self) -> dict[str, Metric]:
        """PQ, SQ and RQ, averaged over all classes, over things, and over stuff."""
        qualities, things = self.qualities, np.array(self.things, bool)
        measured = qualities[:, 0] >= 0
        groups = {"": measured, "_things": measured & things, "_stuff": measured & ~things}
        means = {end: qualities[chosen].mean(0) if chosen.any() else np.full(3, -1.0) for end, chosen in groups.items()}
        return {name + end: known(v) for end, mean in means.items() for name, v in zip(QUALITIES, mean, strict=True)}

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics shown during training; the first one decides which weights are best."""
        main = self.main
        return {name: main[name] for name in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff")}

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """Qualities, whether it is a thing, and ``hit``, ``false`` and ``missed`` segments of each class."""
        counts = zip(self.things, self.hit.tolist(), self.false.tolist(), self.missed.tolist(), strict=True)
        return {
            name: dict(zip(QUALITIES, map(known, values), strict=True))
            | {"thing": t, "hit": h, "false": f, "missed": m}
            for name, values, (t, h, f, m) in zip(self.names, self.qualities.tolist(), counts, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON types."""
        return {"panoptic": self.main, "per_class": self.per_class}

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    def table(self) -> Table:
        """The metrics: the means, then a row per class."""
        table = Table("", *QUALITIES, "hit", "false", "missed", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        main = self.main
        for title, end in (("all", ""), ("things", "_things"), ("stuff", "_stuff")):
            table.add_row(title, *(shown(main[name + end]) for name in QUALITIES), end_section=title == "stuff")
        for name, numbers in self.per_class.items():
            counts = (str(numbers[key]) for key in ("hit", "false", "missed"))
            table.add_row(name, *(shown(numbers[key]) for key in QUALITIES), *counts)
        return table


class Pair(NamedTuple):
    """True and predicted segments of an image: a number per pixel, from 1 on; 0 is void."""

    record: Record
    truth: Int[np.ndarray, "h w"]
    labels: Int[np.ndarray, "n"]
    """Class numbers of the segments 1 to N."""
    crowd: Bool[np.ndarray, "n"]
    found: Int[np.ndarray, "h w"]
    found_labels: Int[np.ndarray, "m"]


class Matches(NamedTuple):
    """Matches of a `Pair`, as indices into its labels."""

    hits: Int[np.ndarray, "k 2"]
    """Indices of the true and the predicted segment."""
    iou: Float[np.ndarray, "k"]
    missed: Int[np.ndarray, "a"]
    false: Int[np.ndarray, "b"]


def evaluate(rows: Unchecked, dataset: Dataset) -> PanopticResult:
    """Compare the predicted segments ``rows`` with those of ``dataset``, whose category ids they have.

    Raises `DataError` when a true mask cannot be read, for a row of an unknown image or class, and when two
    rows of an image claim the same pixel.
    """
    classes = len(dataset.categories)
    iou, counts = np.zeros(classes), np.zeros((3, classes), np.int64)
    for pair in pairs(rows, dataset):
        found = match(pair)
        hit = pair.labels[found.hits[:, 0]]
        iou += np.bincount(hit, found.iou, classes)
        of = (hit, pair.found_labels[found.false], pair.labels[found.missed])
        counts += np.stack([np.bincount(labels, minlength=classes) for labels in of])
    return PanopticResult(dataset.categories.titles, dataset.categories.things, iou, *counts)


def match(pair: Pair) -> Matches:
    """Matched, missed and false segments of one image."""
    n, m = len(pair.labels), len(pair.found_labels)
    shared = np.bincount((pair.truth * (m + 1) + pair.found).ravel(), minlength=(n + 1) * (m + 1)).reshape(n + 1, m + 1)
    area, found_area = shared.sum(1)[1:], shared.sum(0)[1:]
    void, shared = shared[0, 1:], shared[1:, 1:]  # (M,), (N, M)
    union = area[:, None] + found_area - shared - void
    same = (pair.labels[:, None] == pair.found_labels) & ~pair.crowd[:, None]
    iou = np.divide(shared, union, out=np.zeros((n, m)), where=same & (shared > 0))
    hits = np.argwhere(iou > 0.5)
    excused = void.copy()
    crowds = {pair.labels[i]: i for i in np.flatnonzero(pair.crowd)}  # the last one of a class, as COCO's own code
    for label, i in crowds.items():
        excused += np.where(pair.found_labels == label, shared[i], 0)
    missed = ~pair.crowd & (area > 0)  # an object may be hidden completely by others
    missed[hits[:, 0]] = False
    false = 2 * excused <= found_area
    false[hits[:, 1]] = False
    return Matches(hits, iou[*hits.T], np.flatnonzero(missed), np.flatnonzero(false))


def pairs(rows: Unchecked, dataset: Dataset) -> Iterator[Pair]:
    """True and predicted segments of each image of ``dataset``. Raises `DataError`."""
    numbers = {key: i for i, key in enumerate(dataset.categories.ids)}
    by_image = rows_by_image(rows, dataset)
    for record in dataset.records:
        found = np.zeros(record.size, np.int64)
        mine = by_image[record.image_id]
        for i, row in enumerate(mine, 1):
            mask = mask_math.decode([row["segmentation"]], record.size)[0]
            if found[mask].any():
                raise DataError(
                    f"{record.path}: two predicted segments claim the same pixel of image {record.image_id}; "
                    "panoptic segments must not overlap"
                )
            found[mask] = i
        labels = np.array([a.label for a in record.annotations], np.int64)
        crowd = np.array([a.crowd for a in record.annotations], bool)
        found_labels = np.array([numbers[row["category_id"]] for row in mine], np.int64)
        yield Pair(record, _painted(record), labels, crowd, found, found_labels)


def _painted(record: Record) -> Int[np.ndarray, "h w"]:
    """The index of the annotation, from 1, at each pixel; where objects overlap, that of the smallest."""
    rles = [a.rle(record.size) for a in record.annotations]
    masks = [rle for rle in rles if rle is not None]
    if len(masks) < len(rles):
        raise DataError(f"{record.path}: has objects without a mask; panoptic quality requires all masks")
    painted = np.zeros(record.size, np.int64)
    areas = mask_math.area(masks)
    for i in sorted(range(len(masks)), key=lambda i: (not record.annotations[i].crowd, -areas[i])):
        painted[mask_math.decode([masks[i]], record.size)[0]] = i + 1
    return painted
