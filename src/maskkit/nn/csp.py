"""Blocks of RTMDet's networks: a cross-stage partial layer around 5x5 depthwise convolutions.

Lyu et al.: "RTMDet: An Empirical Study of Designing Real-Time Object Detectors" (2022), section 3.2. The layer splits
its input by two 1x1 convolutions: one half goes through the blocks, the other past them (CSPNet; Wang et al., 2020).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def conv_unit(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size, but for its stride; batch norm; SiLU."""
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU(inplace=True))


class CspBlock(nn.Module):
    """A 3x3 convolution, a 5x5 depthwise and a 1x1 one; with ``residual`` the input is added, without activation."""

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.full = conv_unit(width, width, 3)
        self.depthwise = conv_unit(width, width, 5, groups=width)
        self.pointwise = conv_unit(width, width, 1)
        self.residual = residual

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape."""
        y = self.pointwise(self.depthwise(self.full(x)))
        return x + y if self.residual else y


class CspLayer(nn.Module):
    """``blocks`` blocks on half of the ``after`` channels, the other half past them, joined by a 1x1 convolution.

    With ``attention`` the joined channels are weighted before that by what a 1x1 convolution makes of their means.
    """

    def __init__(self, before: int, after: int, blocks: int, *, residual: bool = False, attention: bool = False):
        super().__init__()
        half = after // 2
        self.main = conv_unit(before, half, 1)
        self.short = conv_unit(before, half, 1)
        self.blocks = nn.Sequential(*(CspBlock(half, residual) for _ in range(blocks)))
        self.attention = nn.Conv2d(2 * half, 2 * half, 1) if attention else None
        self.final = conv_unit(2 * half, after, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Features of the same height and width."""
        joined = torch.cat([self.blocks(self.main(x)), self.short(x)], 1)
        if self.attention is not None:
            joined = joined * F.hardsigmoid(self.attention(joined.mean((2, 3), keepdim=True)))
        return self.final(joined)


class CspPyramid(nn.Module):
    """CSPNeXt-PAFPN: a path aggregation network that concatenates, and mixes by `CspLayer`.

    From coarse to fine a map is reduced to the channels of the next finer one, enlarged, put before it and mixed; from
    fine to coarse each result is halved, put before the *reduced* map of its level, and mixed. At the end every level
    gets ``width`` channels. ``channels`` are those of the backbone's maps, finest first; each map is twice as high and
    wide as the next. RTMDet's neck; Liu et al.: "Path Aggregation Network" (CVPR 2018) adds where this concatenates.
    """

    def __init__(self, channels: list[int], width: int, blocks: int) -> None:
        super().__init__()
        up = list(pairwise(channels))  # channels of a level and of the next coarser one
        down = up[::-1]
        self.reduce = nn.ModuleList(conv_unit(coarse, fine, 1) for fine, coarse in down)
        self.top_down = nn.ModuleList(CspLayer(2 * fine, fine, blocks) for fine, _ in down)
        self.halve = nn.ModuleList(conv_unit(fine, fine, 3, 2) for fine, _ in up)
        self.bottom_up = nn.ModuleList(CspLayer(2 * fine, coarse, blocks) for fine, coarse in up)
        self.output = nn.ModuleList(conv_unit(c, width, 3) for c in channels)

    def forward(self, features: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Levels from fine to coarse, each (B, width, h, w), of backbone features from fine to coarse."""
        x, reduced = features[-1], []
        for reduce, mix, finer in zip(self.reduce, self.top_down, features[-2::-1], strict=True):
            reduced.append(reduce(x))
            enlarged = F.interpolate(reduced[-1], scale_factor=2.0, mode="nearest")
            x = mix(torch.cat([enlarged, finer], 1))
        levels = [x]
        for halve, mix, coarser in zip(self.halve, self.bottom_up, reduced[::-1], strict=True):
            x = mix(torch.cat([halve(x), coarser], 1))
            levels.append(x)
        return [conv(level) for conv, level in zip(self.output, levels, strict=True)]
