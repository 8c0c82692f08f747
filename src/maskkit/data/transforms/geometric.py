"""Random flips, expansions and crops, and a limit on the size of objects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskkit.data.transforms.interpolate import rounded
from maskkit.data.transforms.sample import Colour, Pixels, Sample, mirror, multiplied, random_corner, scale, window
from maskkit.geometry import boxes as box_math
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

SMALLEST = 4 / 550
"""Share of the input's side that a box must exceed to be trained on (YOLACT)."""


@dataclass(frozen=True)
class Flip:
    """Swaps left and right with probability ``p``."""

    p: float = 0.5

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample, mirrored or not."""
        return mirror(image, target, meta, axis=1) if rng.random() < self.p else (image, target, meta)


@dataclass(frozen=True)
class VerticalFlip:
    """Swaps top and bottom with probability ``p``."""

    p: float = 0.5

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample, mirrored or not."""
        return mirror(image, target, meta, axis=0) if rng.random() < self.p else (image, target, meta)


@dataclass(frozen=True)
class CropObject:
    """Crops a part of at most ``size`` (H, W) that holds one of the objects whole, as far as it fits.

    An image without objects is cropped anywhere.
    """

    size: tuple[int, int]

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The part; a smaller image stays as it is."""
        have = image.shape[1], image.shape[2]
        size = min(self.size[0], have[0]), min(self.size[1], have[1])
        if size == have:
            return image, target, meta
        objects = torch.nonzero(~target.crowd).flatten()
        box = [0.0, 0.0, have[1], have[0]]
        if len(objects):
            box = target.boxes[objects[int(rng.integers(len(objects)))]].tolist()
        x, y = (
            self._corner(low, high, part, length, rng)
            for low, high, part, length in ((box[0], box[2], size[1], have[1]), (box[1], box[3], size[0], have[0]))
        )
        return window(image, target, meta, x, y, size, (0, 0, 0))

    def _corner(self, low: float, high: float, part: int, length: int, rng: np.random.Generator) -> int:
        """A first pixel with which the part holds ``low`` to ``high``, or lies inside where that is longer."""
        first, last = sorted((math.ceil(high) - part, math.floor(low)))
        return int(rng.integers(max(first, 0), min(last, length - part) + 1))


@dataclass(frozen=True)
class CropOrPad:
    """Makes the image ``size`` (H, W) by a crop at random, or by ``fill`` around it."""

    size: tuple[int, int]
    fill: Colour = (0, 0, 0)

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample; all of it is image, as after `Expand`."""
        return window(image, target, meta, *random_corner(image.shape[1:], self.size, rng), self.size, self.fill)


@dataclass(frozen=True)
class Expand:
    """Places the image at random on a canvas of one colour (SSD), with probability ``p``.

    The canvas is up to ``max_ratio`` times as high and wide. If it would be longer than ``limit`` pixels, which is more
    than the input can show, the image is shrunk first; this bounds memory.
    """

    max_ratio: float = 4.0
    fill: Colour = (0, 0, 0)
    p: float = 0.5
    limit: int = 4096

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample, or the sample on its canvas."""
        if rng.random() >= self.p:
            return image, target, meta
        ratio = rng.uniform(1, self.max_ratio)
        shrink = self.limit / (ratio * max(image.shape[1:]))
        if shrink < 1:
            image, target, meta = scale(image, target, meta, multiplied(image, shrink))
            image = rounded(image)
        canvas = multiplied(image, ratio)
        return window(image, target, meta, *random_corner(image.shape[1:], canvas, rng), canvas, self.fill)


@dataclass(frozen=True)
class IoUCrop:
    """The random crop of SSD: at least 0.3 of each side, with an aspect ratio from 1/2 to 2.

    One of ``DEMANDS`` is drawn: None keeps the image, a number is the least IoU of the crop with one object. Objects
    whose centre is in the crop are kept, at least one unless the image has none; their boxes and masks are cut. If 50
    crops do not meet the demand, another one is drawn. Crowds do not count; their visible part is kept.
    """

    DEMANDS: ClassVar[tuple[float | None, ...]] = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample, or a crop of it."""
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
                return window(image, target[inside[0] | target.crowd], meta, x1, y1, (y2 - y1, x2 - x1), (0, 0, 0))
        return image, target, meta


@dataclass(frozen=True)
class DropSmall:
    """Drops objects whose box is not wider and higher than ``share`` of the input; crowds are kept."""

    share: float = SMALLEST

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample without its small objects."""
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        least = torch.tensor([image.shape[2], image.shape[1]]) * self.share
        return image, target[(sides > least).all(1) | target.crowd], meta


def _propose_crops(size: Sequence[int], rng: np.random.Generator) -> Float[Tensor, "t 4"]:
    """Up to 50 crops with integer edges inside an image of ``size`` (H, W)."""
    whole = np.array([size[1], size[0]])
    sides = np.maximum(1, np.floor(rng.uniform(0.3, 1, (50, 2)) * whole))
    corner = np.floor(rng.random((50, 2)) * (whole - sides + 1))
    aspect = sides[:, 1] / sides[:, 0]
    crops = np.concatenate([corner, corner + sides], 1)
    return torch.from_numpy(crops[(aspect >= 0.5) & (aspect <= 2)]).float()
