"""What every reader gives: a `Dataset` of `Record`s, and the `Problem`s it met on the way.

A reader never stops at a bad record: it leaves the record out, says so in a `Problem`, and goes on. The ``sound_*``
functions hold the rules for one object; they raise ``ValueError`` with the reason when the object cannot be used, and
call ``warn`` when they had to mend it.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from maskkit.data import saliency
from maskkit.data.images import read_image
from maskkit.data.label_map import BACKGROUND, BACKGROUND_NAME, IGNORE, IdImage, LabelSource, PaintedObjects
from maskkit.errors import DataError
from maskkit.geometry import polygons
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import RleMasks, Target

Labels = Literal["masks", "boxes", "tags"]
Box = tuple[float, float, float, float]
Polygons = Sequence[Any]
"""Flat lists or arrays ``[x0, y0, x1, y1, ...]``, one per part of an object."""
Warn = Callable[[str], None]

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names that folders and files give to a split, ours first."""

ONE_CLASS = Categories.of(["object"])
"""Of class-agnostic methods."""

SLACK = 1.0
"""Pixels by which an annotation may reach over the border before it is worth a warning."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in a data set. An ``error`` left a record or an annotation out, a ``warning`` did not."""

    level: Literal["error", "warning"]
    file: str
    record: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.record}" if self.record else self.file
        return f"{self.level}: {where}: {self.message}"


class Problems(list[Problem]):
    """Problems in the order in which they were met."""

    def error(self, file: Path, record: str, message: str) -> None:
        """Note something that had to be left out."""
        self.append(Problem("error", str(file), record, message.removeprefix(f"{file}: ")))

    def warn(self, file: Path, record: str, message: str) -> None:
        """Note something doubtful that was kept."""
        self.append(Problem("warning", str(file), record, message.removeprefix(f"{file}: ")))


@dataclass(frozen=True, slots=True)
class Segment:
    """The pixels of one value in an image of ids, which is read when they are asked for."""

    image: IdImage
    id: int

    def rle(self, size: tuple[int, int]) -> Rle:
        """Run-length record in an image of ``size`` (H, W). Raises `DataError`."""
        return self.image.rles(size)[self.id]


@dataclass(frozen=True, eq=False, slots=True)
class Annotation:
    """One object of an image. Everything is in pixel edges of the upright image."""

    id: int
    label: int
    """Class number 0..K-1."""
    box: Box | None
    """``x1 y1 x2 y2``; None stands for the tight box of the mask."""
    segmentation: Polygons | Rle | Segment | None = None
    """Flat polygons ``[x0, y0, x1, y1, ...]`` whose union is the mask, a compressed run-length record, a value of an
    image of ids, or not known."""
    crowd: bool = False
    area: float | None = None
    """Area as the file has it; None stands for the pixels of the mask (or the area of the box)."""

    def rle(self, size: tuple[int, int]) -> Rle | None:
        """Run-length record of the mask in an image of ``size`` (H, W), None when no mask is known.

        Raises `DataError` when it stands in an image of ids that cannot be read.
        """
        shape = self.segmentation
        if shape is None or isinstance(shape, dict):
            return shape
        return shape.rle(size) if isinstance(shape, Segment) else polygons.to_rle(shape, size)


@dataclass(frozen=True, eq=False)
class Record:
    """One image: where it lies, its (H, W) when upright, its objects, and what tells the class of each pixel."""

    image_id: int
    path: Path
    size: tuple[int, int]
    annotations: list[Annotation]
    semantic: LabelSource | None = None
    saliency: Path | None = None
    """A grey image of how much each pixel stands out."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their objects, read from ``source`` in the format called ``format``."""

    records: list[Record]
    categories: Categories
    source: Path
    format: str
    problems: Problems = field(default_factory=Problems)

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int, labels: Labels = "masks") -> tuple[UInt8[Tensor, "3 h w"], Target, ImageMeta]:
        """Image, target and meta of one record.

        ``labels`` decides what the target carries: ``masks`` everything the file has, ``boxes`` no masks and no label
        map, ``tags`` only which classes occur, without any object. Raises `DataError` when the image cannot be read,
        or has not the size that the annotations were made for.
        """
        record = self.records[index]
        image, meta = self.image(index)
        target = _target(record, labels, len(self.categories))
        if record.saliency is not None:
            target.saliency = saliency.read(record.saliency, record.size)
        return image, target, meta

    def image(self, index: int) -> tuple[UInt8[Tensor, "3 h w"], ImageMeta]:
        """Image and meta of one record. Raises `DataError` as `load` does."""
        record = self.records[index]
        image = self._read(record)
        if tuple(image.shape[1:]) != record.size:
            raise DataError(f"{record.path}: {size_mismatch(record.size, (image.shape[1], image.shape[2]))}")
        return image, ImageMeta(record.image_id, str(record.path), record.size, record.size)

    def _read(self, record: Record) -> UInt8[Tensor, "3 h w"]:
        return read_image(record.path)

    def coco(self) -> dict[str, Any]:
        """COCO ground truth with the ids of the file; an object whose mask is not known has no ``segmentation``."""
        return {
            "images": self.coco_images(),
            "categories": self.categories.to_coco(),
            "annotations": [_coco_row(r, a, self.categories) for r in self.records for a in r.annotations],
        }

    def coco_images(self) -> list[dict[str, Any]]:
        """COCO's records of the images."""
        folder = self.source if self.source.is_dir() else self.source.parent
        return [
            {
                "id": r.image_id,
                "file_name": (r.path.relative_to(folder) if r.path.is_relative_to(folder) else r.path).as_posix(),
                "height": r.size[0],
                "width": r.size[1],
            }
            for r in self.records
        ]

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """The records at ``indices``, in that order."""
        return replace(self, records=[self.records[int(i)] for i in indices])

    def split(self, share: float, seed: int) -> "tuple[Dataset, Dataset]":
        """Training and validation part: ``share`` of the images, drawn with ``seed``, go to the second.

        With two images or more neither part is empty. Raises ``ValueError`` for a share outside of 0 to 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share of images kept for validation lies between 0 and 1, got {share}")
        order = np.random.default_rng(seed).permutation(len(self))
        kept = min(max(round(share * len(self)), 1), len(self) - 1) if len(self) > 1 else 0
        return self.subset(sorted(order[kept:])), self.subset(sorted(order[:kept]))

    def with_categories(self, categories: Categories) -> "Dataset":
        """The same objects under the class numbers and ids of ``categories``, matched by name.

        Raises `DataError` when objects have a class that is not among them.
        """
        if categories == self.categories:
            return self
        numbers = {name: i for i, name in enumerate(categories.names)}
        used = {self.categories.names[n] for r in self.records for n in _classes(r)}
        if unknown := sorted(used - numbers.keys()):
            raise DataError(
                f"{self.source}: has objects of classes that are not known here: {', '.join(unknown)} "
                f"(known: {', '.join(categories.names)}); rename or remove them"
            )
        renumber = {i: numbers[name] for i, name in enumerate(self.categories.names) if name in numbers}
        return replace(self, records=[_renumbered(r, renumber) for r in self.records], categories=categories)

    def only(self, classes: Sequence[int]) -> "Dataset":
        """The data set with the class numbers ``classes`` alone, which become 0, 1, ...; nothing is known of others."""
        number = {k: n for n, k in enumerate(classes)}
        records = [
            replace(
                r,
                annotations=[replace(a, label=number[a.label]) for a in r.annotations if a.label in number],
                semantic=r.semantic.renumber(number) if r.semantic is not None else None,
            )
            for r in self.records
        ]
        return replace(self, records=records, categories=self.categories.subset(classes))

    def with_saliency(self, folder: Path) -> "Dataset":
        """The same images with their saliency maps, which lie in ``folder``. Raises `DataError` where one lacks."""
        maps = saliency.find(folder, [r.path for r in self.records])
        return replace(self, records=[replace(r, saliency=m) for r, m in zip(self.records, maps, strict=True)])

    def as_one_class(self) -> "Dataset":
        """The data set as one whose objects are of one class, called object: what class-agnostic methods see of it."""
        records = [
            replace(r, annotations=[replace(a, label=0) for a in r.annotations], semantic=None) for r in self.records
        ]
        return replace(self, records=records, categories=ONE_CLASS)

    def as_instances(self) -> "Dataset":
        """The data set as one of things alone: segments of stuff, and their classes, are left out."""
        if all(self.categories.things):
            return self
        things = self.only(np.flatnonzero(self.categories.things).tolist())
        return replace(things, records=[replace(r, semantic=None) for r in things.records])

    def as_panoptic(self) -> "Dataset":
        """The data set as one of segments, things and stuff alike, which are its annotations; the rest is not known.

        Raises `DataError` when there are label maps alone, in which objects cannot be told apart.
        """
        if any(r.semantic is not None for r in self.records) and not any(r.annotations for r in self.records):
            raise DataError(
                f"{self.source}: has label maps without objects; panoptic data are a COCO panoptic json with its "
                "images of ids, or masks of objects"
            )
        return replace(self, records=[replace(r, semantic=None) for r in self.records])

    def as_semantic(self) -> "Dataset":
        """The data set as one of label maps alone: objects become paint, where pixels may be of no class that is one:
        the class called background, which comes in front where the data has none of that name.

        Raises `DataError` when there are more classes than a label map can hold.
        """
        sources = [r.semantic or PaintedObjects(r.annotations, BACKGROUND) for r in self.records]
        categories, shift, background = self.categories, 0, BACKGROUND
        if BACKGROUND_NAME in categories.names:
            background = categories.names.index(BACKGROUND_NAME)
        elif any(s.has_background for s in sources):
            free = next(i for i in itertools.count() if i not in categories.ids)
            categories = Categories(
                (BACKGROUND_NAME, *categories.names), (free, *categories.ids), (False, *categories.things)
            )
            shift, background = 1, 0
        if len(categories) >= IGNORE:
            raise DataError(f"{self.source}: has {len(categories)} classes; a label map holds {IGNORE - 1} at most")
        numbers = {BACKGROUND: background} | {n: n + shift for n in range(len(self.categories))}
        records = [
            replace(r, annotations=[], semantic=s.renumber(numbers)) for r, s in zip(self.records, sources, strict=True)
        ]
        return replace(self, records=records, categories=categories)


def join(parts: Sequence[Dataset], source: Path) -> Dataset:
    """All records of several data sets with the classes of the first; ids that occur twice are numbered anew."""
    first = parts[0]
    records = [r for part in parts for r in part.with_categories(first.categories).records]
    if len({r.image_id for r in records}) < len(records):
        records = [replace(r, image_id=i) for i, r in enumerate(records, 1)]
    ids = [a.id for r in records for a in r.annotations]
    if len(set(ids)) < len(ids):
        records = number(records)
    return Dataset(
        records, first.categories, source, first.format, Problems(p for part in parts for p in part.problems)
    )


def number(records: Sequence[Record]) -> list[Record]:
    """The same records with the annotation ids 1, 2, ..."""
    ids = itertools.count(1)
    return [replace(r, annotations=[replace(a, id=next(ids)) for a in r.annotations]) for r in records]


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(H, W) as a file states it, None when those are no sizes that an image can have."""
    known = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0 and height * width < 2**31
    return (height, width) if known else None


def size_mismatch(stated: tuple[int, int], real: tuple[int, int]) -> str:
    """What to say when annotations were made for another (H, W) than the image has."""
    turned = " (the image is turned by its EXIF orientation)" if stated == real[::-1] else ""
    return (
        f"the annotations say {stated[1]} x {stated[0]} pixels, the image has {real[1]} x {real[0]}{turned}; "
        "put the image back that was annotated, or correct the annotations"
    )


def area_of(annotation: Annotation, size: tuple[int, int]) -> float:
    """Area in pixels: what the file says, else the pixels of the mask, else the area of the box."""
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
    x1, y1, x2, y2 = mask_math.boxes([rle])[0].tolist()
    return x1, y1, x2, y2


def _classes(record: Record) -> set[int]:
    """The class numbers that an image uses, or may use."""
    labelled = record.semantic.classes if record.semantic is not None else set()
    return {a.label for a in record.annotations} | labelled


def _renumbered(record: Record, numbers: Mapping[int, int]) -> Record:
    annotations = [replace(a, label=numbers[a.label]) for a in record.annotations]
    semantic = record.semantic.renumber(numbers) if record.semantic is not None else None
    return replace(record, annotations=annotations, semantic=semantic)


def _target(record: Record, labels: Labels, classes: int) -> Target:
    objects = record.annotations
    if labels == "tags":
        seen = {a.label for a in objects}
        if record.semantic is not None:
            seen |= record.semantic.present(record.size)
        tags = torch.zeros(classes, dtype=torch.bool)
        tags[sorted(seen)] = True
        return Target.of([], [], tags=tags)
    height, width = record.size
    boxes = torch.tensor([box_of(a, record.size) for a in objects], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    masks, known, semantic = None, None, None
    if labels == "masks":
        if record.semantic is not None and not record.semantic.has_background:
            semantic = torch.from_numpy(record.semantic.read(record.size))
        rles = [a.rle(record.size) for a in objects]
        known = [rle is not None for rle in rles]
        if any(known) or not objects:
            masks = RleMasks(record.size, [rle or mask_math.empty(record.size) for rle in rles])
    return Target.of(boxes, [a.label for a in objects], masks, [a.crowd for a in objects], known, semantic)


def _coco_row(record: Record, annotation: Annotation, categories: Categories) -> dict[str, Any]:
    x1, y1, x2, y2 = box_of(annotation, record.size)
    row: dict[str, Any] = {
        "id": annotation.id,
        "image_id": record.image_id,
        "category_id": categories.ids[annotation.label],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area_of(annotation, record.size),
        "iscrowd": int(annotation.crowd),
    }
    shape = annotation.segmentation
    if isinstance(shape, Sequence):
        row["segmentation"] = [np.asarray(p, np.float64).tolist() for p in shape]
    elif (rle := annotation.rle(record.size)) is not None:
        counts = rle["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        row["segmentation"] = {"size": list(rle["size"]), "counts": text}
    return row


def sound_box(box: Sequence[float], size: tuple[int, int], warn: Warn) -> Box:
    """``x1 y1 x2 y2`` as usable numbers, cut at the border of the image where it reaches far over it."""
    x1, y1, x2, y2 = (float(v) for v in box)
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise ValueError(f"the box has values that are no numbers: {list(box)}")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box is {x2 - x1:g} wide and {y2 - y1:g} high; draw it again or remove it")
    height, width = size
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise ValueError(f"the box lies outside of the image of {width} x {height} pixels")
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        warn(
            f"the box {x1:g} {y1:g} {x2:g} {y2:g} reaches over the border of {width} x {height} pixels and is cut there"
        )
        return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    return x1, y1, x2, y2


def sound_polygons(parts: Polygons, size: tuple[int, int], warn: Warn) -> list[Float[np.ndarray, "n"]]:
    """Flat polygons as arrays: unusable parts dropped, cut at the border where they reach far over it."""
    sound, reasons = [], []
    for part in parts:
        try:
            sound.append(_sound_polygon(part, size, warn))
        except (ValueError, TypeError, OverflowError) as error:
            reasons.append(str(error))
    if not sound:
        raise ValueError("; ".join(dict.fromkeys(reasons)) or "the mask has no polygon")
    for reason in reasons:
        warn(f"a part of the mask is left out: {reason}")
    return sound


def _sound_polygon(part: Any, size: tuple[int, int], warn: Warn) -> Float[np.ndarray, "n"]:
    flat = np.asarray(part, np.float64)
    if flat.ndim != 1 or len(flat) % 2:
        raise ValueError("a polygon is a flat list x0, y0, x1, y1, ...; write one number for x and one for y per point")
    if len(flat) < 6:
        raise ValueError(f"a polygon of {len(flat) // 2} points has no area; it needs three at least")
    points = flat.reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise ValueError("the polygon has values that are no numbers (NaN or infinite)")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the polygon is {x2 - x1:g} wide and {y2 - y1:g} high, it covers nothing")
    height, width = size
    if min(x1, y1) >= -SLACK and x2 <= width + SLACK and y2 <= height + SLACK:
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            raise ValueError(f"the polygon lies outside of the image of {width} x {height} pixels")
        return flat
    inside = _cut(points, size)
    if len(inside) < 3:
        raise ValueError(f"the polygon lies outside of the image of {width} x {height} pixels")
    warn(f"the polygon reaches over the border of {width} x {height} pixels and is cut there")
    return inside.reshape(-1)


def _cut(points: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Float[np.ndarray, "m 2"]:
    """The polygon inside the image (Sutherland and Hodgman, 1974): cut at one border after the other."""
    for axis, border, side in ((0, 0, 1), (0, size[1], -1), (1, 0, 1), (1, size[0], -1)):
        depth = side * (points[:, axis] - border)  # positive inside
        following, next_depth = np.roll(points, -1, 0), np.roll(depth, -1)
        crosses = depth * next_depth < 0
        share = np.divide(depth, depth - next_depth, out=np.zeros_like(depth), where=crosses)
        both = np.stack([points, points + share[:, None] * (following - points)], 1)  # (N, 2, 2)
        points = both[np.stack([depth >= 0, crosses], 1)]
    return points


def extent(polygons: Polygons) -> Box:
    """The box around flat polygons."""
    points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in polygons])
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2, y2
