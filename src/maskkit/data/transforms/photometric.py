"""Random changes of the colours."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskkit.data.transforms.interpolate import rounded
from maskkit.data.transforms.sample import Pixels, Sample
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

STRIP = 2**16
"""Pixels whose colours are changed at a time, so that the intermediate values stay in the cache."""


@dataclass(frozen=True)
class Photometric:
    """The colour distortion of SSD (Liu et al., 2016).

    Brightness, contrast, saturation and hue change with probability 0.5 each. Saturation and hue are those
    of HSV. HSV scales with contrast, so the result does not depend on whether contrast is applied first or last, which
    SSD randomises. The result is bytes.
    """

    brightness: float = 32.0
    """Largest change on 0..255."""
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    """Largest change in degrees."""

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample with changed colours."""

        def draw(low: float, high: float, neutral: float) -> float:
            return rng.uniform(low, high) if rng.random() < 0.5 else neutral

        brightness = draw(-self.brightness, self.brightness, 0.0)
        contrast = draw(*self.contrast, 1.0)
        saturation = draw(*self.saturation, 1.0)
        hue = draw(-self.hue, self.hue, 0.0)
        strips = [
            rounded(_recolour((strip + brightness).mul_(contrast), saturation, hue / 60))
            for strip in image.split(max(1, STRIP // image.shape[2]), dim=1)
        ]
        return torch.cat(strips, 1), target, meta


def _recolour(image: Float[Tensor, "3 h w"], saturation: float, turn: float) -> Float[Tensor, "3 h w"]:
    """The image with its HSV saturation multiplied and its hue rotated by ``turn`` sixths of a circle."""
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
        # A channel is the value minus the chroma, except within two sixths of its own colour.
        place = (hue + (start + turn)).remainder_(6)
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=channel)
    return turned
