"""Labels of a record in a form that another format can hold: label maps as regions, objects as label maps."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8

from maskkit.data import ids
from maskkit.data.convert.job import Job, Splits
from maskkit.data.dataset import Dataset
from maskkit.data.label_map import BACKGROUND, BACKGROUND_NAME, IGNORE, ImageTags, LabelFile
from maskkit.data.records import Annotation, Record, Segment
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories, ImageId

T = TypeVar("T")

MOST = 254
"""Largest number of classes of a label map, and of objects of a VOC image: two values mean none and unknown."""


def same_classes(datasets: Splits) -> dict[str, Dataset]:
    """The splits with a common list of classes: those of the first, then additional ones of the others."""
    categories, *others = [d.categories for d in datasets.values()]
    for known in others:
        added = known.subset(sorted(set(range(len(known))) - known.numbers_in(categories).keys()))
        start = max(categories.ids, default=0) + 1
        categories = Categories(
            categories.names + added.names,
            (*categories.ids, *range(start, start + len(added))),
            categories.things + added.things,
        )
    return {split: dataset.with_categories(categories) for split, dataset in datasets.items()}


def whole_ids(job: Job, datasets: Splits) -> dict[tuple[str, ImageId], int]:
    """A whole number for every image, by its split and id: its id if possible; other images get new numbers."""
    found: dict[tuple[str, ImageId], int] = {}
    waiting, taken = [], set()
    for split, dataset in datasets.items():
        for record in dataset.records:
            number = ids.whole(record.image_id)
            if number is None or not 0 <= number < 2**31 or number in taken:
                waiting.append((split, record.image_id))
                continue
            taken.add(number)
            found[split, record.image_id] = number
    fresh = (n for n in itertools.count(1) if n not in taken)
    found |= {key: next(fresh) for key in waiting}
    job.counts["ids of images that became others"] += len(waiting)
    return found


def refuse_names(job: Job, categories: Categories) -> None:
    """Raise `DataError` for class names that XML cannot hold."""
    for name in categories.titles:
        if not name.isprintable():
            raise DataError(f"{job.to} cannot hold the class name {name!r}; rename it, or write coco, yolo or labelme")


def refuse_tags(job: Job, datasets: Splits) -> None:
    """Raise `DataError` for image tags, which no target format can hold."""
    for dataset in datasets.values():
        if any(isinstance(r.semantic, ImageTags) for r in dataset.records):
            raise DataError(
                f"{dataset.source}: has image tags, without boxes or masks; {job.to} cannot hold them. Train on them "
                "as they are, or make masks first: maskkit pseudo-masks"
            )


def mapped(datasets: Splits) -> bool:
    """Whether there are label maps without objects: their classes have no instances."""
    records = [r for d in datasets.values() for r in d.records]
    return any(isinstance(r.semantic, LabelFile) for r in records) and not any(r.annotations for r in records)


def as_stuff(datasets: Splits) -> Splits:
    """The data sets with all classes marked as stuff."""
    kinds = {split: replace(d.categories, things=(False,) * len(d.categories)) for split, d in datasets.items()}
    return {split: replace(d, categories=kinds[split]) for split, d in datasets.items()}


def without_background(datasets: Splits) -> Splits:
    """The data sets without a class called background, which formats of objects do not have.

    Nothing changes if objects have that class.
    """
    first = next(iter(datasets.values())).categories
    if BACKGROUND_NAME not in first.names:
        return datasets
    ground = first.names.index(BACKGROUND_NAME)
    if any(a.label == ground for d in datasets.values() for r in d.records for a in r.annotations):
        return datasets
    kept = [n for n in range(len(first)) if n != ground]
    numbers = {n: i for i, n in enumerate(kept)} | {ground: BACKGROUND, BACKGROUND: BACKGROUND}
    return {
        split: replace(d, records=[r.renumber(numbers) for r in d.records], categories=first.subset(kept))
        for split, d in datasets.items()
    }


class LabelMap(NamedTuple):
    """The label map of an image."""

    labels: UInt8[np.ndarray, "h w"]
    """Class numbers; K, the number of classes, is the background, `IGNORE` unknown."""
    classes: int

    def of(self, label: int) -> Bool[np.ndarray, "h w"]:
        """The pixels of one class."""
        return self.labels == label

    @property
    def present(self) -> list[int]:
        """Classes with at least one pixel."""
        return [n for n in np.unique(self.labels).tolist() if n < self.classes]

    @property
    def unknown(self) -> bool:
        """Whether the class of a pixel is unknown."""
        return bool((self.labels == IGNORE).any())

    @property
    def background(self) -> bool:
        """Whether a pixel has none of the classes."""
        return bool((self.labels == self.classes).any())


def label_map(record: Record, categories: Categories) -> LabelMap | None:
    """The label map of the file; None when there is none. Raises `DataError` when it cannot be read."""
    if not isinstance(record.semantic, LabelFile):
        return None
    count = len(categories)
    if count > MOST:
        raise DataError(f"{record.path}: label maps have at most {MOST} classes, not {count}; join some")
    numbers: Mapping[int, int] = {n: n for n in range(count)} | {BACKGROUND: count}
    return LabelMap(record.semantic.renumber(numbers).read(record.size), count)


def with_regions(job: Job, record: Record, categories: Categories, found: LabelMap | None) -> Record:
    """The record with the region of each class of its label map as an object, if it has no objects; all is counted."""
    stuff = sum(not categories.things[a.label] for a in record.annotations)
    if found is not None:
        if not record.annotations:
            masks = [mask_math.encode(found.of(n)[None])[0] for n in found.present]
            pairs = zip(found.present, masks, strict=True)
            record = replace(record, annotations=[Annotation(0, n, None, mask) for n, mask in pairs])
            job.counts["regions of label maps as objects"] += len(masks)
            stuff = 0
        else:
            job.counts["regions of label maps left out"] += len(_without_object(record, found))
        job.counts["images whose unknown pixels became background"] += found.unknown
    job.counts["regions of stuff as objects"] += stuff
    return record


def labelled(job: Job, split: str, dataset: Dataset, make: Callable[[Record], T]) -> Iterator[tuple[Record, T]]:
    """Each record that can be written, its label map as objects (`with_regions`), and what ``make`` makes of it.

    An image for which that raises `DataError` is left out and counted.
    """
    for record in job.records(split, dataset):
        try:
            found = with_regions(job, record, dataset.categories, label_map(record, dataset.categories))
            made = make(found)
        except DataError as error:
            job.fail(record, error)
            continue
        yield found, made


def _without_object(record: Record, found: LabelMap) -> set[int]:
    """Classes of the label map with a pixel that no mask of an object of the class covers."""
    if any(isinstance(a.segmentation, Segment) for a in record.annotations):
        return set()  # the objects are the label map
    left = found.labels.copy()
    for annotation in record.annotations:
        if (rle := annotation.rle(record.size)) is not None:
            region, top, first = mask_math.decode_region(rle)
            window = left[top : top + region.shape[0], first : first + region.shape[1]]
            window[region & (window == annotation.label)] = IGNORE
    return {n for n in np.unique(left).tolist() if n < found.classes}


def pixels_of(job: Job, annotation: Annotation, size: tuple[int, int]) -> Rle | None:
    """The mask as run lengths; None for an empty mask, which is counted."""
    rle = annotation.rle(size)
    assert rle is not None, "an object without a known mask has no pixels"
    if mask_math.area([rle])[0]:
        return rle
    job.counts["objects without a pixel left out"] += 1
    return None


class Layers(NamedTuple):
    """The objects of an image in one layer, so that every pixel belongs to at most one."""

    numbers: np.ndarray
    """(H, W) int64: 0, or 1 + the index of the object in the annotations."""
    visible: list[int]
    """Indices of the objects with at least one visible pixel."""


def layers(job: Job, record: Record) -> Layers:
    """Objects with a known mask, painted in the order crowds, large, small; objects that others cover are counted."""
    objects = record.annotations
    rles = [(i, rle) for i, a in enumerate(objects) if (rle := a.rle(record.size)) is not None]
    areas = dict(zip([i for i, _ in rles], mask_math.area([r for _, r in rles]).tolist() if rles else [], strict=True))
    numbers = np.zeros(record.size, np.int64)
    for i, rle in sorted(rles, key=lambda pair: (not objects[pair[0]].crowd, -areas[pair[0]])):
        region, top, left = mask_math.decode_region(rle)
        numbers[top : top + region.shape[0], left : left + region.shape[1]][region] = i + 1
    seen = np.bincount(numbers.ravel(), minlength=len(objects) + 1)[1:].tolist()
    visible = [i for i, _ in rles if seen[i]]
    job.counts["objects left out, hidden by others"] += len(rles) - len(visible)
    job.counts["objects that others cover in part"] += sum(seen[i] < areas[i] for i in visible)
    return Layers(numbers, visible)
