"""Random changes of a training picture together with its boxes, masks and geometry.

An operation is a frozen dataclass that takes ``(image, target, meta, rng)`` and gives ``(image, target, meta)`` back. All of
them move pixels through three functions only, `_window`, `_mirror` and `_scale`, each of which carries the image,
the boxes, the masks, the semantic map and ``meta.affine`` along, so that a point of the result is always known in the
original picture. Every random number comes from ``rng``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from maskkit import boxes as box_math
from maskkit.config import AugmentConfig, InputConfig
from maskkit.data.patches import Patches
from maskkit.types import ImageMeta, Target

Picture = UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"]
"""RGB on 0..255: bytes as decoded, float after `Resize`, which does not round."""
Sample = tuple[Tensor, Target, ImageMeta]
Colour = tuple[float, float, float]
Size = tuple[int, int]

IGNORE = 255
"""The semantic label of pixels about which nothing is known."""
SMALLEST = 4 / 550
"""Share of the input's side that a box must exceed to be learnt from (YOLACT)."""


class Operation(Protocol):
    """What every transform is."""

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The changed sample; the arguments are left as they are."""
        ...


def train_ops(
    augment: AugmentConfig, input: InputConfig, partner: Callable[[np.random.Generator], Sample] | None = None
) -> list[Operation]:
    """The operations of a training, in the order of `AugmentConfig`'s fields; ``partner`` gives copy-paste its pictures."""
    ops: list[Operation] = []
    if augment.copy_paste > 0:
        if partner is None:
            raise ValueError("copy-paste needs a partner: a function that gives another training sample")
        ops.append(CopyPaste(augment.copy_paste, partner))
    if augment.photometric:
        ops.append(Photometric())
    if augment.expand > 1:
        ops.append(Expand(augment.expand, input.mean, limit=4 * max(input.size)))
    if augment.iou_crop:
        ops.append(IoUCrop())
    if augment.flip > 0:
        ops.append(Flip(augment.flip))
    if augment.vertical_flip > 0:
        ops.append(VerticalFlip(augment.vertical_flip))
    if augment.scale_jitter is not None:
        ops.append(ScaleJitter(augment.scale_jitter, input.size, input.resize, input.mean))
    else:
        ops.append(Resize(input.size, input.resize))
    ops.append(DropSmall())
    return ops


def eval_ops(input: InputConfig) -> list[Operation]:
    """The operations of evaluation and prediction: the resize alone."""
    return [Resize(input.size, input.resize)]


def apply(ops: Sequence[Operation], sample: Sample, rng: np.random.Generator) -> Sample:
    """One operation after the other."""
    for op in ops:
        sample = op(*sample, rng)
    return sample


@dataclass(frozen=True)
class Resize:
    """Brings a picture to the network's input size (H, W).

    ``stretch`` fills it; ``pad`` keeps the aspect ratio and pads right and bottom with zeros, ``meta.input_size`` then
    is the size without the padding. The image is interpolated bilinearly in float and stays unrounded; without
    ``antialias`` that is YOLACT's own preprocessing.
    """

    size: Size
    mode: Literal["stretch", "pad"] = "stretch"
    antialias: bool = False

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The resized sample; nothing is drawn from ``rng``."""
        fitted = _fitted(image.shape[1:], self.size, self.mode)
        image, target, meta = _scale(image.float(), target, meta, fitted, self.antialias)
        if fitted != self.size:
            image, target, meta = _window(image, target, meta, 0, 0, self.size, (0, 0, 0))
        return image, target, replace(meta, input_size=fitted)


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., 2021): `Resize` to a random multiple of ``size``, then a random crop or pad back."""

    range: tuple[float, float]
    size: Size
    mode: Literal["stretch", "pad"] = "stretch"
    fill: Colour = (0, 0, 0)

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The resized sample."""
        factor = rng.uniform(*self.range)
        size = (max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor)))
        fitted = _fitted(image.shape[1:], size, self.mode)
        image, target, meta = _scale(image.float(), target, meta, fitted)
        y, x = (_between(0, have - want, rng) for have, want in zip(fitted, self.size, strict=True))
        return _window(image, target, meta, x, y, self.size, self.fill)


@dataclass(frozen=True)
class Flip:
    """Swaps left and right with chance ``p``."""

    p: float = 0.5

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample or its mirror image."""
        return _mirror(image, target, meta, axis=1) if rng.random() < self.p else (image, target, meta)


@dataclass(frozen=True)
class VerticalFlip:
    """Swaps top and bottom with chance ``p``."""

    p: float = 0.5

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample or its mirror image."""
        return _mirror(image, target, meta, axis=0) if rng.random() < self.p else (image, target, meta)


@dataclass(frozen=True)
class Photometric:
    """The colour distortion of SSD (Liu et al., 2016), each part with chance 0.5.

    Brightness, contrast, saturation, hue in this order, or contrast last. Every part is linear in RGB, so the
    chain is one 3x4 matrix: saturation blends with the luma, hue turns about the grey axis at constant luma. (SSD
    goes through HSV for these two: ten times slower, and for so small an angle the same to the eye.)
    """

    brightness: float = 32.0
    """Largest summand on 0..255."""
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    """Largest angle in degrees."""

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The recoloured picture, bytes."""
        matrix = self.matrix(rng)
        if np.array_equal(matrix, np.eye(4)):
            return image, target, meta
        colour = torch.from_numpy(matrix[:3].astype(np.float32))
        flat = torch.addmm(colour[:, 3:], colour[:, :3], image.flatten(1).float())  # (3, H*W)
        return flat.round_().clamp_(0, 255).to(torch.uint8).view(image.shape), target, meta

    def matrix(self, rng: np.random.Generator) -> Float[np.ndarray, "4 4"]:
        """The colour change drawn from ``rng``, on ``(r, g, b, 1)``."""
        matrix = np.eye(4)
        if rng.random() < 0.5:
            matrix[:3, 3] = rng.uniform(-self.brightness, self.brightness)
        contrast = np.diag([*[rng.uniform(*self.contrast)] * 3, 1.0]) if rng.random() < 0.5 else np.eye(4)
        contrast_first = rng.random() < 0.5
        if contrast_first:
            matrix = contrast @ matrix
        if rng.random() < 0.5:
            matrix = _saturation(rng.uniform(*self.saturation)) @ matrix
        if rng.random() < 0.5:
            matrix = _hue(math.radians(rng.uniform(-self.hue, self.hue))) @ matrix
        return matrix if contrast_first else contrast @ matrix


@dataclass(frozen=True)
class Expand:
    """Puts the picture somewhere into a field of colour up to ``max_ratio`` times as high and wide (SSD), chance ``p``.

    A field longer than ``limit`` pixels would hold more than the input can show: there the picture is shrunk first,
    which bounds memory whatever the size of the photographs.
    """

    max_ratio: float = 4.0
    fill: Colour = (0, 0, 0)
    p: float = 0.5
    limit: int = 4096

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or in its field."""
        if rng.random() >= self.p:
            return image, target, meta
        ratio = rng.uniform(1, self.max_ratio)
        shrink = self.limit / (ratio * max(image.shape[1:]))
        if shrink < 1:
            size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[2] * shrink)))
            image, target, meta = _scale(image, target, meta, size)
        height, width = image.shape[1:]
        size = (round(height * ratio), round(width * ratio))
        return _window(
            image,
            target,
            meta,
            -_between(0, size[1] - width, rng),
            -_between(0, size[0] - height, rng),
            size,
            self.fill,
        )


@dataclass(frozen=True)
class IoUCrop:
    """The random crop of SSD: sides of at least 0.3, an aspect ratio from 1/2 to 2.

    One of ``overlaps`` is drawn: None keeps the picture, a number asks for an IoU of at least that much between the
    crop and one object. Objects whose centre lies in the crop stay, and there is at least one of them unless the
    picture has none. A demand that ``trials`` crops in a row fail is drawn anew. Crowds have no say and stay where they are seen.
    """

    overlaps: tuple[float | None, ...] = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
    smallest: float = 0.3
    trials: int = 50

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or a crop of it."""
        height, width = image.shape[1:]
        objects = target.boxes[~target.crowd]
        centres = box_math.to_centres(target.boxes)[:, :2]
        while (overlap := self.overlaps[rng.integers(len(self.overlaps))]) is not None:
            crops = self._propose(height, width, rng)
            good = crops[:, 2] > crops[:, 0]
            inside = _contains(crops, centres)  # (T, N)
            if len(objects):
                good &= inside[:, ~target.crowd].any(1) & (box_math.iou(crops, objects).amax(1) >= overlap)
            for i in good.nonzero()[:1, 0]:
                x1, y1, x2, y2 = crops[i].int().tolist()
                stay = target[inside[i] | target.crowd]
                return _window(image, stay, meta, x1, y1, (y2 - y1, x2 - x1), (0, 0, 0))
        return image, target, meta

    def _propose(self, height: int, width: int, rng: np.random.Generator) -> Float[Tensor, "t 4"]:
        """Crops with whole-numbered edges; those of a wrong aspect ratio collapse to nothing."""
        sides = np.maximum(1, np.floor(rng.uniform(self.smallest, 1, (self.trials, 2)) * (width, height)))
        corner = np.floor(rng.random((self.trials, 2)) * ((width, height) - sides + 1))
        aspect = sides[:, 1] / sides[:, 0]
        sides[(aspect < 0.5) | (aspect > 2)] = 0
        return torch.from_numpy(np.concatenate([corner, corner + sides], 1)).float()


@dataclass(frozen=True)
class CopyPaste:
    """Pastes objects of another picture, with chance ``p`` (Ghiasi et al., 2021).

    The partner is fitted into the picture at a random size and place, perhaps mirrored, and each of its objects comes
    over with chance 0.5. What lies beneath is cut: boxes are taken anew from what is left of the masks, and objects of
    which less than ``visible`` is left are dropped.
    """

    p: float
    partner: Callable[[np.random.Generator], Sample]
    scale: tuple[float, float] = (0.5, 1.25)
    visible: float = 0.1

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or with guests."""
        if rng.random() >= self.p:
            return image, target, meta
        size = (image.shape[1], image.shape[2])
        guest_image, guests = self._guests(size, rng)
        if not len(guests):
            return image, target, meta
        cover = _patches(guests).union()
        over = torch.from_numpy(cover)
        semantic = target.semantic
        if semantic is not None:
            semantic = torch.where(over, guests.semantic if guests.semantic is not None else IGNORE, semantic)
        host = _occlude(target, cover, self.visible)
        joined = Target(
            torch.cat([host.boxes, guests.boxes]),
            torch.cat([host.labels, guests.labels]),
            _patches(host) + _patches(guests),
            torch.cat([host.crowd, guests.crowd]),
            torch.cat([host.has_mask, guests.has_mask]),
            semantic,
            target.tags if target.tags is None or guests.tags is None else target.tags | guests.tags,
        )
        return torch.where(over, guest_image, image), joined, meta

    def _guests(self, size: Size, rng: np.random.Generator) -> tuple[Tensor, Target]:
        """A partner's picture, at ``size``, and those of its objects that are to be pasted."""
        image, target, meta = self.partner(rng)
        target = target[torch.from_numpy(rng.random(len(target)) < 0.5) & target.has_mask & ~target.crowd]
        factor = rng.uniform(*self.scale) * min(size[0] / image.shape[1], size[1] / image.shape[2])
        fitted = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor)))
        image, target, meta = Flip()(*_scale(image, target, meta, fitted), rng)
        y, x = (_between(0, have - want, rng) for have, want in zip(fitted, size, strict=True))
        image, target, _ = _window(image, target, meta, x, y, size, (0, 0, 0))
        return image, replace(target, boxes=_patches(target).boxes())


@dataclass(frozen=True)
class DropSmall:
    """Drops objects whose box is not wider and higher than ``share`` of the input; crowds stay."""

    share: float = SMALLEST

    def __call__(self, image: Picture, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample with the objects that can be learnt from."""
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        least = torch.tensor([image.shape[2], image.shape[1]]) * self.share
        return image, target[(sides > least).all(1) | target.crowd], meta


def _window(image: Tensor, target: Target, meta: ImageMeta, x: int, y: int, size: Size, fill: Colour) -> Sample:
    """The sample through a window of ``size`` (H, W) whose top left corner is (x, y), with ``fill`` outside the picture."""
    height, width = size
    seen = image[:, max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    left, top = max(-x, 0), max(-y, 0)
    semantic = target.semantic
    if semantic is not None:
        semantic = semantic[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if seen.shape[1:] != size:
        padding = [left, top, width - left - seen.shape[2], height - top - seen.shape[1]]
        seen = TF.pad(seen, padding, fill=list(fill))
        if semantic is not None:
            semantic = TF.pad(semantic[None], padding, fill=[IGNORE])[0]
    boxes = target.boxes - torch.tensor([x, y, x, y], dtype=torch.float32)
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=torch.float32))
    masks = _patches(target).window(x, y, size) if target.masks is not None else None
    moved = replace(target, boxes=boxes, masks=masks, semantic=semantic)
    return seen, _seen(moved), _followed(meta, size, (1, 1), (x, y))


def _mirror(image: Tensor, target: Target, meta: ImageMeta, axis: Literal[0, 1]) -> Sample:
    """The sample turned over: ``axis`` 1 swaps left and right, 0 top and bottom."""
    size = (image.shape[1], image.shape[2])
    low, high, length = (0, 2, size[1]) if axis == 1 else (1, 3, size[0])
    boxes = target.boxes.clone()
    boxes[:, low], boxes[:, high] = length - target.boxes[:, high], length - target.boxes[:, low]
    turned = replace(
        target,
        boxes=boxes,
        masks=_patches(target).mirror(axis) if target.masks is not None else None,
        semantic=target.semantic.flip(axis) if target.semantic is not None else None,
    )
    scale, shift = ((-1, 1), (length, 0)) if axis == 1 else ((1, -1), (0, length))
    return image.flip(axis + 1), turned, _followed(meta, size, scale, shift)


def _scale(image: Tensor, target: Target, meta: ImageMeta, size: Size, antialias: bool = False) -> Sample:
    """The sample at another resolution (H, W)."""
    height, width = image.shape[1:]
    if (height, width) == size:
        return image, target, meta
    x, y = size[1] / width, size[0] / height
    semantic = target.semantic
    scaled = replace(
        target,
        boxes=target.boxes * torch.tensor([x, y, x, y], dtype=torch.float32),
        masks=_patches(target).scale(size) if target.masks is not None else None,
        semantic=TF.resize(semantic[None], list(size), TF.InterpolationMode.NEAREST_EXACT)[0]
        if semantic is not None
        else None,
    )
    image = TF.resize(image, list(size), TF.InterpolationMode.BILINEAR, antialias=antialias)
    return image, _seen(scaled), _followed(meta, size, (1 / x, 1 / y), (0, 0))


def _followed(meta: ImageMeta, size: Size, scale: tuple[float, float], shift: tuple[float, float]) -> ImageMeta:
    """``meta`` after a change that maps a point p of the result to ``p * scale + shift`` of what was there before."""
    step = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]], [0, 0, 1]], np.float64)
    return replace(meta, input_size=size, affine=meta.affine @ step)


def _seen(target: Target) -> Target:
    """The objects that are still in the picture: a box with an area, and a pixel where the mask is known. Crowds need the box alone."""
    stay = box_math.area(target.boxes) > 0
    if target.masks is not None:
        stay &= ~target.has_mask | target.crowd | (target.masks.areas() > 0)
    return target if bool(stay.all()) else target[stay]


def _occlude(target: Target, cover: np.ndarray, visible: float) -> Target:
    """``target`` after something was laid over the pixels of ``cover`` (H, W)."""
    before = _patches(target)
    after = before.cut(cover)
    left, whole = after.areas(), before.areas()
    cut = (left < whole) & target.has_mask
    boxes = torch.where((cut & ~target.crowd)[:, None], after.boxes(), target.boxes)
    stay = ~cut | target.crowd | ((left > 0) & (left >= visible * whole))
    return replace(target, boxes=boxes, masks=after)[stay]


def _patches(target: Target) -> Patches:
    """The masks of ``target`` as patches."""
    assert target.masks is not None
    return Patches.of(target.masks)


def _fitted(have: Sequence[int], size: Size, mode: Literal["stretch", "pad"]) -> Size:
    """The size that a picture of size ``have`` takes inside ``size``."""
    if mode == "stretch":
        return size
    factor = min(size[0] / have[0], size[1] / have[1])
    return min(size[0], max(1, round(have[0] * factor))), min(size[1], max(1, round(have[1] * factor)))


def _between(a: int, b: int, rng: np.random.Generator) -> int:
    """A whole number from ``a`` to ``b``, both included, whichever is larger."""
    return int(rng.integers(min(a, b), max(a, b) + 1))


def _contains(crops: Float[Tensor, "t 4"], points: Float[Tensor, "n 2"]) -> Tensor:
    """Which points lie inside which crop, ``(T, N)``."""
    return ((points[None] > crops[:, None, :2]) & (points[None] < crops[:, None, 2:])).all(2)


_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _saturation(factor: float) -> Float[np.ndarray, "4 4"]:
    """Blend of the colour with its luma."""
    matrix = np.eye(4)
    matrix[:3, :3] = factor * np.eye(3) + (1 - factor) * _LUMA
    return matrix


def _hue(angle: float) -> Float[np.ndarray, "4 4"]:
    """Turn of the colour about the grey axis by ``angle`` (radians), luma kept."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.inv(_YIQ) @ turn @ _YIQ
    return matrix
