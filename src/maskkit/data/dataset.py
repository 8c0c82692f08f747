"""`Dataset`: the images of a data set with their objects, whatever their format. torch is imported to train only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from maskkit.data import ids, saliency
from maskkit.data.images import read_pixels
from maskkit.data.label_map import BACKGROUND, BACKGROUND_NAME, IGNORE
from maskkit.data.painted import PaintedObjects
from maskkit.data.records import UNKNOWN_SIZE, Annotation, Record, Supervision, coco_row, number
from maskkit.data.rules import Problems, size_mismatch
from maskkit.errors import DataError
from maskkit.prediction import Categories, ImageMeta

if TYPE_CHECKING:
    from torch import Tensor

    from maskkit.targets import Target

ONE_CLASS = Categories.of(["object"])
"""The classes of class-agnostic methods."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their objects, read from ``source``, whose format is called ``format``."""

    records: list[Record]
    categories: Categories
    source: Path
    format: str
    problems: Problems = field(default_factory=Problems)

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int, supervision: Supervision = "masks") -> tuple[UInt8[Tensor, "3 h w"], Target, ImageMeta]:
        """Image, target and meta of one record.

        ``supervision`` limits the target: ``masks`` keeps everything in the file, ``boxes`` leaves out masks and label
        map, ``tags`` keeps only which classes occur. Raises `DataError` when the image cannot be read or does not have
        the size that the annotations were made for.
        """
        from maskkit.data.target import target_of, to_tensor

        pixels, meta = self.pixels(index)
        return to_tensor(pixels), target_of(self.records[index], supervision, len(self.categories)), meta

    def pixels(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], ImageMeta]:
        """RGB pixels and meta of one record. Raises `DataError` as `load` does."""
        record = self.records[index]
        pixels = self._read(record)
        if pixels.shape[:2] != record.size:
            raise DataError(f"{record.path}: {size_mismatch(record.size, (pixels.shape[0], pixels.shape[1]))}")
        return pixels, ImageMeta(record.image_id, str(record.path), record.size, record.size)

    def _read(self, record: Record) -> UInt8[np.ndarray, "h w 3"]:
        return read_pixels(record.path)

    def coco(self) -> dict[str, Any]:
        """COCO ground truth with the ids of the file; an object without a known mask has no ``segmentation``."""
        return self._coco([r.annotations for r in self.records], area=True)

    def truth(self) -> dict[str, Any]:
        """`coco` of the objects as the file has them, to measure with: nothing is cut, mended or left out for training.

        An image of unknown size has no ``height`` and ``width``.
        """
        return self._coco([r.annotations if r.truth is None else r.truth for r in self.records], area=False)

    def _coco(self, objects: Iterable[Sequence[Annotation]], area: bool) -> dict[str, Any]:
        pairs = zip(self.records, objects, strict=True)
        return {
            "images": self.coco_images(),
            "categories": self.categories.to_coco(),
            "annotations": [coco_row(r, a, self.categories, area) for r, found in pairs for a in found],
        }

    def coco_images(self) -> list[dict[str, Any]]:
        """COCO's image records."""
        folder = self.source if self.source.is_dir() else self.source.parent
        return [
            {
                "id": r.image_id,
                "file_name": (r.path.relative_to(folder) if r.path.is_relative_to(folder) else r.path).as_posix(),
            }
            | ({"height": r.size[0], "width": r.size[1]} if r.size != UNKNOWN_SIZE else {})
            for r in self.records
        ]

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """The records at ``indices``, in that order."""
        return replace(self, records=[self.records[int(i)] for i in indices])

    def split(self, share: float, seed: int) -> "tuple[Dataset, Dataset]":
        """Training and validation part: a random ``share`` of the images, drawn with ``seed``, is the second.

        With two or more images neither part is empty. Raises ``ValueError`` for a share that is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share of validation images must be between 0 and 1, got {share}")
        order = np.random.default_rng(seed).permutation(len(self))
        kept = min(max(round(share * len(self)), 1), len(self) - 1) if len(self) > 1 else 0
        return self.subset(sorted(order[kept:])), self.subset(sorted(order[:kept]))

    def with_categories(self, categories: Categories) -> "Dataset":
        """The same objects with the class numbers and ids of ``categories``, matched as in `Categories.numbers_in`.

        Raises `DataError` when an object has a class that ``categories`` lacks.
        """
        if categories == self.categories:
            return self
        renumber = self.categories.numbers_in(categories)
        used = {n for r in self.records for n in r.classes}
        if unknown := sorted(used - renumber.keys()):
            raise DataError(
                f"{self.source}: has objects of unknown classes: "
                f"{', '.join(sorted(self.categories.titles[n] for n in unknown))} "
                f"(known: {', '.join(categories.titles)}); rename or remove them"
            )
        return replace(self, records=[r.renumber(renumber) for r in self.records], categories=categories)

    def only(self, classes: Sequence[int]) -> "Dataset":
        """The data set with only the class numbers ``classes``, renumbered 0, 1, ...; other pixels become `IGNORE`."""
        number = {k: n for n, k in enumerate(classes)}
        records = [
            replace(r.with_labels(number), semantic=r.semantic.renumber(number) if r.semantic is not None else None)
            for r in self.records
        ]
        return replace(self, records=records, categories=self.categories.subset(classes))

    def with_saliency(self, folder: Path) -> "Dataset":
        """The same images with the saliency maps in ``folder``. Raises `DataError` when one is missing."""
        maps = saliency.find(folder, [r.path for r in self.records])
        return replace(self, records=[replace(r, saliency=m) for r, m in zip(self.records, maps, strict=True)])

    def as_one_class(self) -> "Dataset":
        """The data set for class-agnostic methods: every object has the one class called object."""
        one = dict.fromkeys(range(len(self.categories)), 0)
        records = [replace(r.with_labels(one), semantic=None) for r in self.records]
        return replace(self, records=records, categories=ONE_CLASS)

    def as_instances(self) -> "Dataset":
        """The data set for instance segmentation: things only, without stuff segments and their classes.

        Raises `DataError` when there are only label maps or tags, which do not separate objects.
        """
        if any(r.semantic is not None for r in self.records) and not any(
            r.annotations or r.truth for r in self.records
        ):
            raise DataError(
                f"{self.source}: has label maps or tags, which do not separate objects; take a semantic preset "
                "(maskkit models --task semantic), or add masks or boxes of objects"
            )
        if all(self.categories.things):
            return self
        things = self.only(np.flatnonzero(self.categories.things).tolist())
        return replace(things, records=[replace(r, semantic=None) for r in things.records])

    def as_panoptic(self) -> "Dataset":
        """The data set for panoptic segmentation: its annotations are the segments, other pixels are unknown.

        Raises `DataError` when there are only label maps, which do not separate objects.
        """
        if any(r.semantic is not None for r in self.records) and not any(r.annotations for r in self.records):
            raise DataError(
                f"{self.source}: has label maps without objects; panoptic data are a COCO panoptic json with its "
                "images of ids, or masks of objects"
            )
        return replace(self, records=[replace(r, semantic=None) for r in self.records])

    def as_semantic(self) -> "Dataset":
        """The data set for semantic segmentation: objects are painted into label maps.

        When pixels may have no class and there is no class called background, one is added with the number 0.

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
            raise DataError(f"{self.source}: has {len(categories)} classes; a label map holds at most {IGNORE - 1}")
        numbers = {BACKGROUND: background} | {n: n + shift for n in range(len(self.categories))}
        records = [
            replace(r, annotations=[], truth=None, semantic=s.renumber(numbers))
            for r, s in zip(self.records, sources, strict=True)
        ]
        return replace(self, records=records, categories=categories)


def join(parts: Sequence[Dataset], source: Path) -> Dataset:
    """All records of several data sets with the classes of the first; ids are renumbered when one occurs twice."""
    first = parts[0]
    records = [r for part in parts for r in part.with_categories(first.categories).records]
    if len({ids.key(r.image_id) for r in records}) < len(records):
        records = [replace(r, image_id=i) for i, r in enumerate(records, 1)]
    numbers = [a.id for r in records for a in r.annotations]
    if len(set(numbers)) < len(numbers):
        records = number(records)
    return Dataset(
        records, first.categories, source, first.format, Problems(p for part in parts for p in part.problems)
    )
