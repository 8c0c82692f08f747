"""Sources of images: files, pixels in memory, data sets. Images are read lazily.

Tensors of torch are accepted, but torch is not imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from maskkit.config import InputConfig
from maskkit.data.images import read_reduced
from maskkit.errors import DataError
from maskkit.geometry.resample import fitted_size
from maskkit.prediction import ImageId, ImageMeta

if TYPE_CHECKING:
    from torch import Tensor

    from maskkit.data.dataset import Dataset

    Source = str | Path | bytes | BinaryIO | np.ndarray | Image.Image | Tensor
    """An image file, its content (bytes or an open binary file), or RGB pixels: ``(H, W, 3)`` uint8 array, PIL image,
    ``(3, H, W)`` uint8 tensor."""

Pixels = UInt8[np.ndarray, "h w 3"]


class Item(NamedTuple):
    """An image that has not been read yet."""

    name: str
    """Its name in messages."""
    read: Callable[[InputConfig | None], tuple[Pixels, ImageMeta]]
    """Returns RGB pixels, perhaps reduced for this input, or all pixels for None, and their meta. Raises
    `DataError`."""
    path: Path | None = None
    """The file, if the image is one: of a large file, single parts may be read."""
    image_id: ImageId = 0
    size: tuple[int, int] | None = None
    """Height and width that it has to have; None: any."""


def loose_images(sources: Iterable[Source]) -> Iterator[Item]:
    """The images of ``sources``; image ids are positions, counted from 1."""
    return numbered_images(enumerate(sources, 1))


def numbered_images(sources: Iterable[tuple[ImageId, Source]]) -> Iterator[Item]:
    """The images of ``sources``, each with its id."""
    for number, source in sources:
        path = str(source) if isinstance(source, str | Path) else ""
        file = Path(path) if path else None
        yield Item(path or f"image {number}", partial(_loose, source, number, path), file, number)


def stored_image(image_id: ImageId, name: str, fetch: Callable[[], bytes]) -> Item:
    """An image called ``name``, whose encoded content ``fetch`` returns when the image is read.

    It is read like a file: a large one may be reduced, and its pixels are not kept with the prediction.
    """

    def read(input: InputConfig | None) -> tuple[Pixels, ImageMeta]:
        content = fetch()
        try:
            return _loose(content, image_id, name, input)
        except DataError as error:
            raise DataError(f"{name}: {str(error).removeprefix('the encoded image: ')}") from None

    return Item(name, read, None, image_id)


def dataset_images(dataset: Dataset) -> Iterator[Item]:
    """The images of a data set, in order, with their ids."""
    for index, record in enumerate(dataset.records):
        yield Item(str(record.path), partial(_of_dataset, dataset, index), record.path, record.image_id, record.size)


def read_source(source: Source, input: InputConfig | None = None) -> tuple[Pixels, tuple[int, int]]:
    """RGB pixels of a `Source`, and the (height, width) of the image.

    With ``input``, a large file may be read at a fraction of its size (`read_reduced`). Raises `DataError` for a source
    that is not an RGB image.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        source = BytesIO(source)
    if isinstance(source, str | Path):
        _refuse_what_is_no_file(str(source))
    if isinstance(source, str | Path) or (hasattr(source, "read") and not isinstance(source, Image.Image)):
        return read_reduced(cast("str | Path | BinaryIO", source), lambda size: _reduction(size, input))
    pixels = _in_memory(source)
    return pixels, (pixels.shape[0], pixels.shape[1])


def _reduction(size: tuple[int, int], input: InputConfig | None) -> int:
    """The largest reduction, 8 at most, that leaves twice as many rows and columns as the network's input has."""
    if input is None:
        return 1
    fitted = fitted_size(size, input.size, input.resize, input.rounding)
    return next((f for f in (8, 4, 2) if all(have // f >= 2 * n for have, n in zip(size, fitted, strict=True))), 1)


def _refuse_what_is_no_file(name: str) -> None:
    scheme = re.match(r"([a-z][a-z0-9+.-]+):/", name, re.IGNORECASE)
    if scheme and len(scheme[1]) > 1 and not os.path.exists(name):
        raise DataError(
            f"{name}: is an address, and maskkit downloads no images; save it to a file first, or give --cluster"
        )
    if os.path.isdir(name):
        raise DataError(
            f"{name}: is a folder, not an image; predict its images with predict_many, or with maskkit predict {name}"
        )


def _in_memory(source: object) -> Pixels:
    """A copy of an image in memory as RGB pixels. Raises `DataError`."""
    if isinstance(source, list | tuple | dict | set):
        raise DataError(f"predict takes one image, not a {type(source).__name__}; give its images to predict_many")
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
    if not hasattr(source, "cpu"):
        raise DataError(
            f"an image is a file, its bytes, an array, a PIL image or a tensor, not {type(source).__name__}; convert it"
        )
    pixels = source.cpu().numpy()  # type: ignore[attr-defined]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.size == 0:
        raise DataError(
            f"an image as a tensor is (3, H, W) RGB uint8, got {pixels.shape} {pixels.dtype}; convert it first"
        )
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _loose(source: Source, number: ImageId, path: str, input: InputConfig | None) -> tuple[Pixels, ImageMeta]:
    pixels, size = read_source(source, input if path else None)  # pixels without a file stay with the prediction
    have = (pixels.shape[0], pixels.shape[1])
    affine = np.diag([size[1] / have[1], size[0] / have[0], 1.0])[:2]
    return pixels, ImageMeta(number, path, size, have, affine)


def _of_dataset(dataset: Dataset, index: int, input: InputConfig | None) -> tuple[Pixels, ImageMeta]:
    return dataset.pixels(index)
