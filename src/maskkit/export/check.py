"""Compares the predictions of an exported file with those of the checkpoint. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maskkit.geometry import rle as mask_math
from maskkit.infer.predict import Predictor
from maskkit.infer.runtimes import Runtime

Row = Mapping[str, Any]

LEAST = 0.95
"""Least share of agreeing objects of a successful export; untrained models have many nearly equal scores."""

SAME = 0.9
"""IoU from which on two objects of a class are the same."""

SURE = 0.05
"""Score from which on outputs are compared: below it, the order of rows with nearly equal scores is random."""

SPECK = 1e-3
"""A mask that only one side has is ignored below this share of the image: pixels on the border of two classes."""


@dataclass(frozen=True)
class Agreement:
    """How well the predictions of two networks agree; a row is an object, a region or a segment."""

    images: int
    objects: int
    """Number of objects of the reference."""
    found: int
    """Number of these that the other network finds too: the same class, and an IoU of at least `SAME`."""
    more: int
    """Number of objects that only the other network finds."""
    score: float
    """Largest difference of the scores of objects that both find."""
    outputs: Mapping[str, float] = field(default_factory=dict)
    """Largest difference of each output. For outputs per object, only rows with the same label and a score above `SURE`
    in both are compared."""

    @property
    def share(self) -> float:
        """The share of all objects that both find; 1 if there are none."""
        total = self.objects + self.more
        return self.found / total if total else 1.0

    def __str__(self) -> str:
        return (
            f"{self.found} of {self.objects} objects in {self.images} images found again, {self.more} others, scores "
            f"within {self.score:.2g}"
        )


def compare(reference: Predictor, other: Predictor, images: Sequence[Any], score: float = 0.0) -> Agreement:
    """How well ``other`` agrees with ``reference`` on ``images``, for objects with a score above ``score``.

    Images are anything that `Predictor.images` takes. An object that only one network finds is not counted if its score
    is within 1e-3 of ``score``, since the other may score it slightly below, nor if it is a `SPECK`.
    """
    ours, theirs = _Recorded(reference.runtime), _Recorded(other.runtime)
    pairs = zip(
        replace(reference, runtime=ours).images(images, score=score),
        replace(other, runtime=theirs).images(images, score=score),
        strict=True,
    )
    return total(
        replace(rows_agree(a.to_coco(), b.to_coco(), score), outputs=differences(ours.arrays, theirs.arrays))
        for a, b in pairs
    )


class _Recorded:
    """A runtime that keeps its latest outputs."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.arrays: dict[str, np.ndarray] = {}

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """See `Runtime.run`."""
        self.arrays = self.runtime.run(images, sizes)
        return self.arrays


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each output; see `Agreement.outputs`. Outputs of different shapes are left out."""
    rows = None
    if "labels" in ours and ours["labels"].shape == theirs["labels"].shape:
        rows = ours["labels"] == theirs["labels"]
        rows &= (ours["scores"] > SURE) & (theirs["scores"] > SURE)
    found = {}
    for name, array in ours.items():
        if array.shape == theirs[name].shape:
            gap = np.abs(array - theirs[name])
            if rows is not None and gap.shape[:2] == rows.shape:
                gap = gap[rows]
            found[name] = float(gap.max(initial=0))
    return found


def rows_agree(ours: Sequence[Row], theirs: Sequence[Row], score: float = 0.0) -> Agreement:
    """The agreement of the rows of one image, with those of the reference first; see `compare`."""
    overlaps = _overlaps(ours, theirs)
    left, found, furthest = set(range(len(theirs))), 0, 0.0
    lost = 0
    for i, row in enumerate(ours):  # best first
        mates = [j for j in left if overlaps[i, j] >= SAME and theirs[j]["category_id"] == row["category_id"]]
        if mates:
            mate = max(mates, key=lambda j: overlaps[i, j])
            left.remove(mate)
            found += 1
            furthest = max(furthest, abs(row.get("score", 1.0) - theirs[mate].get("score", 1.0)))
        elif not _counts(row, score):
            lost += 1
    more = sum(_counts(theirs[j], score) for j in left)
    return Agreement(1, len(ours) - lost, found, more, furthest)


def total(parts: Iterable[Agreement]) -> Agreement:
    """The agreement over several images."""
    every = list(parts)
    outputs: dict[str, float] = {}
    for name, gap in (item for a in every for item in a.outputs.items()):
        outputs[name] = max(gap, outputs.get(name, 0.0))
    return Agreement(
        len(every),
        sum(a.objects for a in every),
        sum(a.found for a in every),
        sum(a.more for a in every),
        max((a.score for a in every), default=0.0),
        outputs,
    )


def _counts(row: Row, score: float) -> bool:
    """Whether a row that only one network has counts as a difference."""
    if row.get("score", 1.0) < score + 1e-3:
        return False
    shape = row.get("segmentation")
    if shape is None:
        return True
    area = mask_math.area([{**shape, "counts": shape["counts"].encode()}])[0]
    return bool(area > SPECK * shape["size"][0] * shape["size"][1])


def _overlaps(ours: Sequence[Row], theirs: Sequence[Row]) -> np.ndarray:
    """IoU of every pair, of masks or, if any row has none, of boxes."""
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    if all("segmentation" in row for row in (*ours, *theirs)):
        a, b = (
            [{**r["segmentation"], "counts": r["segmentation"]["counts"].encode()} for r in rows]
            for rows in (ours, theirs)
        )
        return mask_math.iou(a, b)
    return mask_math.box_iou(*([row["bbox"] for row in rows] for rows in (ours, theirs)))
