"""CSPNeXt, the backbone of RTMDet (Lyu et al., 2022), in its five sizes. timm does not have it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.nn.csp import CspLayer, conv_unit

SIZES: dict[str, tuple[float, float]] = {
    "cspnext_tiny": (0.375, 0.167),
    "cspnext_s": (0.5, 0.33),
    "cspnext_m": (0.75, 0.67),
    "cspnext_l": (1.0, 1.0),
    "cspnext_x": (1.25, 1.33),
}
"""Factors of width and depth by the network's name."""
WIDTHS, DEPTHS = (64, 128, 256, 512, 1024), (3, 6, 6, 3)
"""Channels of stem and stages, and blocks of the stages, of the size l."""
STRIDES = (4, 8, 16, 32)


class CspNext(nn.Module):
    """A stem of three 3x3 convolutions and four stages; `forward` gives the maps of ``strides``, finest first.

    A stage halves the map by a 3x3 convolution and goes on with a `CspLayer` with channel attention. In the last one
    max pools of three sizes come before it (SPP), and its blocks do not add their input.
    """

    def __init__(self, name: str, strides: Sequence[int]) -> None:
        super().__init__()
        wide, deep = SIZES[name]
        self.name, self.strides = name, tuple(strides)
        first, *widths = (int(width * wide) for width in WIDTHS)
        stem = (3, first // 2, first // 2, first)
        self.stem = nn.Sequential(*(conv_unit(stem[i], stem[i + 1], 3, 1 if i else 2) for i in range(3)))
        self.stages = nn.ModuleList()
        before = first
        for i, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True)):
            last = i == len(DEPTHS) - 1
            layer = CspLayer(width, width, max(round(depth * deep), 1), residual=not last, attention=True)
            pool = [PyramidPool(width)] if last else []
            self.stages.append(nn.Sequential(conv_unit(before, width, 3, 2), *pool, layer))
            before = width
        self.channels = {stride: width for stride, width in zip(STRIDES, widths, strict=True) if stride in strides}

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Features of the strides that were asked for."""
        x, found = self.stem(images), []
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            x = stage(x)
            if stride in self.strides:
                found.append(x)
        return found


class PyramidPool(nn.Module):
    """A map with half the channels beside its maxima over 5x5, 9x9 and 13x13 cells; 1x1 convolutions around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = conv_unit(width, width // 2, 1)
        self.join = conv_unit(width // 2 * 4, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape."""
        maps = [self.reduce(x)]
        for _ in range(3):  # two pools of 5x5 in a row reach over 9x9, three over 13x13
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.join(torch.cat(maps, 1))
