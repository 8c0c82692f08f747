"""Preprocessing for all runtimes: from pixels to the input of a network, with numpy and Pillow only.

The result equals that of `maskkit.data.transforms.eval_ops` and `maskkit.data.loader.collate` bit for bit.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from maskkit.config import InputConfig
from maskkit.geometry.resample import fitted_size, opencv_taps, resize, resize_bytes, resize_taps
from maskkit.prediction import ImageMeta


class Prepared(NamedTuple):
    """One image, resized and normalised, without padding."""

    image: Float[np.ndarray, "h w 3"]
    meta: ImageMeta


class Inputs(NamedTuple):
    """A batch for a runtime, and what its outputs are decoded with."""

    images: Float[np.ndarray, "b 3 h w"]
    """Padded on the right and below with zeros, the mean colour, unless ``input.padding`` says otherwise."""
    sizes: Int[np.ndarray, "b 2"]
    """(Height, width) of each image inside its padding."""
    metas: list[ImageMeta]


def prepare(pixels: UInt8[np.ndarray, "h w 3"], meta: ImageMeta, input: InputConfig) -> Prepared:
    """RGB pixels resized to their size in the network's input, and normalised.

    They may be those of the image ``meta.size`` at a fraction of its size, to which ``meta.affine`` then refers.
    """
    have = (pixels.shape[0], pixels.shape[1])
    size = fitted_size(meta.size, input.size, input.resize, input.rounding)
    if size == have:
        resized = pixels.astype(np.float32)
    elif input.antialias:
        image = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        resized = np.asarray(image).astype(np.float32)
    elif input.interpolation == "cv2":
        resized = resize_bytes(pixels, size).astype(np.float32)
    else:
        resized = resize(pixels, size, opencv_taps if input.interpolation == "cv2_float" else resize_taps)
    rows = np.ascontiguousarray(resized).reshape(size[0], -1)  # numpy is slow on rows of three
    rows -= np.tile(np.asarray(input.mean, np.float32), size[1])
    rows /= np.tile(np.asarray(input.std, np.float32), size[1])
    scale = np.diag([1 / (size[1] / have[1]), 1 / (size[0] / have[0]), 1.0])
    return Prepared(rows.reshape(*size, 3), replace(meta, input_size=size, affine=meta.affine @ scale))


def padded_size(prepared: Sequence[Prepared], input: InputConfig) -> tuple[int, int]:
    """Height and width of a batch: those of the network's input, or of the largest image rounded up (``shorter``)."""
    if input.resize != "shorter":
        return input.size
    height, width = (max(image.shape[side] for image, _ in prepared) for side in (0, 1))
    return -(-height // input.multiple) * input.multiple, -(-width // input.multiple) * input.multiple


def stack(prepared: Sequence[Prepared], input: InputConfig) -> Inputs:
    """Images as one batch of their `padded_size`."""
    sizes = np.array([image.shape[:2] for image, _ in prepared], np.int64)
    height, width = padded_size(prepared, input)
    mean, std = np.asarray(input.mean, np.float32), np.asarray(input.std, np.float32)
    around = np.tile((np.asarray(input.surround, np.float32) - mean) / std, width).reshape(width, 3)
    images = np.empty((len(prepared), height, width, 3), np.float32)
    for canvas, (image, _), (rows, columns) in zip(images, prepared, sizes, strict=True):
        canvas[:rows, :columns] = image
        canvas[:rows, columns:] = around[columns:]
        canvas[rows:] = around
    metas = [replace(meta, input_size=(height, width)) for _, meta in prepared]
    return Inputs(images.transpose(0, 3, 1, 2), sizes, metas)  # (B, 3, H, W), channels last in memory
