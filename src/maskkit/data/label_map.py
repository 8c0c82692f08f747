"""Sources of label maps: an image of labels, or image tags, which give the classes but no pixels.

A label map is ``(H, W)`` uint8 of class numbers; `IGNORE` (255) marks pixels whose class is unknown.
`maskkit.data.painted` makes label maps of the masks of objects.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from scipy import ndimage

from maskkit.data.images import formats
from maskkit.errors import DataError
from maskkit.files import require_file
from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle

LabelArray = UInt8[np.ndarray, "h w"]

IGNORE = 255
"""The class number of pixels whose class is unknown; losses and metrics skip them."""
BACKGROUND = -1
"""The number of "no class of this list" until `Dataset.as_semantic` makes background a class."""
BACKGROUND_NAME = "background"
"""The name of that class."""


class LabelSource(Protocol):
    """Gives the label map of one image."""

    @property
    def has_background(self) -> bool:
        """Whether a pixel may have no class."""
        ...

    @property
    def classes(self) -> Set[int]:
        """Class numbers that may occur."""
        ...

    @property
    def known(self) -> bool:
        """Whether the class of any pixel is known, apart from the background."""
        ...

    def present(self, size: tuple[int, int]) -> Set[int]:
        """Class numbers that occur in the image of ``size`` (H, W). Raises `DataError`."""
        ...

    def renumber(self, numbers: Mapping[int, int]) -> "LabelSource":
        """The same source with other class numbers; classes that are not in ``numbers`` are ignored."""
        ...

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W). Raises `DataError`."""
        ...


@dataclass(frozen=True)
class LabelFile:
    """An image whose values are labels: palette or grey indices, or the RGB numbers of COCO's panoptic format."""

    path: Path
    numbers: Mapping[int, int]
    """Class number, `BACKGROUND` or `IGNORE` for every value that may occur."""

    @property
    def has_background(self) -> bool:
        """Whether a pixel may have no class."""
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
        """Class numbers that occur in the image of ``size`` (H, W). Raises `DataError`."""
        seen = np.unique(read_values(self.path, size)).tolist()
        return {self.numbers.get(value, IGNORE) for value in seen} - {BACKGROUND, IGNORE}

    def renumber(self, numbers: Mapping[int, int]) -> "LabelFile":
        """The same image with other class numbers; classes that are not in ``numbers`` are ignored."""
        return replace(self, numbers={v: n if n == IGNORE else numbers.get(n, IGNORE) for v, n in self.numbers.items()})

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W). Raises `DataError` for another size and an unknown value."""
        values = read_values(self.path, size)
        seen, where = np.unique(values, return_inverse=True)
        unknown = [v for v in seen.tolist() if v not in self.numbers]
        if unknown:
            raise DataError(
                f"{self.path}: the value {unknown[0]} is no class ({len(self.numbers)} values are known); correct the "
                f"pixels, or write {IGNORE} where the class is unknown"
            )
        return np.array([self.numbers[v] for v in seen.tolist()], np.uint8)[where.reshape(values.shape)]


@dataclass(frozen=True)
class ImageTags:
    """The classes of an image without their pixels: every pixel of the label map is `IGNORE`."""

    classes: frozenset[int]
    """Class numbers that occur."""
    background: int = BACKGROUND
    known = False

    @property
    def has_background(self) -> bool:
        """Whether a pixel may have no class."""
        return self.background == BACKGROUND

    def present(self, size: tuple[int, int]) -> frozenset[int]:
        """Class numbers that occur."""
        return self.classes

    def renumber(self, numbers: Mapping[int, int]) -> "ImageTags":
        """The same tags with other class numbers; classes that are not in ``numbers`` are left out."""
        classes = frozenset(numbers[c] for c in self.classes if c in numbers)
        return ImageTags(classes, numbers.get(self.background, IGNORE))

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W)."""
        return np.full(size, IGNORE, np.uint8)


@dataclass(frozen=True)
class IdImage:
    """An image whose values are segment ids, as in COCO's panoptic format; 0 is no segment."""

    path: Path
    ids: frozenset[int]
    """The ids that occur, without 0."""

    def rles(self, size: tuple[int, int]) -> dict[int, Rle]:
        """Run-length records of the segments by id, in an image of ``size`` (H, W).

        Raises `DataError` when the file cannot be read, or when its ids differ from `ids`.
        """
        try:
            written = self.path.stat().st_mtime_ns
        except OSError:
            written = 0  # reading it reports the error
        return _segments(self, size, written)


@lru_cache(maxsize=8)  # callers read the segments of one image in a row
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

    Raises `DataError` when the file cannot be read, has another size, or has a mode that cannot hold labels.
    """
    try:
        require_file(path)
        with Image.open(path, formats=formats()) as image:
            mode, values = image.mode, np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # decoders raise many kinds on bad bytes
        raise DataError(f"{path}: cannot be read ({error}); restore the label image") from error
    if values.shape[:2] != size:
        raise DataError(f"{path}: is {values.shape[1]} x {values.shape[0]} pixels, the image {size[1]} x {size[0]}")
    if mode in ("P", "L"):
        return values
    if mode == "RGB":
        return values.astype(np.int64) @ np.array([1, 256, 65536])
    raise DataError(f"{path}: has mode {mode}; save labels with a palette, as 8-bit grey, or as RGB ids")
