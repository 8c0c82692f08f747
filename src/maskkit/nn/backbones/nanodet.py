"""Backbone and pyramid of NanoDet-Plus-m (RangiLyu/nanodet, 2021), the built-in model's.

ShuffleNetV2, and a pyramid of ghost modules (Han et al., "GhostNet", CVPR 2020) down and up again. `NanoDetFeatures` is
both as a backbone for other methods, which begins where a detector of 80 classes ended.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.nn.backbones.shufflenet import Conv, ShuffleNetV2

NAME = "nanodet_plus_m"
"""Of `NanoDetFeatures` among the backbones."""
STAGE_WIDTHS, STAGE_UNITS = (116, 232, 464), (4, 8, 4)
"""Of the backbone, at strides 8, 16 and 32."""
WIDTH = 96
"""Channels of the pyramid."""
STRIDES = (4, 8, 16, 32)


class Separable(nn.Sequential):
    """A depthwise 5x5 and a pointwise convolution, both with activation."""

    def __init__(self, width: int, stride: int, norm: bool) -> None:
        super().__init__(Conv(width, width, 5, stride, depthwise=True, norm=norm), Conv(width, width, norm=norm))


class Ghost(nn.Module):
    """Half of the channels by a pointwise convolution, the other half by a depthwise one of the first."""

    def __init__(self, before: int, after: int, norm: bool, active: bool) -> None:
        super().__init__()
        half = after // 2
        self.primary = Conv(before, half, norm=norm, active=active)
        self.cheap = Conv(half, half, 3, depthwise=True, norm=norm, active=active)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Features."""
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)


class GhostBottleneck(nn.Module):
    """Two ghost modules beside a shortcut of convolutions; nothing is activated after the sum."""

    def __init__(self, before: int, after: int, norm: bool) -> None:
        super().__init__()
        self.ghost1 = Ghost(before, after, norm, active=True)
        self.ghost2 = Ghost(after, after, norm, active=False)
        self.shortcut = nn.Sequential(
            Conv(before, before, 5, depthwise=True, norm=norm, active=False),
            Conv(before, after, norm=norm, active=False),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Features."""
        return self.ghost2(self.ghost1(x)) + self.shortcut(x)


class GhostPan(nn.Module):
    """Levels of strides 8, 16, 32 and, with ``coarsest``, 64, and of one width, from features of strides 8, 16, 32."""

    def __init__(self, channels: Sequence[int], width: int, norm: bool, coarsest: bool = True) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(Conv(c, width, norm=norm) for c in channels)
        self.top_down = nn.ModuleList(GhostBottleneck(2 * width, width, norm) for _ in range(2))
        self.down = nn.ModuleList(Separable(width, 2, norm) for _ in range(2))
        self.bottom_up = nn.ModuleList(GhostBottleneck(2 * width, width, norm) for _ in range(2))
        self.coarsest = coarsest
        if coarsest:
            self.extra_in = Separable(width, 2, norm)
            self.extra_out = Separable(width, 2, norm)

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Three or four levels, finest first."""
        fine, middle, coarse = (reduce(f) for reduce, f in zip(self.reduce, features, strict=True))
        middle = self.top_down[0](torch.cat([double(coarse), middle], 1))
        p3 = self.top_down[1](torch.cat([double(middle), fine], 1))
        p4 = self.bottom_up[0](torch.cat([self.down[0](p3), middle], 1))
        p5 = self.bottom_up[1](torch.cat([self.down[1](p4), coarse], 1))
        return [p3, p4, p5, self.extra_in(coarse) + self.extra_out(p5)] if self.coarsest else [p3, p4, p5]


def double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
    """Twice as large, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class NanoDetFeatures(nn.Module):
    """Features of ``strides``: those of 8, 16 and 32 are levels of the pyramid, those of 4 come right after the stem.

    The parts have the names that they have in a NanoDet and in a NanoInst, whose checkpoints have their weights. With
    ``norm`` batch norm follows the convolutions; trained weights, into which it is folded, do not fit then.
    """

    def __init__(self, strides: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.name, self.strides = NAME, tuple(strides)
        self.backbone = ShuffleNetV2(STAGE_WIDTHS, STAGE_UNITS, norm)
        self.fpn = GhostPan(STAGE_WIDTHS, WIDTH, norm, coarsest=False)
        self.channels = {s: ShuffleNetV2.STEM if s == 4 else WIDTH for s in self.strides}

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Features of the strides that were asked for."""
        features = self.backbone(images)
        levels = self.fpn([features[s] for s in (8, 16, 32)])
        found = {4: features[4], **dict(zip((8, 16, 32), levels, strict=True))}
        return [found[s] for s in self.strides]
