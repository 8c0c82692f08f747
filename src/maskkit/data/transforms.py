"""Random changes of a training image together with its boxes, masks and geometry.

An operation is a frozen dataclass that takes ``(image, target, meta, rng)`` and gives ``(image, target, meta)`` back.
All of them move pixels through three functions only, `_window`, `_mirror` and `_scale`, each of which carries the
image, the boxes, the masks, the semantic map, the saliency and ``meta.affine`` along, so that a point of the result is
always known in the original image. Every random number comes from ``rng``. Masks travel as `Patches`, which makes
them cheap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from maskkit.config import AugmentConfig, InputConfig
from maskkit.data.patches import Patches, Taps
from maskkit.geometry import boxes as box_math
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

Pixels = UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"]
"""RGB on 0..255: bytes as decoded, float after `Resize`, which does not round."""
Sample = tuple[Tensor, Target, ImageMeta]
Colour = tuple[float, float, float]
Size = tuple[int, int]
ResizeMode = Literal["stretch", "pad", "shorter"]

IGNORE = 255
"""The semantic label of pixels about which nothing is known."""
SMALLEST = 4 / 550
"""Share of the input's side that a box must exceed to be learnt from (YOLACT)."""

STRIP = 2**16
"""Pixels whose colours are changed at a time, so that the intermediate values stay in the cache."""


class Operation(Protocol):
    """What every transform is."""

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The changed sample; the arguments are left as they are."""
        ...


def train_ops(
    augment: AugmentConfig, input: InputConfig, partner: Callable[[np.random.Generator], Sample] | None = None
) -> list[Operation]:
    """The operations of a training, in the order of `AugmentConfig`'s fields; scale jitter replaces the resize.

    Photographs far larger than the input are shrunk first, which bounds time and memory and loses nothing.
    ``partner`` gives copy-paste its images; ``ValueError`` when copy-paste is on without one.
    """
    # The smallest crop is 0.3 of a side, so that four times the input shows all that the input could.
    limit = 4 * max(input.size)
    ops: list[Operation] = [Shrink(limit)]
    if augment.copy_paste > 0:
        if partner is None:
            raise ValueError("copy-paste needs a partner: a function that gives another training sample")
        ops.append(CopyPaste(augment.copy_paste, partner))
    if augment.photometric:
        ops.append(Photometric())
    if augment.expand > 1:
        ops.append(Expand(augment.expand, input.mean, limit=limit))
    if augment.iou_crop:
        ops.append(IoUCrop())
    if augment.flip > 0:
        ops.append(Flip(augment.flip))
    if augment.vertical_flip > 0:
        ops.append(VerticalFlip(augment.vertical_flip))
    if augment.scale_jitter is not None:
        ops.append(ScaleJitter(augment.scale_jitter, input.size, input.resize, input.mean))
    else:
        ops.append(Resize(input.size, input.resize, input.antialias, augment.short_sides))
    ops.append(DropSmall())
    return ops


def eval_ops(input: InputConfig) -> list[Operation]:
    """The operations of evaluation and prediction: the resize alone."""
    return [Resize(input.size, input.resize, input.antialias)]


def apply(ops: Sequence[Operation], sample: Sample, rng: np.random.Generator) -> Sample:
    """One operation after the other."""
    for op in ops:
        sample = op(*sample, rng)
    return sample


@dataclass(frozen=True)
class Resize:
    """Brings an image to the network's input size (H, W).

    ``stretch`` fills it; ``pad`` keeps the aspect ratio and pads right and bottom with zeros, ``meta.input_size`` then
    is the size without the padding; ``shorter`` brings the shorter side to ``size[0]``, or to one of ``short_sides``,
    unless the longer one would exceed ``size[1]``. The image is interpolated bilinearly in float and not rounded;
    without ``antialias`` that is YOLACT's own preprocessing.
    """

    size: Size
    mode: ResizeMode = "stretch"
    antialias: bool = False
    short_sides: tuple[int, ...] = ()

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The resized sample; ``rng`` is used only to choose among several ``short_sides``."""
        size = (int(rng.choice(self.short_sides)), self.size[1]) if self.short_sides else self.size
        fitted = _fitted(image.shape[1:], size, self.mode)
        image, target, meta = _scale(image, target, meta, fitted, self.antialias)
        if self.mode != "shorter" and fitted != self.size:
            image, target, meta = _window(image, target, meta, 0, 0, self.size, (0, 0, 0))
        return image, target, replace(meta, input_size=fitted)


@dataclass(frozen=True)
class Shrink:
    """Shrinks an image whose longer side has more than ``limit`` pixels to that, with antialiasing."""

    limit: int

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or smaller; nothing is drawn from ``rng``."""
        longer = max(image.shape[1:])
        if longer <= self.limit:
            return image, target, meta
        image, target, meta = _scale(image, target, meta, _times(image, self.limit / longer), antialias=True)
        return _rounded(image), target, meta


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., 2021): resize to a random multiple of ``size``, then crop or pad."""

    range: tuple[float, float]
    size: Size
    mode: ResizeMode = "stretch"
    fill: Colour = (0, 0, 0)

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The resized sample."""
        factor = rng.uniform(*self.range)
        size = (max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor)))
        fitted = _fitted(image.shape[1:], size, self.mode)
        return _window(*_scale(image, target, meta, fitted), *_corner(fitted, self.size, rng), self.size, self.fill)


@dataclass(frozen=True)
class Flip:
    """Swaps left and right with chance ``p``."""

    p: float = 0.5

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample or its mirror image."""
        return _mirror(image, target, meta, axis=1) if rng.random() < self.p else (image, target, meta)


@dataclass(frozen=True)
class VerticalFlip:
    """Swaps top and bottom with chance ``p``."""

    p: float = 0.5

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample or its mirror image."""
        return _mirror(image, target, meta, axis=0) if rng.random() < self.p else (image, target, meta)


@dataclass(frozen=True)
class Photometric:
    """The colour distortion of SSD (Liu et al., 2016): brightness, contrast, saturation, hue, each with chance 0.5.

    Saturation and hue are those of HSV, which scales with contrast; so it makes no difference that SSD sometimes
    applies the contrast last. Bytes come out.
    """

    brightness: float = 32.0
    """Largest summand on 0..255."""
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    """Largest angle in degrees."""

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample in other colours."""

        def perhaps(low: float, high: float, neutral: float) -> float:
            return rng.uniform(low, high) if rng.random() < 0.5 else neutral

        brightness = perhaps(-self.brightness, self.brightness, 0.0)
        contrast = perhaps(*self.contrast, 1.0)
        saturation = perhaps(*self.saturation, 1.0)
        hue = perhaps(-self.hue, self.hue, 0.0)
        strips = [
            _rounded(_recolour((strip + brightness).mul_(contrast), saturation, hue / 60))
            for strip in image.split(max(1, STRIP // image.shape[2]), dim=1)
        ]
        return torch.cat(strips, 1), target, meta


@dataclass(frozen=True)
class Expand:
    """Puts the image somewhere into a field of colour up to ``max_ratio`` times as high and wide (SSD), chance ``p``.

    A field longer than ``limit`` pixels would hold more than the input can show: there the image is shrunk first,
    which bounds memory whatever the size of the photographs.
    """

    max_ratio: float = 4.0
    fill: Colour = (0, 0, 0)
    p: float = 0.5
    limit: int = 4096

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or in its field."""
        if rng.random() >= self.p:
            return image, target, meta
        ratio = rng.uniform(1, self.max_ratio)
        shrink = self.limit / (ratio * max(image.shape[1:]))
        if shrink < 1:
            image, target, meta = _scale(image, target, meta, _times(image, shrink))
            image = _rounded(image)
        field = _times(image, ratio)
        return _window(image, target, meta, *_corner(image.shape[1:], field, rng), field, self.fill)


@dataclass(frozen=True)
class IoUCrop:
    """The random crop of SSD: sides of at least 0.3, an aspect ratio from 1/2 to 2.

    One of ``DEMANDS`` is drawn: None keeps the image, a number asks for an IoU of at least that much between the
    crop and one object. Objects whose centre lies in the crop stay, and there is at least one of them unless the
    image has none; their boxes and masks are cut. A demand that 50 crops in a row fail is drawn anew. Crowds have no
    say, and stay wherever a part of them is seen.
    """

    DEMANDS: ClassVar[tuple[float | None, ...]] = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or a crop of it."""
        objects = target.boxes[~target.crowd]
        centres = box_math.to_centres(target.boxes)[:, :2]
        while (demand := self.DEMANDS[rng.integers(len(self.DEMANDS))]) is not None:
            crops = _propose_crops(image.shape[1:], rng)
            inside = ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(2)  # (T, N)
            if len(objects):
                good = inside[:, ~target.crowd].any(1) & (box_math.iou(crops, objects).amax(1) >= demand)
                crops, inside = crops[good], inside[good]
            if len(crops):
                x1, y1, x2, y2 = (int(edge) for edge in crops[0])
                return _window(image, target[inside[0] | target.crowd], meta, x1, y1, (y2 - y1, x2 - x1), (0, 0, 0))
        return image, target, meta


@dataclass(frozen=True)
class CopyPaste:
    """Pastes objects of another image, with chance ``p`` (Ghiasi et al., 2021).

    The partner is fitted into the image at a random size and place, perhaps mirrored, and each of its objects whose
    mask is known comes over with chance 0.5. What lies beneath is cut: boxes are taken anew from what is left of the
    masks, and objects of which less than ``visible`` is left are dropped.
    """

    p: float
    partner: Callable[[np.random.Generator], Sample]
    scale: tuple[float, float] = (0.5, 1.25)
    visible: float = 0.1

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample as it is, or with guests."""
        if rng.random() >= self.p:
            return image, target, meta
        guest_image, guests, guest_meta = self.partner(rng)
        guests = guests[torch.from_numpy(rng.random(len(guests)) < 0.5) & guests.has_mask & ~guests.crowd]
        if not len(guests):
            return image, target, meta
        size = (image.shape[1], image.shape[2])
        factor = rng.uniform(*self.scale) * min(size[0] / guest_image.shape[1], size[1] / guest_image.shape[2])
        fitted = _times(guest_image, factor)
        sample = Flip()(*_scale(guest_image, guests, guest_meta, fitted), rng)
        guest_image, guests, _ = _window(*sample, *_corner(fitted, size, rng), size, (0, 0, 0))

        pasted = _patches(guests)
        cover = pasted.union()
        if target.masks is None:
            target = replace(target, masks=Patches.empty_of(len(target), size))
        host = _occlude(target, cover, self.visible)
        over = torch.from_numpy(cover)
        semantic = target.semantic
        if semantic is not None:
            semantic = torch.where(over, guests.semantic if guests.semantic is not None else IGNORE, semantic)
        saliency = target.saliency
        if saliency is not None:
            saliency = torch.where(over, guests.saliency if guests.saliency is not None else 1.0, saliency)
        joined = replace(
            host,
            boxes=torch.cat([host.boxes, pasted.boxes()]),
            labels=torch.cat([host.labels, guests.labels]),
            masks=_patches(host) + pasted,
            crowd=torch.cat([host.crowd, guests.crowd]),
            has_mask=torch.cat([host.has_mask, guests.has_mask]),
            semantic=semantic,
            saliency=saliency,
        )
        return torch.where(over, _rounded(guest_image), image), joined, meta


@dataclass(frozen=True)
class DropSmall:
    """Drops objects whose box is not wider and higher than ``share`` of the input; crowds stay."""

    share: float = SMALLEST

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample with the objects that can be learnt from."""
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        least = torch.tensor([image.shape[2], image.shape[1]]) * self.share
        return image, target[(sides > least).all(1) | target.crowd], meta


def _window(image: Tensor, target: Target, meta: ImageMeta, x: int, y: int, size: Size, fill: Colour) -> Sample:
    """The sample through a window of ``size`` (H, W) with its corner at (x, y), ``fill`` around the image."""
    seen = _cut(image, x, y, size, torch.tensor(fill))
    semantic = (
        _cut(target.semantic[None], x, y, size, torch.tensor([IGNORE]))[0] if target.semantic is not None else None
    )
    boxes = _clipped(target.boxes - torch.tensor([x, y, x, y]), size)
    masks = _patches(target).window(x, y, size) if target.masks is not None else None
    saliency = _cut(target.saliency[None], x, y, size, torch.zeros(1))[0] if target.saliency is not None else None
    moved = replace(target, boxes=boxes, masks=masks, semantic=semantic, saliency=saliency)
    return seen, _seen(moved), _followed(meta, size, (1, 1), (x, y))


def _cut(plane: Tensor, x: int, y: int, size: Size, fill: Tensor) -> Tensor:
    """The window of `_window` of a ``(C, H, W)`` tensor: a view where it lies inside."""
    height, width = size
    inside = plane[:, max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    if tuple(inside.shape[1:]) == size:
        return inside
    top, left = max(-y, 0), max(-x, 0)
    canvas = plane.new_empty(len(plane), height, width).copy_(fill[:, None, None])
    canvas[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return canvas


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
        saliency=target.saliency.flip(axis) if target.saliency is not None else None,
    )
    scale, shift = ((-1, 1), (length, 0)) if axis == 1 else ((1, -1), (0, length))
    return image.flip(axis + 1), turned, _followed(meta, size, scale, shift)


def _scale(image: Tensor, target: Target, meta: ImageMeta, size: Size, antialias: bool = False) -> Sample:
    """The sample at another resolution (H, W), the image as float."""
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
        masks=_patches(target).scale(size) if target.masks is not None else None,
        semantic=semantic,
        saliency=_bilinear(target.saliency[None], size)[0] if target.saliency is not None else None,
    )
    image = _smooth(image, size) if antialias else _bilinear(image, size)
    return image, _seen(scaled), _followed(meta, size, (1 / x, 1 / y), (0, 0))


def _bilinear(image: Pixels | Float[Tensor, "1 h w"], size: Size) -> Float[Tensor, "c h w"]:
    """What `torch.nn.functional.interpolate` makes of the image in float, but only the rows it reads become floats.

    From bytes of 640x640 to 320x320 that takes a fifth of the time, from 1280x1280 a fourteenth.
    """
    rows, columns = Taps(image.shape[1], size[0]), Taps(image.shape[2], size[1])
    first, second = (image.index_select(1, torch.from_numpy(i)).float() for i in (rows.first, rows.second))
    image = torch.lerp(first, second, torch.from_numpy(rows.weight)[:, None])  # (3, h, W)
    first, second = (image.index_select(2, torch.from_numpy(i)) for i in (columns.first, columns.second))
    return torch.lerp(first, second, torch.from_numpy(columns.weight))  # (3, h, w)


def _smooth(image: Pixels, size: Size) -> Float[Tensor, "3 h w"]:
    """The antialiased image: of bytes what Pillow makes of them, which is fast and what detectron2 trained with.

    Of floats one channel at a time, because a large photograph is much larger as floats.
    """
    if image.dtype == torch.uint8:
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
    return torch.cat([TF.resize(channel[None].float(), list(size), antialias=True) for channel in image])


def _rounded(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    return image.round().clamp(0, 255).to(torch.uint8)


def _clipped(boxes: Float[Tensor, "n 4"], size: Size) -> Float[Tensor, "n 4"]:
    """Boxes cut at the border of an image of ``size`` (H, W)."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([size[1], size[0], size[1], size[0]]))


def _followed(meta: ImageMeta, size: Size, scale: tuple[float, float], shift: tuple[float, float]) -> ImageMeta:
    """``meta`` after a change that maps a point p of the result to ``p * scale + shift`` of what was there before."""
    step = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]], [0, 0, 1]], np.float64)
    return replace(meta, input_size=size, affine=meta.affine @ step)


def _seen(target: Target) -> Target:
    """The objects still in the image: a box with an area and, where the mask is known and no crowd, a pixel of it."""
    stay = box_math.area(target.boxes) > 0
    if target.masks is not None:
        stay &= ~target.has_mask | target.crowd | (target.masks.areas() > 0)
    return target if bool(stay.all()) else target[stay]


def _occlude(target: Target, cover: Bool[np.ndarray, "h w"], visible: float) -> Target:
    """``target`` after something was laid over the pixels of ``cover``."""
    before = _patches(target)
    after = before.cut(cover)
    left, whole = after.areas(), before.areas()
    cut = target.has_mask & ~target.crowd & (left < whole)
    boxes = torch.where(cut[:, None], after.boxes(), target.boxes)
    stay = ~cut | (left > visible * whole)
    for i in (~target.has_mask & ~target.crowd).nonzero()[:, 0].tolist():
        x1, y1, x2, y2 = target.boxes[i].round().int().tolist()
        covered = cover[y1:y2, x1:x2]
        stay[i] = bool(covered.sum() <= (1 - visible) * covered.size)
    return replace(target, boxes=boxes, masks=after)[stay]


def _patches(target: Target) -> Patches:
    """The masks of ``target`` as patches."""
    assert target.masks is not None
    return Patches.of(target.masks)


def _fitted(have: Sequence[int], size: Size, mode: ResizeMode) -> Size:
    """The size that an image of size ``have`` takes inside ``size``."""
    if mode == "stretch":
        return size
    if mode == "shorter":
        factor = min(size[0] / min(have), size[1] / max(have))
        return max(1, int(have[0] * factor + 0.5)), max(1, int(have[1] * factor + 0.5))
    factor = min(size[0] / have[0], size[1] / have[1])
    return min(size[0], max(1, round(have[0] * factor))), min(size[1], max(1, round(have[1] * factor)))


def _times(image: Tensor, factor: float) -> Size:
    """The size of the image multiplied."""
    return max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor))


def _corner(have: Sequence[int], want: Size, rng: np.random.Generator) -> tuple[int, int]:
    """A random corner (x, y) for `_window`: inside where ``have`` exceeds ``want`` (H, W), around where it is less."""
    slack = (have[1] - want[1], have[0] - want[0])
    x, y = (int(rng.integers(min(s, 0), max(s, 0) + 1)) for s in slack)
    return x, y


def _propose_crops(size: Sequence[int], rng: np.random.Generator) -> Float[Tensor, "t 4"]:
    """Up to 50 crops with whole-numbered edges inside an image of ``size`` (H, W)."""
    whole = np.array([size[1], size[0]])
    sides = np.maximum(1, np.floor(rng.uniform(0.3, 1, (50, 2)) * whole))
    corner = np.floor(rng.random((50, 2)) * (whole - sides + 1))
    aspect = sides[:, 1] / sides[:, 0]
    crops = np.concatenate([corner, corner + sides], 1)
    return torch.from_numpy(crops[(aspect >= 0.5) & (aspect <= 2)]).float()


def _recolour(image: Float[Tensor, "3 h w"], saturation: float, turn: float) -> Float[Tensor, "3 h w"]:
    """The image with its HSV saturation multiplied and its hue turned by ``turn`` sixths of a circle."""
    if saturation == 1 and turn == 0:
        return image
    red, green, blue = image
    value = torch.maximum(torch.maximum(red, green), blue)
    if saturation != 1:
        image = torch.lerp(value, image, saturation)
    if turn == 0:
        return image
    red, green, blue = image
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sector = torch.where(value == red, green - blue, torch.where(value == green, blue - red, red - green))
    offset = torch.where(value == red, 0.0, torch.where(value == green, 2.0, 4.0))
    hue = sector.div_(chroma.clamp(min=1e-6)).add_(offset)
    turned = torch.empty_like(image)
    for channel, start in zip(turned, (5, 3, 1), strict=True):
        # A channel lies below the value by the chroma, except within two sixths of its own colour.
        place = (hue + (start + turn)).remainder_(6)
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=channel)
    return turned
