"""Feature pyramid networks (Lin et al., 2017)."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Fpn(nn.Module):
    """The pyramid of the one-stage methods: P3 to P5 from C3 to C5, then ``extra`` levels by strided convolution.

    Top-down maps are resized bilinearly to the exact size of the level below, so any input size works. A ReLU follows
    the 3x3 output convolutions of P3 to P5; the extra levels have none.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, extra: int = 2) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.extra = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(extra))

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Levels from fine to coarse, each (B, width, h, w), of backbone features from fine to coarse."""
        merged = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            size = merged[i - 1].shape[-2:]
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=size, mode="bilinear", align_corners=False)
        levels = [F.relu(conv(m)) for conv, m in zip(self.output, merged, strict=True)]
        for conv in self.extra:
            levels.append(conv(levels[-1]))
        return levels
