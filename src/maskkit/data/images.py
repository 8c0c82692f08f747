"""Images from disk: whatever their mode, eight bits of red, green and blue come out, upright.

Only the formats that are named here are opened: Pillow knows others, for some of which it starts another program.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from maskkit.data.files import walk
from maskkit.data.tiff import note_pages, open_tiff, said_of_pages
from maskkit.errors import DataError
from maskkit.files import require_file
from maskkit.geometry.resample import strips

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SUFFIXES = _words("""
    .jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .gif .tif .tiff .webp .avif .ppm .pgm .pbm .pnm .jp2 .j2k
    .jpx .jpf .j2c .jpc .tga .qoi .ico
""")
"""Suffixes of image files, in lower case. `read_image` goes by the content alone."""
_NOT_READ = _words("""
    .heic .heif .psd .svg .eps .ps .pdf .ai .wmf .emf .exr .hdr .dcm .nii .raw .dng .cr2 .cr3 .nef .arw .orf
    .rw2 .jxl .mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .flv .3gp
""")
"""Suffixes of images and videos that are not read: they are not passed over in silence."""
_OTHER = _words("""
    .txt .json .jsonl .xml .csv .tsv .yaml .yml .toml .ini .cfg .md .rst .html .htm .css .js .py .ipynb .sh .log
    .zip .tar .gz .tgz .bz2 .xz .7z .rar .npy .npz .mat .h5 .hdf5 .pkl .parquet .arrow .tfrecord .lmdb .db
    .sqlite .cache .pt .pth .onnx .safetensors .bin .xlsx .xls .doc .docx .ods .odt .pptx .wav .mp3 .tmp .part
    .crdownload .swp .bak .lock .names .data .url .lnk .ttf .otf .exe .dll .so .ply .pcd .obj .stl .las .geojson
    .shp .dbf .prj
""")
"""Suffixes of files that need not be opened to know that they are no images."""

_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height
_NAMES_SHOWN = 5


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read; the one without a signature is the last."""
    Image.init()
    named = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000", "QOI", "ICO", "TGA")
    return tuple(f for f in named if f in Image.OPEN)


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """The open image, header read; any error, also of decoding it later, is raised as a `DataError`."""
    path = source if isinstance(source, Path) else "the encoded image"
    try:
        if isinstance(source, Path):
            require_file(source, "image")
            if source.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty (0 bytes); restore it or remove it")
        with ExitStack() as stack:
            # not by its name: Pillow maps uncompressed files that it knows by name, and scrambles turned TIFFs by it
            file = stack.enter_context(open(source, "rb")) if isinstance(source, Path) else source
            image = stack.enter_context(Image.open(file, formats=formats()))
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                size = _millions(image.width * image.height)
                limit = f"images of up to {_limit()} are read, larger ones are refused"
                _log_once(_large, f"{path}: is large, {size} pixels; {limit}")
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:  # beyond 179 million pixels, by the header alone
        count = re.search(r"\d+", str(error))
        many = f"{_millions(int(count.group()))}, " if count else ""
        raise _TooManyPixels(
            f"{path}: too many pixels for one image ({many}at most {_limit()}: a small file could fill the memory); "
            "cut it into tiles, write it as a tiled TIFF (maskkit[tiff]), or allow it with --megapixels"
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, despite its name; replace it or remove it") from None
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        raise DataError(f"{path}: damaged or unreadable ({error}); restore the file or remove it") from error


def allow_megapixels(count: float) -> None:
    """Let images of up to so many million pixels be read, in this process. Pillow's own limit is 179 million."""
    Image.MAX_IMAGE_PIXELS = int(count * 1e6 / 2)  # it refuses those with twice as many


def read_image(path: str | Path) -> UInt8[Tensor, "3 h w"]:
    """The image of `read_pixels` as a tensor. Raises `DataError`."""
    import torch

    return torch.from_numpy(read_pixels(path).transpose(2, 0, 1).copy())  # (3, H, W)


def read_pixels(source: str | Path | BinaryIO) -> UInt8[np.ndarray, "h w 3"]:
    """The image, a file or one in memory, as RGB, turned as its EXIF orientation says.

    Grey, palette and CMYK images are converted, transparency is dropped, 16-bit values are divided by 257 (so that
    65535 becomes 255). 32-bit values are read as 8 bits where none is above 255, else as 16 bits. Values that leave
    the upper bits of their 16 empty, as 12-bit cameras do, are divided by 257 too, and that is logged. Raises
    `DataError` for a missing, empty, truncated or oversized file, for one that is not an image of `formats`, and for
    32-bit images with larger values, whose range is unknown.
    """
    source = Path(source) if isinstance(source, str) else source
    with opened(source) as image:
        return _pixels(image, source)


LARGE = 1 << 25
"""Images with more pixels are read by `read_reduced` at a half, a quarter or an eighth of their size."""


def read_reduced(
    source: str | Path | BinaryIO, reduction: Callable[[tuple[int, int]], int]
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """The pixels of `read_pixels`, and the (height, width) of the whole image.

    An image with more than `LARGE` pixels is read at the fraction of its size that ``reduction`` gives for its size: 1,
    2, 4 or 8 for the whole, a half, ... It is never in memory as a whole array, and a JPEG is not even decoded as one.
    A tiled TIFF beyond Pillow's limit is read tile by tile, at so small a size that the result is within the limit.
    """
    source = Path(source) if isinstance(source, str) else source
    try:
        with opened(source) as image:
            return _reduced(image, source, reduction)
    except _TooManyPixels:
        if not isinstance(source, Path):
            raise
        with open_tiff(source, 1, LARGE) as tiff:
            if tiff is None:
                raise
            height, width = tiff.size
            factor = reduction(tiff.size)
            while height * width > factor**2 * 2 * (Image.MAX_IMAGE_PIXELS or height * width):
                factor *= 2
            return tiff.reduced(factor), tiff.size


def _reduced(
    image: Image.Image, source: Path | BinaryIO, reduction: Callable[[tuple[int, int]], int]
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    if image.width * image.height <= LARGE:
        pixels = _pixels(image, source)
        return pixels, (pixels.shape[0], pixels.shape[1])
    if image.format in ("JPEG", "MPO"):
        size = _upright_size(image)
        factor = reduction(size)
        image.draft(image.mode, (image.width // factor, image.height // factor))
        return _pixels(image, source), size
    ImageOps.exif_transpose(image, in_place=True)
    size = (image.height, image.width)
    return _pixels(image, source, reduction(size)), size


def _pixels(image: Image.Image, source: Path | BinaryIO, factor: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    path = source if isinstance(source, Path) else "the encoded image"
    _note_pages(image, path)
    wide = image.format == "TIFF" and image.mode == "I"  # 32 bits; other formats have 16 in this mode
    inverse = image.format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        values = 65535 - values if inverse else values  # 0 is white, which Pillow sees to with 8 bits alone
        grey = Image.fromarray(_eight_bits(values, wide, path)).reduce(factor)
        return np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError(f"{path}: floating-point values; save it with 8 or 16 bits per channel")
    clear = image.mode == "P" and "transparency" in image.info
    image.load()
    pixels = np.empty((-(-image.height // factor), -(-image.width // factor), 3), np.uint8)
    for rows in strips(factor * image.width, len(pixels)):  # Pillow would hold a large image four times to convert it
        box = (0, factor * rows.start, image.width, min(factor * rows.stop, image.height))
        part = image.crop(box) if box[3] - box[1] < image.height else image
        if image.mode != "RGB":
            part = (part.convert("RGBA") if clear else part).convert("RGB")
        pixels[rows] = np.asarray(part.reduce(factor) if factor > 1 else part)  # each of these steps would copy
    return pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the image as `read_image` gives it, from the header alone. Raises `DataError`.

    Only a PNG with metadata behind its pixels, and an ICO, are decoded for it.
    """
    path = Path(path)
    with opened(path) as image:
        if image.format == "ICO" or (image.format == "PNG" and _metadata_behind_pixels(path)):
            width, height = ImageOps.exif_transpose(image).size
            return height, width
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(Height, width) of an image once it is turned, by its header."""
    if image.format == "TIFF":  # some versions of Pillow have turned `size` already
        width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
    else:
        width, height = image.size
    # the method of the base class: the one for PNG decodes the whole image to look for EXIF behind it
    turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _TURNED
    return (width, height) if turned else (height, width)


class _TooManyPixels(DataError):
    """An image beyond Pillow's limit."""


class Listing(NamedTuple):
    """The files of a folder that are images, and those that one would take for images, but are not read."""

    images: list[Path]
    left_out: list[Path]
    """Hidden images, videos, images of other formats, broken links, named pipes."""

    def note(self) -> str:
        """One line about what is left out, with the count and some names; empty when nothing is."""
        if not self.left_out:
            return ""
        shown = ", ".join(p.name for p in self.left_out[:_NAMES_SHOWN])
        more = ", ..." if len(self.left_out) > _NAMES_SHOWN else ""
        files = "1 file is" if len(self.left_out) == 1 else f"{len(self.left_out)} files are"
        return (
            f"{files} left out, because hidden or of no format that is read: {shown}{more}; "
            "convert or rename what belongs to the images"
        )


def list_images(folder: str | Path, recursive: bool = False) -> Listing:
    """The images of ``folder``, sorted by path: files with the suffix of an image, and those of no known suffix whose
    content is an image.

    ``recursive`` lists its folders too, also those behind links, each once. Raises `DataError` when ``folder`` cannot
    be listed.
    """
    root = Path(folder)
    found = Listing([], [])
    for path in walk(root, recursive):
        suffix = path.suffix.lower()
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            if suffix in SUFFIXES and not path.name.startswith("._") and _is_image(path):  # "._": made by macOS
                found.left_out.append(path)
        elif suffix in _NOT_READ or (suffix in SUFFIXES and not os.path.isfile(path)):
            found.left_out.append(path)
        elif suffix in SUFFIXES or (suffix not in _OTHER and _is_image(path)):
            found.images.append(path)
    return found


def find_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The images of `list_images`. Raises `DataError` when ``folder`` cannot be listed."""
    return list_images(folder, recursive).images


def _is_image(path: Path) -> bool:
    """Whether the content is an image, by its signature."""
    try:
        require_file(path)
        with Image.open(path, formats=[f for f in formats() if f != "TGA"]):
            return True
    except Exception:  # whatever a decoder says about it: it is not listed, and not read
        return False


def _eight_bits(values: Int[np.ndarray, "h w"], wide: bool, path: str | Path) -> UInt8[np.ndarray, "h w"]:
    low, top = int(values.min()), int(values.max())
    if low < 0 or top > 65535:
        raise DataError(f"{path}: 32-bit values from {low} to {top}; save it with 8 or 16 bits per channel")
    if wide and top <= 255:
        return values.astype(np.uint8)
    if 0 < top <= 4095:
        dark = f"{path}: 16-bit values of at most {top} are read as parts of 65535, so it is nearly black"
        _log_once(_warned, f"{dark}; stretch the values of all images alike, or save them with 8 bits")
    narrow = np.empty(values.shape, np.uint8)
    for rows in strips(values.shape[1], len(values)):
        narrow[rows] = (values[rows].astype(np.int64) + 128) // 257
    return narrow


def _note_pages(image: Image.Image, path: Path | str) -> None:
    """Log that an image has pages behind the first one, other than smaller copies of it in a TIFF."""
    if image.format not in ("TIFF", "GIF", "PNG", "WEBP", "AVIF") or said_of_pages:
        return
    try:
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            image.seek(1)
            if image.format != "TIFF" or not image.tag_v2.get(254, 0) & 1:  # type: ignore[attr-defined]
                note_pages(path, pages)
    except Exception:  # a page that is not read may be damaged
        log.debug("%s: the pages behind the first one cannot be read", path)
    finally:
        image.seek(0)


def _log_once(said: list[str], message: str) -> None:
    """Log it, once in a process: data sets have many such images."""
    if not said:
        said.append(message)
        log.warning("%s", message)


_warned: list[str] = []
_large: list[str] = []


def _limit() -> str:
    return _millions(2 * Image.MAX_IMAGE_PIXELS) if Image.MAX_IMAGE_PIXELS else "any number"


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:.0f} million"


def _metadata_behind_pixels(path: Path) -> bool:
    """Whether a PNG has a chunk behind its pixels that may turn it. Reads the heads of the chunks alone."""
    with open(path, "rb") as file:
        file.seek(8)
        behind = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if behind and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            behind |= kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
    return False
