"""Sources of images: files, pixels in memory, data sets. Images are read lazily.

Torch tensors are accepted, but torch is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from maskkit.data.images import read_pixels
from maskkit.errors import DataError
from maskkit.prediction import ImageMeta

if TYPE_CHECKING:
    from torch import Tensor

    from maskkit.data.dataset import Dataset

    Source = str | Path | np.ndarray | Image.Image | Tensor
    """An image file, or RGB pixels: ``(H, W, 3)`` uint8 array, PIL image, ``(3, H, W)`` uint8 tensor."""

Pixels = UInt8[np.ndarray, "h w 3"]


class Item(NamedTuple):
    """An image that has not been read yet."""

    name: str
    """Its name in messages."""
    read: Callable[[], tuple[Pixels, ImageMeta]]
    """Returns RGB pixels and their meta. Raises `DataError`."""


def loose_images(sources: Iterable[Source]) -> Iterator[Item]:
    """The images of ``sources``; image ids are positions, counted from 1."""
    for number, source in enumerate(sources, 1):
        path = str(source) if isinstance(source, str | Path) else ""
        yield Item(path or f"image {number}", partial(_loose, source, number, path))


def dataset_images(dataset: Dataset) -> Iterator[Item]:
    """The images of a data set, in order, with their ids."""
    for index, record in enumerate(dataset.records):
        yield Item(str(record.path), partial(_of_dataset, dataset, index))


def read_source(source: Source) -> Pixels:
    """RGB pixels of a `Source`. Raises `DataError` for a file, an array or a tensor that is not an RGB image."""
    if isinstance(source, str | Path):
        return read_pixels(source)
    if isinstance(source, Image.Image):
        if source.mode.startswith(("I", "F")):
            raise DataError(
                f"a PIL image of mode {source.mode!r} has no defined brightness; convert it to 8 bits first"
            )
        return np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise DataError(
                f"an image as an array is (H, W, 3) RGB uint8, got {source.shape} {source.dtype}; convert it first"
            )
        return source.copy()
    pixels = source.cpu().numpy()
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.size == 0:
        raise DataError(
            f"an image as a tensor is (3, H, W) RGB uint8, got {tuple(source.shape)} {source.dtype}; convert it first"
        )
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _loose(source: Source, number: int, path: str) -> tuple[Pixels, ImageMeta]:
    pixels = read_source(source)
    size = (pixels.shape[0], pixels.shape[1])
    return pixels, ImageMeta(number, path, size, size)


def _of_dataset(dataset: Dataset, index: int) -> tuple[Pixels, ImageMeta]:
    image, meta = dataset.image(index)
    return image.permute(1, 2, 0).numpy(), meta
