"""ShuffleNetV2 (Ma, Zhang, Zheng, Sun: "ShuffleNet V2", ECCV 2018), as NanoDet-Plus uses it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.1
"""Of LeakyReLU below zero, throughout NanoDet."""


class Conv(nn.Module):
    """A convolution that keeps the size at stride 1, then batch norm or a bias, then LeakyReLU where ``active``."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        norm: bool = False,
        active: bool = True,
    ) -> None:
        super().__init__()
        groups = before if depthwise else 1
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        nn.init.kaiming_normal_(self.conv.weight, a=SLOPE)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = nn.BatchNorm2d(after) if norm else None
        self.active = active

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Features."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.leaky_relu(x, SLOPE) if self.active else x


class Unit(nn.Module):
    """A block of ShuffleNetV2: two halves of the channels, one of them through convolutions, then shuffled.

    With ``stride`` 2 both halves come from the whole input, each through its own convolutions.
    """

    def __init__(self, before: int, after: int, stride: int, norm: bool) -> None:
        super().__init__()
        half = after // 2
        self.shortcut = None
        if stride == 2:
            self.shortcut = nn.Sequential(
                Conv(before, before, 3, 2, depthwise=True, norm=norm, active=False), Conv(before, half, norm=norm)
            )
        self.branch = nn.Sequential(
            Conv(before if stride == 2 else half, half, norm=norm),
            Conv(half, half, 3, stride, depthwise=True, norm=norm, active=False),
            Conv(half, half, norm=norm),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Features."""
        if self.shortcut is not None:
            return shuffle(torch.cat([self.shortcut(x), self.branch(x)], 1))
        kept, changed = x.chunk(2, 1)
        return shuffle(torch.cat([kept, self.branch(changed)], 1))


def shuffle(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The channels of the first and of the second half in turns."""
    return x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


class ShuffleNetV2(nn.Module):
    """Features ``{4: ..., 8: ..., 16: ..., 32: ...}`` by stride, those of 4 right after the pooling.

    ``widths`` and ``units`` are the channels and the blocks of the three stages. ``norm`` puts batch norm after every
    convolution; without it they have biases, into which it is folded in a trained network.
    """

    STEM = 24
    """Channels at stride 4."""

    def __init__(self, widths: Sequence[int], units: Sequence[int], norm: bool) -> None:
        super().__init__()
        self.channels = {4: self.STEM, **dict(zip((8, 16, 32), widths, strict=True))}
        self.stem = Conv(3, self.STEM, 3, 2, norm=norm)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList()
        before = self.STEM
        for width, count in zip(widths, units, strict=True):
            rest = (Unit(width, width, 1, norm) for _ in range(count - 1))
            self.stages.append(nn.Sequential(Unit(before, width, 2, norm), *rest))
            before = width

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[int, Tensor]:
        """Features by stride."""
        features = {4: self.pool(self.stem(images))}
        for stride, stage in zip((8, 16, 32), self.stages, strict=True):
            features[stride] = stage(features[stride // 2])
        return features
