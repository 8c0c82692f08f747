"""Label maps made of the masks of objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskkit.data.label_map import BACKGROUND, IGNORE, LabelArray
from maskkit.data.records import Annotation
from maskkit.geometry import rle as rle_codec


@dataclass(frozen=True)
class PaintedObjects:
    """The masks of objects painted on a background class, large ones first, so that small objects stay visible.

    Crowds, and the boxes of objects without a known mask, are `IGNORE` where no object covers them.
    """

    objects: Sequence[Annotation]
    background: int

    @property
    def has_background(self) -> bool:
        """Whether a pixel may have no class."""
        return self.background == BACKGROUND

    @property
    def classes(self) -> set[int]:
        """Class numbers that may occur."""
        return ({o.label for o in self.objects} | {self.background}) - {BACKGROUND, IGNORE}

    @property
    def known(self) -> bool:
        """Whether the mask of at least one object is known."""
        return any(o.segmentation is not None for o in self.objects)

    def present(self, size: tuple[int, int]) -> set[int]:
        """Class numbers that occur."""
        return self.classes

    def renumber(self, numbers: Mapping[int, int]) -> "PaintedObjects":
        """The same objects with other class numbers; classes that are not in ``numbers`` become `IGNORE`."""
        objects = [replace(o, label=numbers.get(o.label, IGNORE)) for o in self.objects]
        return PaintedObjects(objects, numbers.get(self.background, IGNORE))

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W); without a class for the background that is `IGNORE`."""
        labels = np.full(size, IGNORE if self.background == BACKGROUND else self.background, np.uint8)
        rles = [o.rle(size) for o in self.objects]
        for box in (o.box for o, rle in zip(self.objects, rles, strict=True) if rle is None):
            if box is not None:
                x1, y1, x2, y2 = np.maximum(box, 0)
                labels[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = IGNORE
        known = [(o, rle) for o, rle in zip(self.objects, rles, strict=True) if rle is not None]
        areas = rle_codec.area([rle for _, rle in known]).tolist()
        for i in sorted(range(len(known)), key=lambda i: (not known[i][0].crowd, -areas[i])):
            painted, rle = known[i]
            region, top, left = rle_codec.decode_region(rle)
            canvas = labels[top : top + region.shape[0], left : left + region.shape[1]]
            np.copyto(canvas, IGNORE if painted.crowd else painted.label, where=region)
        return labels

    def counts(self, size: tuple[int, int]) -> dict[int, int]:
        """Pixels of each class number, and of `IGNORE`."""
        often = np.bincount(self.read(size).reshape(-1), minlength=256)
        return {int(n): int(often[n]) for n in np.flatnonzero(often)}
