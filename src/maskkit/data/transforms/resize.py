"""Transforms that resize an image to the network's input."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from maskkit.data.transforms.interpolate import rounded
from maskkit.data.transforms.sample import Colour, Pixels, Sample, Size, multiplied, random_corner, scale, window
from maskkit.geometry.resample import Rounding, fitted_size
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

ResizeMode = Literal["stretch", "pad", "shorter"]
Interpolation = Literal["bilinear", "cv2", "cv2_float"]


@dataclass(frozen=True)
class Resize:
    """Resizes an image to the network's input ``size`` (H, W).

    ``stretch`` fills the input. ``pad`` keeps the aspect ratio and pads right and bottom with zeros;
    ``meta.input_size`` is the size without the padding. ``shorter`` resizes the shorter side to ``size[0]``, or to one
    of ``short_sides``, unless the longer side would exceed ``size[1]``; ``rounding`` as in `InputConfig`. The
    interpolation is bilinear, in float and not rounded, as in YOLACT's preprocessing; with ``antialias`` it is
    Pillow's, with another ``interpolation`` OpenCV's.
    """

    size: Size
    mode: ResizeMode = "stretch"
    antialias: bool = False
    short_sides: tuple[int, ...] = ()
    interpolation: Interpolation = "bilinear"
    rounding: Rounding = "nearest"

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The resized sample; ``rng`` is used only to choose one of several ``short_sides``."""
        size = (int(rng.choice(self.short_sides)), self.size[1]) if self.short_sides else self.size
        fitted = fitted_size(image.shape[1:], size, self.mode, self.rounding)
        image, target, meta = scale(image, target, meta, fitted, "antialias" if self.antialias else self.interpolation)
        if self.mode != "shorter" and fitted != self.size:
            image, target, meta = window(image, target, meta, 0, 0, self.size, (0, 0, 0))
        return image, target, replace(meta, input_size=fitted)


@dataclass(frozen=True)
class Shrink:
    """Shrinks an image whose longer side exceeds ``limit`` pixels to that length, with antialiasing."""

    limit: int

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample, shrunk or not; ``rng`` is not used."""
        longer = max(image.shape[1:])
        if longer <= self.limit:
            return image, target, meta
        image, target, meta = scale(image, target, meta, multiplied(image, self.limit / longer), "antialias")
        return rounded(image), target, meta


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al., 2021): resize to a random multiple of ``size``, then crop or pad at random.

    Like the canvas of `Expand`, what ``fill`` covers is part of the training image and not padding, so that
    ``meta.input_size`` is all of ``size``.
    """

    range: tuple[float, float]
    size: Size
    mode: ResizeMode = "stretch"
    fill: Colour = (0, 0, 0)

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The resized sample."""
        factor = rng.uniform(*self.range)
        size = (max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor)))
        fitted = fitted_size(image.shape[1:], size, self.mode)
        return window(*scale(image, target, meta, fitted), *random_corner(fitted, self.size, rng), self.size, self.fill)
