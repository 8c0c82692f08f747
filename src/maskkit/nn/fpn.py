"""Feature pyramid networks (Lin et al., 2017)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Fpn(nn.Module):
    """Levels of one width from a backbone's features, and ``extra`` coarser ones. The defaults are YOLACT's pyramid.

    Top-down maps are resized to the exact size of the level below, so any input size works. With ``relu`` a ReLU
    follows the 3x3 output convolutions. Extra levels are made, each from the one before, by a strided 3x3 convolution
    (``conv``), by one with a ReLU before all but the first (``relu-conv``, FCOS and RetinaNet), or by dropping every
    second row and column (``pool``, Mask R-CNN); with ``extra_from_input`` the first of them is made of the backbone's
    last feature. ``norm`` makes a normalisation of so many channels, which follows
    lateral and output convolutions in place of their biases.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 256,
        extra: int = 2,
        *,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        relu: bool = True,
        extra_kind: Literal["conv", "relu-conv", "pool"] = "conv",
        extra_from_input: bool = False,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(c, width, 1, norm) for c in channels)
        self.output = nn.ModuleList(_conv(width, width, 3, norm) for _ in channels)
        self.extra = nn.ModuleList(
            nn.MaxPool2d(1, 2) if extra_kind == "pool" else nn.Conv2d(before, width, 3, stride=2, padding=1)
            for before in [channels[-1] if extra_from_input else width, *[width] * extra][:extra]
        )
        self.extra_from_input = extra_from_input
        self.interpolation = interpolation
        self.relu = relu
        self.relu_between = extra_kind == "relu-conv"

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Levels from fine to coarse, each (B, width, h, w), of backbone features from fine to coarse."""
        merged = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + self._resize(merged[i], (merged[i - 1].shape[2], merged[i - 1].shape[3]))
        levels = [conv(m) for conv, m in zip(self.output, merged, strict=True)]
        if self.relu:
            levels = [F.relu(level) for level in levels]
        for i, down in enumerate(self.extra):
            before = features[-1] if self.extra_from_input and i == 0 else levels[-1]
            levels.append(down(F.relu(before) if self.relu_between and i else before))
        return levels

    def _resize(self, level: Tensor, size: tuple[int, int]) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(level, size=size, mode="nearest")
        return F.interpolate(level, size=size, mode="bilinear", align_corners=False)


class Pafpn(Fpn):
    """mmdetection's path aggregation: behind the output convolutions a path climbs up again from the finest level.

    Each level is added to the stride-2 convolution of the sum below it, then a 3x3 convolution smooths each sum; there
    is no ReLU. Further levels are every second row and column of the one before. The finest level stays as it is.
    (PANet's own neck has group norm and ReLU, and smooths each level before the next one is made of it.)
    """

    def __init__(self, channels: Sequence[int], width: int = 256, extra: int = 1) -> None:
        super().__init__(channels, width, 0, interpolation="nearest", relu=False)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in channels[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in channels[1:])
        self.coarser = extra

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Levels from fine to coarse."""
        sums = super().forward(features)
        for i, down in enumerate(self.down):
            sums[i + 1] = sums[i + 1] + down(sums[i])
        levels = [sums[0], *(smooth(level) for smooth, level in zip(self.smooth, sums[1:], strict=True))]
        for _ in range(self.coarser):
            levels.append(F.max_pool2d(levels[-1], 1, 2))
        return levels


def _conv(before: int, width: int, kernel: int, norm: Callable[[int], nn.Module] | None) -> nn.Module:
    conv = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=norm is None)
    return conv if norm is None else nn.Sequential(conv, norm(width))
