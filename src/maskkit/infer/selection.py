"""Which of the objects that a model finds are kept: by class, by number, and by overlap regardless of class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
from jaxtyping import Int

from maskkit.errors import MaskkitError
from maskkit.geometry import rle
from maskkit.prediction import Categories, Instances, Panoptic, Prediction


@dataclass(frozen=True)
class Selection:
    """Which part of each prediction is kept; by default everything."""

    classes: tuple[str, ...] = ()
    """Names of classes; empty means all."""
    max_objects: int | None = None
    """Largest number of objects of an image; those with the highest scores are kept."""
    max_overlap: float = 1.0
    """Of objects that overlap more than this (intersection over union of their masks, or of their boxes where there
    are none) the best is kept, whatever their classes."""

    def check(self, categories: Categories, task: str) -> None:
        """Raise `MaskkitError` for a class that the model does not have, and for options that its task does not
        allow."""
        for name in self.classes:
            if name not in categories.names:
                near = get_close_matches(name, categories.names, 3, 0.5) or list(categories.names[:5])
                raise MaskkitError(f"--classes {name}: the model has no such class; it has {', '.join(near)}, ...")
        if self.classes and task == "semantic":
            raise MaskkitError("--classes chooses objects and segments; this model gives every pixel a class")
        for option, given in (("--max-objects", self.max_objects is not None), ("--max-overlap", self.max_overlap < 1)):
            if given and task in ("semantic", "panoptic"):
                raise MaskkitError(f"{option} is for models that find objects; this one gives every pixel a class")

    def __call__(self, prediction: Prediction) -> Prediction:
        """The prediction with only what is kept."""
        wanted = [n for n, name in enumerate(prediction.categories.names) if not self.classes or name in self.classes]
        if prediction.instances is not None:
            return replace(prediction, instances=self._objects(prediction.instances, wanted))
        if prediction.panoptic is not None and self.classes:
            kept = [s for s in prediction.panoptic.segments if s.label in wanted]
            ids = np.where(np.isin(prediction.panoptic.ids, [s.id for s in kept]), prediction.panoptic.ids, 0)
            return replace(prediction, panoptic=Panoptic(ids, kept))
        return prediction

    def _objects(self, found: Instances, wanted: Sequence[int]) -> Instances:
        if self.classes:
            found = found[np.flatnonzero(np.isin(found.labels, wanted))]
        if self.max_overlap < 1:
            found = found[without_overlaps(found, self.max_overlap)]
        return found if self.max_objects is None else found[: self.max_objects]


def without_overlaps(found: Instances, limit: float) -> Int[np.ndarray, "k"]:
    """Indices, in order, of the objects that no better one overlaps by more than ``limit``; best score first."""
    kept: list[int] = []
    rles = found.masks.rle() if found.masks is not None else None
    boxes = rle.xywh(found.boxes)
    for i in np.argsort(-found.scores, kind="stable").tolist():
        if rles is not None:
            overlaps = rle.iou([rles[i]], [rles[k] for k in kept])
        else:
            overlaps = rle.box_iou(boxes[[i]], boxes[kept])
        if not (overlaps > limit).any():
            kept.append(i)
    return np.array(sorted(kept), np.int64)
