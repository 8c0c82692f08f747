"""Images from disk: whatever their mode, eight bits of red, green and blue come out, upright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from maskkit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"}
)
"""Endings by which `find_images` knows an image, in lower case; reading goes by content alone."""

_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read; whatever goes wrong in it, also while it is decoded, is a `DataError`."""
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes); restore it or leave it out")
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image; check the path") from None
    except Image.DecompressionBombError:  # beyond 179 million pixels, by the header alone
        raise DataError(f"{path}: too many pixels for one image; cut it into tiles") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, whatever its name says; replace it or leave it out") from None
    except Exception as error:  # the decoders raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        raise DataError(f"{path}: damaged or unreadable ({error}); restore the file or leave it out") from error


def read_image(path: str | Path) -> UInt8[Tensor, "3 h w"]:
    """The image of `read_pixels` as a tensor. Raises `DataError`."""
    import torch

    return torch.from_numpy(read_pixels(path).transpose(2, 0, 1).copy())  # (3, H, W)


def read_pixels(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB, turned as its EXIF orientation says.

    Grey, palette and CMYK images are converted, transparency is dropped, 16-bit values are divided by 257 (so that
    65535 becomes 255). Raises `DataError` for a missing, empty, truncated or oversized file and for one that is no
    image, and for 32-bit images whose range of values nobody can know.
    """
    with _opened(Path(path)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits, in "I" kept as 32
            values = np.asarray(upright).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise DataError(f"{path}: 32-bit values up to {values.max()}; save it with 8 or 16 bits per channel")
            rgb = np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        elif upright.mode == "F":
            raise DataError(f"{path}: floating-point values; save it with 8 or 16 bits per channel")
        else:
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            rgb = np.asarray(upright.convert("RGB"))
    return rgb


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the image as `read_image` gives it, from the header alone. Raises `DataError`."""
    with _opened(Path(path)) as image:
        # the method of the base class: the one for PNG decodes the whole image to look for EXIF behind it
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)


def find_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Files of ``folder`` with the ending of an image, sorted by name; hidden files are left out."""
    found = Path(folder).rglob("*") if recursive else Path(folder).iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
