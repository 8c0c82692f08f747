"""Matching of detections with objects for the report, one image at a time.

A `Scene` holds classes, scores and overlaps of one image, but no masks. Everything here uses one IoU threshold, 0.5
unless said otherwise, and one score threshold; a detection counts when its score is at least the threshold.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from maskkit.eval.instance.metric import Kind, class_names, counted_rows, sound_objects
from maskkit.eval.numbers import Threshold
from maskkit.eval.rows import Unchecked
from maskkit.geometry import rle as mask_math
from maskkit.prediction import ImageId

FALSE, IGNORED = -1, -2
"""Results of `match` for a detection without an object, and for a detection inside a crowd."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One image: G objects, and D detections with the best score first."""

    image_id: ImageId
    objects: list[dict[str, Any]]
    """Annotations with ``bbox``, ``segmentation`` (run lengths or None) and ``iscrowd``."""
    found: list[dict[str, Any]]
    """Result rows in the same form."""
    labels: Int[np.ndarray, "g"]
    """Class numbers 0..K-1, in the order of the category ids."""
    crowd: Bool[np.ndarray, "g"]
    found_labels: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    iou: Float[np.ndarray, "d g"]
    """IoU of every pair; for a crowd, the share of the detection that is inside it."""


class Tally(NamedTuple):
    """Hits, missed objects and false detections of an image."""

    hits: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 for an image without objects and detections."""
        total = 2 * self.hits + self.missed + self.false
        return 2 * self.hits / total if total else 1.0


def scenes(rows: Unchecked, truth: Mapping[str, Any], kind: Kind) -> Iterator[Scene]:
    """The images of ``truth`` in the order of their ids, overlaps by boxes or masks. Raises `DataError`."""
    numbers = {category_id: k for k, category_id in enumerate(class_names(truth))}
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in sound_objects(truth, kind):
        objects[annotation["image_id"]].append(annotation)
    for row in counted_rows(rows, truth, kind == "segm"):
        found[row["image_id"]].append(row)
    for image_id in sorted((image["id"] for image in truth["images"]), key=lambda i: (isinstance(i, str), i)):
        there = objects[image_id]
        ranked = sorted(found[image_id], key=lambda row: -row["score"])
        crowd = np.array([o["iscrowd"] for o in there], bool)
        yield Scene(
            image_id,
            there,
            ranked,
            np.array([numbers[o["category_id"]] for o in there], np.int64),
            crowd,
            np.array([numbers[row["category_id"]] for row in ranked], np.int64),
            np.array([row["score"] for row in ranked], np.float64),
            _overlaps(ranked, there, crowd, kind),
        )


def _overlaps(found: list[Any], objects: list[Any], crowd: Bool[np.ndarray, "g"], kind: Kind) -> np.ndarray:
    if kind == "segm":
        return mask_math.iou([f["segmentation"] for f in found], [o["segmentation"] for o in objects], crowd.tolist())
    return mask_math.box_iou([f["bbox"] for f in found], [o["bbox"] for o in objects], crowd.tolist())


def match(iou: Float[np.ndarray, "d g"], crowd: Bool[np.ndarray, "g"], least: float = 0.5) -> Int[np.ndarray, "d"]:
    """Match detections, best first, each with the free object of highest IoU, if that is at least ``least``.

    The result is the index of the object, `FALSE` or `IGNORED`; a detection without an object that overlaps a crowd by
    at least ``least`` is ignored.
    """
    answer = np.full(len(iou), FALSE)
    free = np.where(crowd, 0, iou)  # (D, G)
    for i in range(len(iou)):
        if free.shape[1] and free[i].max() >= least:
            answer[i] = free[i].argmax()
            free[:, answer[i]] = 0
        elif (iou[i] >= least)[crowd].any():
            answer[i] = IGNORED
    return answer


def match_classes(scene: Scene) -> Int[np.ndarray, "d"]:
    """`match` within classes, as in average precision."""
    same = scene.found_labels[:, None] == scene.labels
    return match(np.where(same, scene.iou, 0), scene.crowd)


def tally(scene: Scene, score: float) -> Tally:
    """Hits, missed objects and false detections of an image at a score threshold."""
    answer = match_classes(scene)[scene.scores >= score]
    hits = int((answer >= 0).sum())
    return Tally(hits, int((~scene.crowd).sum()) - hits, int((answer == FALSE).sum()))


def best_threshold(scenes: Sequence[Scene]) -> Threshold:
    """The score threshold with the highest F1 over all images and classes; of equal ones the higher.

    It lies halfway between the lowest score that counts and the highest that does not (0 where all count). Without any
    hit it is 0, with an F1 of 0.
    """
    curve = threshold_curve(scenes)
    f1 = [t.f1 for t in curve]
    if not any(f1):
        return Threshold(0.0, 0.0, 0.0, 0.0)
    best = int(np.argmax(f1))
    below = curve[best + 1].score if best + 1 < len(curve) else 0.0
    return curve[best]._replace(score=(curve[best].score + below) / 2)


def threshold_curve(scenes: Sequence[Scene]) -> list[Threshold]:
    """F1, precision and recall with each occurring score as the threshold, highest score first."""
    answer = np.concatenate([np.zeros(0, int), *(match_classes(s) for s in scenes)])
    scores = np.concatenate([np.zeros(0), *(s.scores for s in scenes)])
    scores, answer = scores[answer != IGNORED], answer[answer != IGNORED]
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(answer[order] >= 0)
    objects = sum(int((~s.crowd).sum()) for s in scenes)
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # the last of equal scores
    return [
        Threshold(
            float(scores[i]),
            float(2 * hits[i] / (i + 1 + objects)),
            float(hits[i] / (i + 1)),
            float(hits[i] / objects) if objects else 0.0,
        )
        for i in last
    ]


def confusion(scenes: Sequence[Scene], classes: int, score: float) -> Int[np.ndarray, "k+1 k+1"]:
    """Confusion matrix at a score threshold: true classes (rows) by predicted classes (columns).

    Objects and detections are matched regardless of their classes. The last column counts missed objects, the last
    row false detections. A detection inside a crowd of its own class is not counted.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for scene in scenes:
        kept = scene.scores >= score
        labels = scene.found_labels[kept]
        same = labels[:, None] == scene.labels
        answer = match(np.where(same | ~scene.crowd, scene.iou[kept], 0), scene.crowd)
        hit = answer >= 0
        np.add.at(counts, (scene.labels[answer[hit]], labels[hit]), 1)
        np.add.at(counts[classes], labels[answer == FALSE], 1)
        missed = ~scene.crowd
        missed[answer[hit]] = False
        np.add.at(counts[:, classes], scene.labels[missed], 1)
    return counts


def worst(scenes: Sequence[Scene], score: float, count: int) -> list[tuple[Scene, Tally]]:
    """At most ``count`` images with errors, lowest F1 first; of equal ones those with more errors first."""
    rated = [(scene, tally(scene, score)) for scene in scenes]
    wrong = [pair for pair in rated if pair[1].missed or pair[1].false]
    return sorted(wrong, key=lambda pair: (pair[1].f1, -pair[1].missed - pair[1].false))[:count]
