"""`Record`, one image of a data set, and `Annotation`, one object of it: what every reader produces."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskkit.data.label_map import IdImage, LabelSource
from maskkit.geometry import polygons
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories, ImageId

UNKNOWN_SIZE = (0, 0)
"""The size of an image that is only measured, where neither the file says it nor the image is there."""

Box = tuple[float, float, float, float]
Supervision = Literal["masks", "boxes", "tags"]
"""The labels that a target has: all of them, no masks, or only which classes occur."""
Polygons = Sequence[Any]
"""Flat lists or arrays ``[x0, y0, x1, y1, ...]``, one per part of an object."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The pixels of one id in an image of ids. The file is read on demand."""

    image: IdImage
    id: int

    def rle(self, size: tuple[int, int]) -> Rle:
        """Run-length record in an image of ``size`` (H, W). Raises `DataError`."""
        return self.image.rles(size)[self.id]


@dataclass(frozen=True, eq=False, slots=True)
class Annotation:
    """One object of an image. All coordinates are pixel edges of the upright image."""

    id: int
    label: int
    """Class number 0..K-1."""
    box: Box | None
    """``x1 y1 x2 y2``; None means the tight box of the mask."""
    segmentation: Polygons | Rle | Segment | None = None
    """Flat polygons ``[x0, y0, x1, y1, ...]`` whose union is the mask, a compressed run-length record, a segment of an
    image of ids, or None when the mask is unknown."""
    crowd: bool = False
    area: float | None = None
    """Area given in the file; None means the pixels of the mask (or the area of the box)."""
    stated: Box | None = None
    """``x y width height`` as the file has them, where they do not follow from ``box`` exactly."""
    drawn: Rle | None = None
    """A mask that a model drew, for training where the file has none or its masks are not to be used."""

    def rle(self, size: tuple[int, int]) -> Rle | None:
        """Run-length record of the mask in an image of ``size`` (H, W); None when the mask is unknown.

        Raises `DataError` when the mask is in an image of ids that cannot be read.
        """
        shape = self.segmentation
        if shape is None or isinstance(shape, dict):
            return shape
        return shape.rle(size) if isinstance(shape, Segment) else polygons.to_rle(shape, size)


@dataclass(frozen=True, eq=False)
class Record:
    """One image: its file, its (H, W) when upright, its objects, and the source of its label map."""

    image_id: ImageId
    """The id of the file, as it stands there."""
    path: Path
    size: tuple[int, int]
    annotations: list[Annotation]
    semantic: LabelSource | None = None
    truth: Sequence[Annotation] | None = None
    """The objects as the file has them, for the measure: not cut at the border, degenerate ones included. None: they
    are ``annotations``, which training can use as they are."""
    saliency: Path | None = None
    """A grey image with the saliency of each pixel."""

    @property
    def classes(self) -> set[int]:
        """Class numbers that the objects have or that the label map may contain."""
        labelled = self.semantic.classes if self.semantic is not None else set()
        return {a.label for a in self.annotations}.union(labelled)

    def renumber(self, numbers: Mapping[int, int]) -> "Record":
        """The same image with other class numbers; ``numbers`` maps every class of `classes`."""
        semantic = self.semantic.renumber(numbers) if self.semantic is not None else None
        return replace(self.with_labels(numbers), semantic=semantic)

    def with_labels(self, numbers: Mapping[int, int]) -> "Record":
        """The same image with other class numbers of its objects, without those whose class is not in ``numbers``."""

        def changed(objects: Sequence[Annotation]) -> list[Annotation]:
            return [replace(a, label=numbers[a.label]) for a in objects if a.label in numbers]

        return replace(
            self, annotations=changed(self.annotations), truth=None if self.truth is None else changed(self.truth)
        )


def number(records: Sequence[Record]) -> list[Record]:
    """The same records with the annotation ids 1, 2, ..."""
    ids = itertools.count(1)
    return [replace(r, annotations=[replace(a, id=next(ids)) for a in r.annotations]) for r in records]


def area_of(annotation: Annotation, size: tuple[int, int]) -> float:
    """Area in pixels: the value of the file, else the pixels of the mask, else the area of the box."""
    if annotation.area is not None:
        return annotation.area
    if (rle := annotation.rle(size)) is not None:
        return float(mask_math.area([rle])[0])
    x1, y1, x2, y2 = box_of(annotation, size)
    return (x2 - x1) * (y2 - y1)


def box_of(annotation: Annotation, size: tuple[int, int]) -> Box:
    """The box of the file, else the tight box of the mask."""
    if annotation.box is not None:
        return annotation.box
    rle = annotation.rle(size)
    assert rle is not None, "an annotation has a box or a mask"
    return extent_of_rle(rle)


def extent(polygons: Polygons) -> Box:
    """The box around flat polygons."""
    points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in polygons])
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2, y2


def extent_or_none(shape: Any) -> Box | None:
    """The box around ``shape`` where it is a list of flat polygons, each of whole points."""
    try:
        return extent(shape) if isinstance(shape, list) else None
    except (ValueError, TypeError, OverflowError):
        return None


def extent_of_rle(rle: Rle) -> Box:
    """The box around a run-length mask."""
    x1, y1, x2, y2 = mask_math.boxes([rle])[0].tolist()
    return x1, y1, x2, y2


def coco_row(record: Record, annotation: Annotation, categories: Categories, area: bool = True) -> dict[str, Any]:
    """COCO's annotation record; it has no ``segmentation`` when the mask is unknown.

    Without ``area`` it has one only where the file states it.
    """
    x1, y1, x2, y2 = box_of(annotation, record.size)
    stated = annotation.stated
    row: dict[str, Any] = {
        "id": annotation.id,
        "image_id": record.image_id,
        "category_id": categories.ids[annotation.label],
        "bbox": [x1, y1, x2 - x1, y2 - y1] if stated is None else list(stated),
        "iscrowd": int(annotation.crowd),
    }
    if area or annotation.area is not None:
        row["area"] = area_of(annotation, record.size)
    shape = annotation.segmentation
    if isinstance(shape, Sequence):
        row["segmentation"] = [np.asarray(p, np.float64).tolist() for p in shape]
    elif (rle := annotation.rle(record.size)) is not None:
        row["segmentation"] = mask_math.to_text(rle)
    return row
