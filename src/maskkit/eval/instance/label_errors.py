"""Likely errors of labels, found by a model: missed objects, wrong classes, loose masks.

The scores follow ObjectLab (Tkachenko et al., 2023), with masks instead of boxes. An object is *missed* if the model is
confident of it and no label is near. A label has the *wrong class* if the model is confident of another class for the
same outline. A mask is *loose* if the model is confident of the object, but their IoU is lower than is typical of
objects of that class and size. A model that was trained on the same labels has learnt some of their errors: one that
was trained on other images finds more.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from jaxtyping import Bool, Float
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from maskkit.eval.instance.match import Scene, scenes
from maskkit.eval.instance.metric import Kind, class_names
from maskkit.eval.rows import Unchecked
from maskkit.files import replacing
from maskkit.geometry import rle as mask_math
from maskkit.prediction import ImageId

T = TypeVar("T")

ErrorKind = Literal["missed object", "wrong class", "loose mask"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)

_NEAR = 0.2
"""IoU from which on a label and a detection may mean the same object."""
_SAME = 0.5
"""IoU from which on they do."""
_ENOUGH = 10
"""Least number of pairs for the typical IoU of a class and size; with fewer, that of all objects is used."""
_SIZES = (32**2, 96**2)


class Suspect(NamedTuple):
    """A label, or the lack of one, that is likely to be an error."""

    kind: ErrorKind
    suspicion: float
    """Between 0 and 1; comparable within a kind."""
    image_id: ImageId
    annotation: Any
    """The id of the label in the file; None for a missed object."""
    label: str
    """The class of the label; empty for a missed object."""
    found: str
    """The class that the model finds."""
    box: tuple[float, float, float, float]
    """``x y width height`` of the label, or of the object without one."""


def suspects(rows: Unchecked, truth: Mapping[str, Any], known: Collection[int] | None = None) -> list[Suspect]:
    """All labels that may be errors, image by image; `in_turns` ranks them.

    Labels and rows are compared by masks if both have any, else by boxes. ``known`` are the ids of the classes that the
    model can find, by default all: a label of another class is never suspect, and an object at its place is not missed.
    Raises `DataError` for rows that do not belong to the ground truth.
    """
    both = all(any(r.get("segmentation") for r in records) for records in (rows, truth["annotations"]))
    kind: Kind = "segm" if both else "bbox"
    names = list(class_names(truth).values())
    judged = np.array([known is None or i in known for i in class_names(truth)], bool)
    seen = list(scenes(rows, truth, kind))
    ids = [annotation.get("id") for annotation in truth["annotations"]]
    typical = _typical(seen)
    found: list[Suspect] = []
    for scene in seen:
        near = np.where(scene.crowd, 0, scene.iou)  # (D, G)
        for d, value in _missed(scene, kind):
            name, box = names[scene.found_labels[d]], _box(scene.found[d])
            found.append(Suspect("missed object", value, scene.image_id, None, "", name, box))
        best = near.argmax(1) if near.shape[1] else np.zeros(len(near), np.int64)
        for g in np.flatnonzero(~scene.crowd & judged[scene.labels]).tolist():
            label, row = scene.labels[g], scene.objects[g]
            mine = (best == g) & (near[:, g] >= _NEAR)
            about = (scene.image_id, ids[row["id"] - 1], names[label])
            value, other = _wrong_class(scene, mine & (near[:, g] >= _SAME), label)
            if value > 0:
                found.append(Suspect("wrong class", value, *about, names[other], _box(row)))
            if (pair := _own(scene, mine, g)) is not None:
                score, iou = pair
                usual = typical[label, _size(row)]
                value = score * max(0.0, 1 - iou / usual) if usual > 0 else 0.0
                if value > 0:
                    found.append(Suspect("loose mask", value, *about, names[label], _box(row)))
    return found


def in_turns(found: Iterable[T], suspect: Callable[[T], Suspect]) -> list[T]:
    """The most suspicious first; the kinds alternate, because their suspicions cannot be compared."""
    groups: dict[ErrorKind, list[T]] = {kind: [] for kind in ERROR_KINDS}
    for item in found:
        groups[suspect(item).kind].append(item)
    ranked = (sorted(group, key=lambda item: -suspect(item).suspicion) for group in groups.values())
    return [item for together in zip_longest(*ranked) for item in together if item is not None]


def _missed(scene: Scene, kind: Kind) -> Iterable[tuple[int, float]]:
    """Detections, best first, that are near no label and no better such detection, each with its suspicion."""
    alone = np.flatnonzero((scene.iou < _NEAR).all(1)).tolist()
    kept: list[int] = []
    for d in alone:
        if kept and _overlaps(scene, d, kept, kind).max() >= _SAME:
            continue
        kept.append(d)
        yield d, float(scene.scores[d])


def _overlaps(scene: Scene, d: int, others: Sequence[int], kind: Kind) -> Float[np.ndarray, "n"]:
    """IoU of a detection with others."""
    if kind == "segm":
        masks = [row["segmentation"] for row in scene.found]
        return mask_math.iou([masks[d]], [masks[i] for i in others])[0]
    return mask_math.box_iou([scene.found[d]["bbox"]], [scene.found[i]["bbox"] for i in others])[0]


def _wrong_class(scene: Scene, same: Bool[np.ndarray, "d"], label: int) -> tuple[float, int]:
    """How confident the model is of another class for an object that the ``same`` detections outline, and which
    class."""
    other = same & (scene.found_labels != label)
    if not other.any():
        return 0.0, label
    best = int(np.where(other, scene.scores, -1).argmax())
    own = scene.scores[same & (scene.found_labels == label)].max(initial=0)
    return float(scene.scores[best] * (1 - own)), int(scene.found_labels[best])


def _own(scene: Scene, mine: Bool[np.ndarray, "d"], g: int) -> tuple[float, float] | None:
    """Score and IoU of the best detection of an object with its class."""
    same = np.flatnonzero(mine & (scene.found_labels == scene.labels[g]))
    if not len(same):
        return None
    best = same[(scene.scores[same] * scene.iou[same, g]).argmax()]
    return float(scene.scores[best]), float(scene.iou[best, g])


def _typical(seen: Sequence[Scene]) -> dict[tuple[int, int], float]:
    """The median IoU of labels with what the model finds, by class number and size range."""
    groups: dict[tuple[int, int], list[float]] = defaultdict(list)
    for scene in seen:
        near = np.where(scene.crowd, 0, scene.iou)
        best = near.argmax(1) if near.shape[1] else np.zeros(len(near), np.int64)
        for g in np.flatnonzero(~scene.crowd).tolist():
            if (pair := _own(scene, (best == g) & (near[:, g] >= _NEAR), g)) is not None:
                groups[int(scene.labels[g]), _size(scene.objects[g])].append(pair[1])
    every = [iou for found in groups.values() for iou in found]
    usual = float(np.median(every)) if every else 0.0
    medians = {key: float(np.median(found)) for key, found in groups.items() if len(found) >= _ENOUGH}
    return defaultdict(lambda: usual, medians)


def _size(row: Mapping[str, Any]) -> int:
    """The size range of COCO that an object is in: 0 small, 1 medium, 2 large."""
    return sum(row["area"] >= limit for limit in _SIZES)


def _box(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    x, y, width, height = (round(float(v), 1) for v in row["bbox"])
    return x, y, width, height


def table(rows: Sequence[tuple[str, Path, Suspect]]) -> Table:
    """A table of suspects; ``rows`` have the split and the image of each one."""
    found = Table(
        "", "likely error", "suspicion", "image", "label", "id", "the model finds", "x y w h", box=SIMPLE_HEAD
    )
    for rank, (_, image, s) in enumerate(rows, 1):
        place = " ".join(f"{v:g}" for v in s.box)
        key = "" if s.annotation is None else str(s.annotation)
        cells = (str(rank), s.kind, f"{s.suspicion:.2f}", image.name, s.label, key, s.found, place)
        found.add_row(*map(Text, cells))
    return found


def write_suspects(file: Path, rows: Iterable[tuple[str, Path, Suspect]]) -> None:
    """Write suspects as a CSV file; ``rows`` have the split and the image of each one."""
    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(("kind", "suspicion", "split", "image", "annotation", "label", "found", "x", "y", "w", "h"))
        for split, image, s in rows:
            annotation = "" if s.annotation is None else s.annotation
            writer.writerow((s.kind, f"{s.suspicion:.3f}", split, image, annotation, s.label, s.found, *s.box))
