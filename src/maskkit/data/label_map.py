"""Where the class of every pixel of an image is known from: an image of labels, the masks of the objects, or nothing.

A label map is ``(H, W)`` uint8 of class numbers; `IGNORE` (255) marks pixels about which nothing is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from scipy import ndimage

from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle

if TYPE_CHECKING:
    from maskkit.data.dataset import Annotation

LabelArray = UInt8[np.ndarray, "h w"]

IGNORE = 255
"""The class number of pixels about which nothing is known; no loss and no metric sees them."""
BACKGROUND = -1
"""What stands for "no class of this list" until `Dataset.as_semantic` makes it a class of its own."""
BACKGROUND_NAME = "background"
"""The name of that class."""


@dataclass(frozen=True)
class LabelFile:
    """An image whose values are labels: palette or grey indices, or the RGB numbers of COCO's panoptic format."""

    path: Path
    numbers: Mapping[int, int]
    """Class number, `BACKGROUND` or `IGNORE` of every value that may occur."""

    @property
    def has_background(self) -> bool:
        """Whether a pixel may be of no class."""
        return BACKGROUND in self.numbers.values()

    @property
    def classes(self) -> set[int]:
        """Class numbers that may occur."""
        return set(self.numbers.values()) - {BACKGROUND, IGNORE}

    @property
    def known(self) -> bool:
        """Whether the class of any pixel is known."""
        return bool(self.classes)

    def present(self, size: tuple[int, int]) -> set[int]:
        """Class numbers that do occur in the image of ``size`` (H, W). Raises `DataError`."""
        seen = np.unique(read_values(self.path, size)).tolist()
        return {self.numbers.get(value, IGNORE) for value in seen} - {BACKGROUND, IGNORE}

    def renumber(self, numbers: Mapping[int, int]) -> "LabelFile":
        """The same image under other class numbers; classes that ``numbers`` does not name are ignored."""
        return replace(self, numbers={v: n if n == IGNORE else numbers.get(n, IGNORE) for v, n in self.numbers.items()})

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W). Raises `DataError` for another size and an unknown value."""
        values = read_values(self.path, size)
        seen, where = np.unique(values, return_inverse=True)
        unknown = [v for v in seen.tolist() if v not in self.numbers]
        if unknown:
            raise DataError(
                f"{self.path}: the value {unknown[0]} is no class ({len(self.numbers)} values are known); correct the "
                f"pixels, or write {IGNORE} where nothing is known"
            )
        return np.array([self.numbers[v] for v in seen.tolist()], np.uint8)[where.reshape(values.shape)]


@dataclass(frozen=True)
class PaintedObjects:
    """The masks of objects, painted large to small so that the smaller one wins, on a background class.

    Crowds, and the boxes of objects whose mask is not known, become `IGNORE` where no object covers them.
    """

    objects: Sequence["Annotation"]
    background: int

    @property
    def has_background(self) -> bool:
        """Whether a pixel may be of no class."""
        return self.background == BACKGROUND

    @property
    def classes(self) -> set[int]:
        """Class numbers that may occur."""
        return ({o.label for o in self.objects} | {self.background}) - {BACKGROUND, IGNORE}

    @property
    def known(self) -> bool:
        """Whether the class of any pixel is known but that of the background."""
        return any(o.segmentation is not None for o in self.objects)

    def present(self, size: tuple[int, int]) -> set[int]:
        """Class numbers that do occur."""
        return self.classes

    def renumber(self, numbers: Mapping[int, int]) -> "PaintedObjects":
        """The same objects under other class numbers; classes that ``numbers`` does not name are ignored."""
        objects = [replace(o, label=numbers.get(o.label, IGNORE)) for o in self.objects]
        return PaintedObjects(objects, numbers.get(self.background, IGNORE))

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W)."""
        labels = np.full(size, self.background, np.uint8)
        rles = [o.rle(size) for o in self.objects]
        for box in (o.box for o, rle in zip(self.objects, rles, strict=True) if rle is None):
            if box is not None:
                x1, y1, x2, y2 = np.maximum(box, 0)
                labels[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = IGNORE
        known = [(o, rle) for o, rle in zip(self.objects, rles, strict=True) if rle is not None]
        areas = mask_math.area([rle for _, rle in known])
        for i in sorted(range(len(known)), key=lambda i: (not known[i][0].crowd, -areas[i])):
            o, rle = known[i]
            labels[mask_math.decode([rle], size)[0]] = IGNORE if o.crowd else o.label
        return labels


@dataclass(frozen=True)
class ImageTags:
    """Which classes an image shows, and nothing about where: its label map is `IGNORE` throughout."""

    classes: frozenset[int]
    """Class numbers that occur."""
    background: int = BACKGROUND
    known = False

    @property
    def has_background(self) -> bool:
        """Whether a pixel may be of no class."""
        return self.background == BACKGROUND

    def present(self, size: tuple[int, int]) -> frozenset[int]:
        """Class numbers that do occur."""
        return self.classes

    def renumber(self, numbers: Mapping[int, int]) -> "ImageTags":
        """The same tags under other class numbers; classes that ``numbers`` does not name are left out."""
        classes = frozenset(numbers[c] for c in self.classes if c in numbers)
        return ImageTags(classes, numbers.get(self.background, IGNORE))

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W)."""
        return np.full(size, IGNORE, np.uint8)


LabelSource = LabelFile | PaintedObjects | ImageTags


@dataclass(frozen=True)
class IdImage:
    """An image whose values are the ids of segments, as in COCO's panoptic format; 0 is nothing."""

    path: Path
    ids: frozenset[int]
    """Those that occur, without 0."""

    def rles(self, size: tuple[int, int]) -> dict[int, Rle]:
        """Run-length records of the segments by their ids, in an image of ``size`` (H, W).

        Raises `DataError` when the file cannot be read, or has not just the segments that it should.
        """
        try:
            written = self.path.stat().st_mtime_ns
        except OSError:
            written = 0  # reading it will tell
        return _segments(self, size, written)


@lru_cache(maxsize=8)  # the segments of an image are asked for one after the other
def _segments(image: IdImage, size: tuple[int, int], written: int) -> dict[int, Rle]:
    pixels = read_values(image.path, size)
    values = np.unique(pixels)
    there = set(values.tolist()) - {0}
    if there != image.ids:
        wrong = min(there ^ image.ids)
        what = "has no segment in the json" if wrong in there else "is a segment of the json without a pixel"
        raise DataError(f"{image.path}: the id {wrong} {what}; write both again from one source")
    numbers = np.searchsorted(values, pixels) + 1  # return_inverse would sort all pixels along
    return {
        value: mask_math.encode_region(numbers[place] == n, place[0].start, place[1].start, size)
        for n, (value, place) in enumerate(zip(values.tolist(), ndimage.find_objects(numbers), strict=True), 1)
        if value != 0
    }


def read_values(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"] | Int[np.ndarray, "h w"]:
    """The values of a label image of ``size`` (H, W): indices as bytes, RGB as ``R + 256 G + 65536 B``.

    Raises `DataError` when the file cannot be read, is of another size, or of a kind that holds no labels.
    """
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # decoders raise many kinds on bad bytes
        raise DataError(f"{path}: cannot be read ({error}); the labels need it") from error
    if values.shape[:2] != size:
        raise DataError(f"{path}: is {values.shape[1]} x {values.shape[0]} pixels, the image {size[1]} x {size[0]}")
    if mode in ("P", "L"):
        return values
    if mode == "RGB":
        return values.astype(np.int64) @ np.array([1, 256, 65536])
    raise DataError(f"{path}: is of mode {mode}; save labels with a palette, as 8-bit grey, or as RGB ids")
