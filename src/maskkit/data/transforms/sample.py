"""A training sample and the three ways to move its pixels: `window`, `mirror` and `scale`.

Each of them moves the image, the boxes, the masks, the label map, the saliency map and ``meta.affine`` together, so
that the original position of every pixel stays known. Masks are kept as `Patches`, which makes them cheap to move.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from maskkit.data.label_map import IGNORE
from maskkit.data.patches import Patches
from maskkit.data.transforms.interpolate import Filter, bilinear, resize_image
from maskkit.geometry import boxes as box_math
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

Pixels = UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"]
"""RGB on 0..255: bytes as decoded, float after `Resize`, which does not round."""
Sample = tuple[Tensor, Target, ImageMeta]
Colour = tuple[float, float, float]
Size = tuple[int, int]


class Operation(Protocol):
    """A transform: a function of a sample and a random number generator."""

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The changed sample; the arguments are not modified."""
        ...


def window(image: Tensor, target: Target, meta: ImageMeta, x: int, y: int, size: Size, fill: Colour) -> Sample:
    """The part of the sample in a window of ``size`` (H, W) with corner (x, y); ``fill`` outside the image."""
    cut = _cut(image, x, y, size, torch.tensor(fill))
    semantic = (
        _cut(target.semantic[None], x, y, size, torch.tensor([IGNORE]))[0] if target.semantic is not None else None
    )
    boxes = _clipped(target.boxes - torch.tensor([x, y, x, y]), size)
    masks = patches(target).window(x, y, size) if target.masks is not None else None
    saliency = _cut(target.saliency[None], x, y, size, torch.zeros(1))[0] if target.saliency is not None else None
    moved = replace(target, boxes=boxes, masks=masks, semantic=semantic, saliency=saliency)
    return cut, _visible(moved), _moved(meta, size, (1, 1), (x, y))


def _cut(plane: Tensor, x: int, y: int, size: Size, fill: Tensor) -> Tensor:
    """The same window of a ``(C, H, W)`` tensor: a view when it is inside."""
    height, width = size
    inside = plane[:, max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if tuple(inside.shape[1:]) == size:
        return inside
    top, left = max(-y, 0), max(-x, 0)
    canvas = plane.new_empty(len(plane), height, width).copy_(fill[:, None, None])
    canvas[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return canvas


def mirror(image: Tensor, target: Target, meta: ImageMeta, axis: Literal[0, 1]) -> Sample:
    """The mirrored sample: ``axis`` 1 swaps left and right, 0 top and bottom."""
    size = (image.shape[1], image.shape[2])
    low, high, length = (0, 2, size[1]) if axis == 1 else (1, 3, size[0])
    boxes = target.boxes.clone()
    boxes[:, low], boxes[:, high] = length - target.boxes[:, high], length - target.boxes[:, low]
    turned = replace(
        target,
        boxes=boxes,
        masks=patches(target).mirror(axis) if target.masks is not None else None,
        semantic=target.semantic.flip(axis) if target.semantic is not None else None,
        saliency=target.saliency.flip(axis) if target.saliency is not None else None,
    )
    factors, shift = ((-1, 1), (length, 0)) if axis == 1 else ((1, -1), (0, length))
    return image.flip(axis + 1), turned, _moved(meta, size, factors, shift)


def scale(image: Tensor, target: Target, meta: ImageMeta, size: Size, filter: Filter = "bilinear") -> Sample:
    """The sample resized to ``size`` (H, W), the image as float."""
    height, width = image.shape[1:]
    if (height, width) == size:
        return image.float(), target, meta
    x, y = size[1] / width, size[0] / height
    semantic = target.semantic
    if semantic is not None:
        semantic = TF.resize(semantic[None], list(size), TF.InterpolationMode.NEAREST_EXACT)[0]
    scaled = replace(
        target,
        boxes=_clipped(target.boxes * torch.tensor([x, y, x, y]), size),
        masks=patches(target).scale(size) if target.masks is not None else None,
        semantic=semantic,
        saliency=bilinear(target.saliency[None], size)[0] if target.saliency is not None else None,
    )
    return resize_image(image, size, filter), _visible(scaled), _moved(meta, size, (1 / x, 1 / y), (0, 0))


def _clipped(boxes: Float[Tensor, "n 4"], size: Size) -> Float[Tensor, "n 4"]:
    """Boxes cut at the border of an image of ``size`` (H, W)."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([size[1], size[0], size[1], size[0]]))


def _moved(meta: ImageMeta, size: Size, factors: tuple[float, float], shift: tuple[float, float]) -> ImageMeta:
    """``meta`` of a result of ``size`` whose point p is ``p * factors + shift`` in the sample before."""
    step = np.array([[factors[0], 0, shift[0]], [0, factors[1], shift[1]], [0, 0, 1]], np.float64)
    return replace(meta, input_size=size, affine=meta.affine @ step)


def _visible(target: Target) -> Target:
    """The objects still in the image: their box has an area and their mask, if known and not of a crowd, a pixel."""
    stay = box_math.area(target.boxes) > 0
    if target.masks is not None:
        stay &= ~target.has_mask | target.crowd | (target.masks.areas() > 0)
    return target if bool(stay.all()) else target[stay]


def patches(target: Target) -> Patches:
    """The masks of ``target`` as patches."""
    assert target.masks is not None
    return Patches.of(target.masks)


def multiplied(image: Tensor, factor: float) -> Size:
    """The size (H, W) of the image times ``factor``."""
    return max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor))


def random_corner(have: Sequence[int], want: Size, rng: np.random.Generator) -> tuple[int, int]:
    """A random corner (x, y) for `window`: a crop where ``have`` (H, W) exceeds ``want``, padding where it is less."""
    slack = (have[1] - want[1], have[0] - want[0])
    x, y = (int(rng.integers(min(s, 0), max(s, 0) + 1)) for s in slack)
    return x, y
