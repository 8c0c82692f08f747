"""Sources of label maps: an image of labels, or image tags, which give the classes but no pixels.

A label map is ``(H, W)`` uint8 of class numbers; `IGNORE` (255) marks pixels whose class is unknown.
`maskkit.data.painted` makes label maps of the masks of objects.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

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
FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""Formats of label images. JPEG and the like change the values."""


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

    def counts(self, size: tuple[int, int]) -> Mapping[int, int]:
        """Pixels of each class number that occurs, of `BACKGROUND` and of `IGNORE`. Raises `DataError`."""
        ...


@dataclass(frozen=True)
class LabelFile:
    """An image whose values are labels: palette or grey indices, or the RGB numbers of COCO's panoptic format."""

    path: Path
    numbers: Mapping[int, int]
    """Class number, `BACKGROUND` or `IGNORE` for every value that may occur."""
    colours: Mapping[int, int] | None = None
    """The same for colours, as `colour_number` has them: for an image of colours, and without ``numbers`` for any."""

    @property
    def has_background(self) -> bool:
        """Whether a pixel may have no class."""
        return BACKGROUND in self._every

    @property
    def classes(self) -> set[int]:
        """Class numbers that may occur."""
        return self._every - {BACKGROUND, IGNORE}

    @property
    def known(self) -> bool:
        """Whether the class of any pixel is known."""
        return bool(self.classes)

    @property
    def _every(self) -> set[int]:
        return set(self.numbers.values()) | set((self.colours or {}).values())

    def present(self, size: tuple[int, int]) -> set[int]:
        """Class numbers that occur in the image of ``size`` (H, W). Raises `DataError`."""
        return {n for n in self.counts(size) if n not in (BACKGROUND, IGNORE)}

    def renumber(self, numbers: Mapping[int, int]) -> "LabelFile":
        """The same image with other class numbers; classes that are not in ``numbers`` are ignored."""

        def renumbered(table: Mapping[int, int]) -> dict[int, int]:
            return {value: n if n == IGNORE else numbers.get(n, IGNORE) for value, n in table.items()}

        colours = renumbered(self.colours) if self.colours is not None else None
        return replace(self, numbers=renumbered(self.numbers), colours=colours)

    def read(self, size: tuple[int, int]) -> LabelArray:
        """The label map of an image of ``size`` (H, W); pixels without a class of this list are `IGNORE`.

        Raises `DataError` for another size and an unknown value.
        """
        values, seen = self._values(size)
        numbers = [IGNORE if n == BACKGROUND else n for n, _ in seen.values()]
        if values.dtype == np.uint8:
            table = np.full(256, IGNORE, np.uint8)
            table[list(seen)] = numbers
            return table[values]
        return np.array(numbers, np.uint8)[np.searchsorted(list(seen), values)]

    def counts(self, size: tuple[int, int]) -> dict[int, int]:
        """Pixels of each class number that occurs, of `BACKGROUND` and of `IGNORE`. Raises `DataError` as `read`."""
        found: dict[int, int] = {}
        for number, pixels in self._values(size)[1].values():
            found[number] = found.get(number, 0) + pixels
        return found

    def _values(self, size: tuple[int, int]) -> tuple[Int[np.ndarray, "h w"], dict[int, tuple[int, int]]]:
        """The values, and for each of them, ascending, its class number and how many pixels have it."""
        values, coloured = read_labels(self.path, size, self.colours is not None, not self.numbers)
        table = self.colours if coloured and self.colours is not None else self.numbers
        if values.dtype == np.uint8:
            often = np.bincount(values.reshape(-1), minlength=256)
            seen = {int(v): int(often[v]) for v in np.flatnonzero(often)}
        else:
            unique, often = np.unique(values, return_counts=True)
            seen = dict(zip(unique.tolist(), often.tolist(), strict=True))
        if unknown := [value for value in seen if value not in table]:
            value = unknown[0]
            raise DataError(
                f"{self.path}: the {f'colour {colour_of(value)}' if coloured else f'value {value}'} is no class ("
                f"{len(table)} are known; {seen[value] / values.size:.1%} of the pixels have it); name it in the list "
                f"of classes, correct the pixels, or write {'the colour' if coloured else IGNORE} of unknown pixels"
            )
        return values, {value: (table[value], pixels) for value, pixels in seen.items()}


def colour_number(red: int, green: int, blue: int) -> int:
    """The value that stands for a colour."""
    return red + 256 * green + 65536 * blue


def colour_of(value: int) -> tuple[int, int, int]:
    """Red, green and blue of such a value."""
    return value % 256, value // 256 % 256, value // 65536


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

    def counts(self, size: tuple[int, int]) -> dict[int, int]:
        """All pixels are `IGNORE`."""
        return {IGNORE: size[0] * size[1]}


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


def read_values(path: Path, size: tuple[int, int] | None) -> Int[np.ndarray, "h w"]:
    """The values of a label image of ``size`` (H, W; None allows any): indices as bytes, 16 bits and RGB as int64.

    RGB is ``R + 256 G + 65536 B``. Raises `DataError` when the file cannot be read, has another size, or has a mode
    that cannot hold labels.
    """
    return read_labels(path, size)[0]


def read_labels(
    path: Path, size: tuple[int, int] | None, opaque: bool = False, coloured: bool = False
) -> tuple[Int[np.ndarray, "h w"], bool]:
    """The values of `read_values`, and whether they are colours.

    ``opaque`` reads RGBA too, without its transparency; ``coloured`` reads the colours of an image of any mode.
    """
    try:
        require_file(path, "label image")
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:  # not by name, as in data.images
            if any(re.search(r"\bL;[24]", str(tile[3])) for tile in image.tile):
                # whoever writes so means the values, but readers stretch them to 255
                raise DataError(f"{path}: is grey with 2 or 4 bits, whose values are ambiguous; save it with 8 bits")
            if size is None or sorted(image.size) == sorted(size):
                ImageOps.exif_transpose(image, in_place=True)
            if size is not None and image.size != size[::-1]:
                wide, high = image.size
                raise DataError(f"{path}: is {wide} x {high} pixels, the image {size[1]} x {size[0]}")
            mode = image.mode
            coloured = coloured or mode == "RGB" or (opaque and mode == "RGBA")
            values = np.asarray(image.convert("RGB") if coloured else image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: cannot be read as {', '.join(FORMATS)}; save label images as PNG") from None
    except Exception as error:  # decoders raise many kinds on bad bytes
        raise DataError(f"{path}: cannot be read ({error}); restore the label image") from error
    if coloured:
        return values.astype(np.int64) @ np.array([1, 256, 65536]), True
    if mode in ("P", "L", "1"):
        return values.astype(np.uint8, copy=False), False
    if mode.startswith("I"):
        return values.astype(np.int64), False
    raise DataError(f"{path}: has mode {mode}; save labels with a palette, as 8-bit grey, or as RGB ids")
