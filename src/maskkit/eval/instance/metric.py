"""COCO average precision and recall of boxes and masks, from result rows and COCO ground truth.

The protocol is that of pycocotools, whose numbers `maskkit.eval.instance.counting` gives. Ground truth that
pycocotools cannot read is completed: annotations are renumbered (there, id 0 counts as unmatched), a missing
``iscrowd`` is 0, a missing ``bbox`` or ``area`` is that of the mask, and an object without a mask is ignored when masks
are evaluated: it does not count as missed, nor a detection inside its box as false.

Masks stay run lengths throughout.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from maskkit.errors import DataError
from maskkit.eval.instance.counting import Counts, Kind, count, pair
from maskkit.eval.numbers import Metric, mean, shown
from maskkit.eval.rows import Known, Unchecked, box, number, place, run_lengths, sound_rows, surely_fill
from maskkit.files import write_json
from maskkit.geometry import polygons
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories

KINDS: tuple[Kind, ...] = ("bbox", "segm")
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
PROPOSALS = (10, 100, 1000)
"""Numbers of detections at which the average recall of class-agnostic proposals is evaluated."""


@dataclass(frozen=True, eq=False)
class CocoResult:
    """The result of `evaluate`. Metrics are between 0 and 1; None means that there are no such objects."""

    bbox: dict[str, Metric] | None
    """``AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`` of the boxes, None when not evaluated."""
    segm: dict[str, Metric] | None
    """The same of the masks."""
    per_class: dict[str, dict[str, Metric]]
    """For each class name ``objects`` (without crowds), and for each evaluated kind ``bbox_AP``, ``bbox_AP50``, ..."""
    precision: dict[Kind, Float[np.ndarray, "10 101 k"]]
    """Precision by IoU (`IOUS`), recall (`RECALLS`) and class, for objects of every size; the PR curves. It is -1
    for a class without objects."""
    recall: dict[Kind, Float[np.ndarray, "10 k"]]
    """Highest recall by IoU and class."""

    @property
    def kind(self) -> Kind:
        """The kind of the main metrics: masks where they were evaluated."""
        return "segm" if self.segm is not None else "bbox"

    @property
    def main(self) -> dict[str, Metric]:
        """The metrics of `kind`."""
        numbers = self.segm or self.bbox
        assert numbers is not None
        return numbers

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics shown during training; the first one, ``AP``, decides which weights are best."""
        parts = (("mask", self.segm), ("box", self.bbox))
        named = {f"{kind}_{n}": v[n] for kind, v in parts if v for n in ("AP", "AP50", "AP75")}
        return {"AP": self.main["AP"], **named}

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON types, without the curves."""
        return {"bbox": self.bbox, "segm": self.segm, "per_class": self.per_class}

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    def table(self) -> Table:
        """The metrics, one row per kind."""
        table = Table("", *self.main, box=SIMPLE_HEAD, padding=0)  # fits 80 columns
        for name, numbers in (("box", self.bbox), ("mask", self.segm)):
            if numbers is not None:
                table.add_row(name, *map(shown, numbers.values()))
        return table


class ProposalResult(CocoResult):
    """The result of `evaluate` for class-agnostic proposals with the limits `PROPOSALS`; the main metric is recall."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics shown during training; the recall of the best hundred decides which weights are best."""
        return {name: self.main[name] for name in ("AR100", "AR10", "AR1000", "AP")}


def evaluate(
    rows: Unchecked,
    truth: Mapping[str, Any],
    kinds: Collection[Kind] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> CocoResult:
    """Average precision and recall of COCO result ``rows`` against COCO ground truth, neither of which is changed.

    Without ``kinds`` boxes are evaluated, and masks when the rows and the ground truth have them. ``mask_score``, where
    a row has it, ranks its mask in place of ``score``. As in pycocotools the size of a detection is that of its box,
    also for masks, unless the first row has no box; only the metrics by size depend on it.

    Raises `DataError` for rows that are malformed or refer to an unknown image or class, and when ``kinds`` includes
    masks that are missing.
    """
    if not truth.get("categories"):
        raise DataError("the ground truth has no categories, so there is nothing to evaluate; add them to the file")
    limits = sorted(max_dets)
    if kinds is None:
        kinds = [k for k in KINDS if k == "bbox" or (_have_masks(rows) and _have_masks(truth["annotations"]))]
    precision: dict[Kind, np.ndarray] = {}
    recall: dict[Kind, np.ndarray] = {}
    numbers: dict[Kind, dict[str, Metric]] = {}
    if "segm" in kinds and not _have_masks(truth["annotations"]):
        raise DataError("the ground truth has boxes only, so masks cannot be evaluated; evaluate boxes only")
    found = counted_rows(rows, truth, "segm" in kinds)
    known = _objects(truth, masks="segm" in kinds)
    classes, masks = list(class_names(truth)), "segm" in kinds
    same = masks and not any(o["unknown"] for o in known) and not any("mask_score" in row for row in found)
    sides = None
    for kind in kinds:
        if sides is None or not same:  # the libraries take long to read them
            of_kind = _of_kind(known, kind), _ranked(found, kind)
            sides = pair(*of_kind, truth["images"], classes, masks=same or kind == "segm")
        counts = count(sides, kind, limits)
        numbers[kind] = _summary(counts, limits)
        precision[kind], recall[kind] = counts.precision[..., 0, -1], counts.recall[..., 0, -1]
    objects = Counter(a["category_id"] for a in truth["annotations"] if not a.get("iscrowd"))
    per_class: dict[str, dict[str, Metric]] = {}
    for k, (category_id, name) in enumerate(class_names(truth).items()):
        per_class[name] = {"objects": objects[category_id]}
        for kind, values in precision.items():
            per_class[name] |= {f"{kind}_AP": mean(values[..., k]), f"{kind}_AP50": mean(values[0, :, k])}
    return CocoResult(numbers.get("bbox"), numbers.get("segm"), per_class, precision, recall)


def class_names(truth: Mapping[str, Any]) -> dict[int, str]:
    """Category ids, sorted, and their names; a name that several classes share is followed by the id."""
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    names = {c["id"]: str(c.get("name", c["id"])) for c in categories}
    return dict(zip(names, Categories(tuple(names.values()), tuple(names)).titles, strict=True))


def counted_rows(rows: Unchecked, truth: Mapping[str, Any], masks: bool) -> list[dict[str, Any]]:
    """Checked result rows with ``bbox`` and ``area``, and masks as compressed run lengths, None where unknown.

    With ``masks`` every row must have a mask. Raises `DataError` for the first bad row.
    """
    boxed = bool(rows) and isinstance(rows[0], Mapping) and bool(rows[0].get("bbox"))
    need = ("score", "segmentation") if masks else ("score",)
    counted = []
    for row in sound_rows(rows, Known.of_coco(truth), need, masks=masks or not boxed):
        shape = row.get("segmentation") if masks or not boxed or not row.get("bbox") else None
        rle = {**shape, "counts": shape["counts"].encode()} if shape else None
        xywh = row.get("bbox") or _tight_box(rle)
        area = xywh[2] * xywh[3] if boxed or rle is None else _pixels(rle)
        counted.append({**row, "bbox": xywh, "area": area, "segmentation": rle, "iscrowd": 0})
    return counted


def sound_objects(truth: Mapping[str, Any], kind: Kind) -> list[dict[str, Any]]:
    """Checked and completed annotations, numbered from 1, with masks (for ``segm``) as compressed run lengths.

    With ``segm`` an object without a mask becomes a crowd that fills its box. Raises `DataError` for the first bad
    annotation.
    """
    sizes = Known.of_coco(truth).sizes
    objects = _of_kind(_objects(truth, kind == "segm"), kind)
    return [
        {**o, "segmentation": polygons.as_stated(shape, sizes[o["image_id"]])}  # type: ignore[arg-type]
        if isinstance(shape := o["segmentation"], list)
        else o
        for o in objects
    ]


def _of_kind(objects: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    return [{**o, "iscrowd": 1} if o["unknown"] else o for o in objects] if kind == "segm" else objects


def _ranked(found: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    return [{**row, "score": row.get("mask_score", row["score"])} for row in found] if kind == "segm" else found


def _objects(truth: Mapping[str, Any], masks: bool) -> list[dict[str, Any]]:
    """`sound_objects` of both kinds, where polygons stay, since hotcoco rasterises them in less time than we do.

    With ``masks``, an object without one has that of its box and is ``unknown``.
    """
    known, annotations = Known.of_coco(truth), truth["annotations"]
    fills = surely_fill(annotations, known) if masks else [False] * len(annotations)
    sound = []
    for place_in_file, annotation in enumerate(annotations, 1):
        try:
            sound.append({"id": place_in_file, **_sound_object(annotation, known, masks, fills[place_in_file - 1])})
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"ground truth, annotation {annotation.get('id', place_in_file)}: {error}") from None
    return sound


def _have_masks(records: Unchecked) -> bool:
    return not records or any(isinstance(r, Mapping) and r.get("segmentation") for r in records)


def _sound_object(annotation: Mapping[str, Any], known: Known, masks: bool, fills: bool) -> dict[str, Any]:
    image_id, category_id = place(annotation, known)
    size = known.sizes[image_id]
    shape, xywh, area = (annotation.get(key) for key in ("segmentation", "bbox", "area"))
    if not shape and not xywh:
        raise ValueError("has neither a bbox nor a segmentation")
    rle = parts = None
    if shape and (masks or not xywh or area is None):
        if fills:
            counts = shape["counts"]
            rle = {"size": list(shape["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
        elif not isinstance(shape, list) or size is None:
            rle = run_lengths(shape, size)
        elif not (parts := polygons.stated_parts(shape)) or not xywh or area is None:
            rle = polygons.as_stated(shape, size)
    xywh = box(xywh) if xywh else _tight_box(rle)
    if area is None:
        area = xywh[2] * xywh[3] if rle is None else _pixels(rle)
    unknown = masks and not shape
    if unknown:
        x, y, width, height = xywh
        rle = run_lengths([[x, y, x, y + height, x + width, y + height, x + width, y]], size)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": xywh,
        "segmentation": parts if rle is None else rle,
        "iscrowd": int(bool(annotation.get("iscrowd"))),
        "area": number(area, "area"),
        "unknown": unknown,
    }


def _tight_box(rle: Rle | None) -> list[float]:
    x1, y1, x2, y2 = mask_math.boxes([rle] if rle is not None else [])[0].tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _pixels(rle: Rle) -> float:
    return float(mask_math.area([rle])[0])


def _summary(counts: Counts, limits: list[int]) -> dict[str, Metric]:
    precision, recall = counts
    numbers = {"AP": precision[..., 0, -1], "AP50": precision[0, ..., 0, -1], "AP75": precision[5, ..., 0, -1]}
    numbers |= {f"AP{size}": precision[..., i, -1] for i, size in enumerate("sml", 1)}
    numbers |= {f"AR{limit}": recall[..., 0, i] for i, limit in enumerate(limits)}
    numbers |= {f"AR{size}": recall[..., i, -1] for i, size in enumerate("sml", 1)}
    return {name: mean(values) for name, values in numbers.items()}
