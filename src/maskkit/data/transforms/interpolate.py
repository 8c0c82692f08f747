"""Resizing of images as tensors."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image as PilImage
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from maskkit.geometry.resample import opencv_taps, resize, resize_bytes, resize_taps

Image = UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"]
Size = tuple[int, int]
Filter = Literal["bilinear", "antialias", "cv2", "cv2_float"]


def resize_image(image: Image, size: Size, filter: Filter) -> Float[Tensor, "c h w"]:
    """The image at another ``size`` (H, W), bilinear.

    ``bilinear`` does not round; ``antialias`` widens the filter when shrinking; ``cv2`` gives the bytes that OpenCV
    makes of bytes, ``cv2_float`` the floats that it makes of floats. Images that augmentation has made floats are
    resized as ``bilinear`` by either.
    """
    if filter == "antialias":
        return _smooth(image, size)
    if filter == "bilinear" or image.dtype != torch.uint8:
        return bilinear(image, size)
    pixels = image.permute(1, 2, 0).numpy()
    resized = resize_bytes(pixels, size) if filter == "cv2" else resize(pixels, size, opencv_taps)
    return torch.from_numpy(resized).permute(2, 0, 1).float()


def bilinear(image: Image, size: Size) -> Float[Tensor, "c h w"]:
    """As `torch.nn.functional.interpolate` of the image in float, but only the rows it reads are converted.

    From bytes of 640x640 to 320x320 this takes a fifth of the time, from 1280x1280 a fourteenth.
    """
    for axis in (1, 2):  # first the rows
        taps = resize_taps(image.shape[axis], size[axis - 1])
        low, high = (image.index_select(axis, torch.from_numpy(i)).float() for i in (taps.lower, taps.upper))
        weight = torch.from_numpy(taps.weight).float()
        image = torch.lerp(low, high, weight[:, None] if axis == 1 else weight)
    return image


def _smooth(image: Image, size: Size) -> Float[Tensor, "c h w"]:
    """Antialiased: by Pillow for bytes, which is fast and what detectron2 trains with, by torchvision for floats.

    Floats are resized one channel at a time to save memory.
    """
    if image.dtype == torch.uint8:
        pixels = PilImage.fromarray(image.permute(1, 2, 0).numpy())
        resized = pixels.resize((size[1], size[0]), PilImage.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
    return torch.cat([TF.resize(channel[None].float(), list(size), antialias=True) for channel in image])


def rounded(image: Float[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """The image as bytes."""
    return image.round().clamp(0, 255).to(torch.uint8)
