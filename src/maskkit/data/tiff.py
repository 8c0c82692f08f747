"""Large TIFF files part by part, with tifffile (the extra ``maskkit[tiff]``): only the tiles of a part are decoded.

A file without compression is mapped into memory. Read are images with 8 bits per channel, grey, RGB or RGBA, upright;
for any other, and for one that is a single strip, `open_tiff` has no answer, and Pillow reads it whole.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskkit.errors import DataError
from maskkit.geometry.resample import strips
from maskkit.geometry.windows import Rect

SUFFIXES = (".tif", ".tiff", ".svs", ".btf", ".tf8")
"""Suffixes of files that are opened, in lower case."""
_LARGEST = 1 << 28
"""Bytes of a tile or strip, decoded; one that takes more is read by Pillow, within its limit."""
_KEPT = 1 << 29
"""Bytes of decoded tiles that are kept at most: they are used again by the next part of the image."""
_GREY, _RGB, _YCBCR = 1, 2, 6
_NONE, _JPEG = 1, 7

Pixels = UInt8[np.ndarray, "h w 3"]

log = logging.getLogger(__name__)

said_of_pages: list[str] = []
"""The first file of several pages of this process, once `note_pages` has named it."""


def note_pages(path: Path | str, count: int) -> None:
    """Log that of ``count`` pages the first is read, once in a process: data sets have many such images."""
    if not said_of_pages:
        said_of_pages.append(str(path))
        log.warning("%s: has %d pages, of which the first is read; save each as an image", path, count)


class LargeTiff:
    """An open file. Threads may read at the same time."""

    def __init__(self, path: Path, file: Any, page: Any, rows: int) -> None:
        """``rows`` are those of a part: as many tiles are kept as a row of parts has. Raises `DataError` for a file
        whose header contradicts itself."""
        self.path, self._file, self._page = path, file, page
        self.size = (int(page.imagelength), int(page.imagewidth))
        """Height and width."""
        height, width = self.size
        self._tile = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
        self._across, self._down = math.ceil(width / self._tile[1]), math.ceil(height / self._tile[0])
        self._check()
        self._array: Any = None
        if page.is_memmappable and page.is_contiguous:
            shape = (height, width, page.samplesperpixel)
            if page.dataoffsets[0] + math.prod(shape) > path.stat().st_size:  # whatever the list of strips says
                raise DataError(f"{path}: ends before the last of its {width} x {height} pixels; restore the file")
            self._array = np.memmap(path, np.uint8, "r", page.dataoffsets[0], shape)
        band = (math.ceil(rows / self._tile[0]) + 1) * self._across
        self._most = max(1, min(band, _KEPT // self._bytes()))
        self._decoded: OrderedDict[int, Pixels] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, place: Rect) -> Pixels:
        """The pixels of a part that lies in the image. Raises `DataError` for a tile that cannot be decoded."""
        if self._array is not None:
            return _rgb(np.asarray(self._array[place.top : place.bottom, place.left : place.right]))
        out = np.empty((*place.size, 3), np.uint8)
        high, wide = self._tile
        for i in range(place.top // high, math.ceil(place.bottom / high)):
            for j in range(place.left // wide, math.ceil(place.right / wide)):
                here = Rect(i * high, j * wide, (i + 1) * high, (j + 1) * wide).meet(place)
                tile = self._segment(i * self._across + j)
                rows = slice(here.top - i * high, here.bottom - i * high)
                columns = slice(here.left - j * wide, here.right - j * wide)
                target = out[here.top - place.top : here.bottom - place.top]
                target[:, here.left - place.left : here.right - place.left] = tile[rows, columns]
        return out

    def reduced(self, factor: int) -> Pixels:
        """The image at a fraction of its size, as `PIL.Image.Image.reduce` gives it."""
        height, width = self.size
        out = np.empty((math.ceil(height / factor), math.ceil(width / factor), 3), np.uint8)
        for rows in strips(factor * width, len(out)):
            part = self[Rect(factor * rows.start, 0, min(factor * rows.stop, height), width)]
            out[rows] = np.asarray(Image.fromarray(part).reduce(factor))
        return out

    def _bytes(self) -> int:
        return self._tile[0] * self._tile[1] * 3

    def _check(self) -> None:
        """Raise `DataError` where the list of tiles cannot be that of this image, or leads out of the file."""
        page, (high, wide), (height, width) = self._page, self._tile, self.size
        noun = "tiles" if page.is_tiled else "strips"
        count = self._across * self._down
        if len(page.dataoffsets) != count or len(page.databytecounts) != count:
            raise DataError(
                f"{self.path}: lists {len(page.dataoffsets)} {noun}, and its {width} x {height} pixels take {count}; "
                "write the file again"
            )
        length = self.path.stat().st_size
        most = 2 * high * wide * page.samplesperpixel + 65536  # no compression makes a tile larger than that
        for number, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True), 1):
            if offset + size > length:
                raise DataError(
                    f"{self.path}: number {number} of {count} {noun} lies beyond the end of the file; restore the file"
                )
            if size > most or (offset and not size):  # without an offset the tile is left out by intention
                raise DataError(
                    f"{self.path}: number {number} of {count} {noun} has {size} bytes for {wide} x {high} pixels; "
                    "write the file again"
                )

    def _segment(self, number: int) -> Pixels:
        with self._lock:
            found = self._decoded.pop(number, None)
            if found is None:
                found = self._decode(number)
            self._decoded[number] = found  # the last one that was used
            while len(self._decoded) > self._most:
                self._decoded.popitem(last=False)
            return found

    def _decode(self, number: int) -> Pixels:
        page, (high, wide) = self._page, self._tile
        rows = high if page.is_tiled else min(high, self.size[0] - number * high)
        offset, size = page.dataoffsets[number], page.databytecounts[number]
        if size == 0:  # left out by intention: there is nothing
            return np.zeros((rows, wide, 3), np.uint8)
        try:
            self._file.seek(offset)
            data = self._file.read(size)
            if page.compression == _JPEG:
                return _jpeg(data, page, (rows, wide))
            found, _, _ = page.decode(data, number)
            return _rgb(np.asarray(found).reshape(rows, wide, page.samplesperpixel))
        except Exception as error:  # codecs raise errors of every kind for bytes that are not theirs
            hint = "pip install imagecodecs" if "imagecodecs" in str(error) else "restore the file, or write it again"
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path}: number {number + 1} of {self._across * self._down} tiles cannot be decoded ({reason}); "
                f"{hint}"
            ) from None


@contextmanager
def open_tiff(path: Path, rows: int, least: int) -> Iterator[LargeTiff | None]:
    """The file, for parts of ``rows`` rows; None for what `LargeTiff` does not read, and for at most ``least`` pixels.

    None too where tifffile is not installed. Raises `DataError` for a file whose header contradicts itself.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        yield None
        return
    try:
        import tifffile
    except ImportError:
        yield None
        return
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs is said in one line here, or by Pillow
    try:
        file = tifffile.TiffFile(path)
        page: Any = file.pages[0]
        is_read = _is_read(page) and page.imagelength * page.imagewidth > least
    except Exception:  # no TIFF file: Pillow says what it is
        yield None
        return
    with file:
        if is_read and not said_of_pages and len(alike := _pages_like(file, page)) > 1:
            note_pages(path, len(alike))
        yield LargeTiff(path, file.filehandle, page, rows) if is_read else None


def _pages_like(file: Any, first: Any) -> list[Any]:
    """The pages of a stack: those of the size of the first one, which are no smaller copies of it."""
    try:
        return [page for page in file.pages if page.shape[:2] == first.shape[:2]]
    except Exception:  # a page that is not read may be damaged
        return [first]


def _is_read(page: Any) -> bool:
    samples, kind = page.samplesperpixel, int(page.photometric)
    if page.dtype != np.uint8 or page.bitspersample != 8 or (samples > 1 and page.planarconfig != 1):
        return False
    if page.imagedepth != 1 or page.tags.valueof(274, 1) != 1 or page.fillorder != 1:
        return False
    if (kind, samples) not in {(_GREY, 1), (_RGB, 3), (_RGB, 4), (_YCBCR, 3)} or (kind == _YCBCR) > (
        page.compression == _JPEG
    ):
        return False
    high, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    high = min(high, page.imagelength) if not page.is_tiled else high
    return high > 0 and wide > 0 and (high * wide * 3 <= _LARGEST or bool(page.is_memmappable))


def _jpeg(data: bytes, page: Any, size: tuple[int, int]) -> Pixels:
    """A tile that is a JPEG file whose tables may be in the header of the page; Pillow decodes it."""
    if page.jpegtables:
        data = page.jpegtables[:-2] + data[2:]  # without the mark of the end, and without that of the beginning
    if int(page.photometric) == _RGB:  # JPEG files are YCbCr unless Adobe's mark says otherwise
        data = data[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[2:]
    with Image.open(BytesIO(data), formats=["JPEG"]) as image:
        if (image.height, image.width) != size:
            raise ValueError(f"it has {image.width} x {image.height} pixels, not {size[1]} x {size[0]}")
        return np.asarray(image.convert("RGB"))


def _rgb(pixels: UInt8[np.ndarray, "h w c"]) -> Pixels:
    """Grey three times, RGB without transparency."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., :3])
