"""ResNet-38, wide and shallow (Wu, Shen, van den Hengel: "Wider or Deeper", 2016), as in PSA and EPS.

Its blocks are pre-activation blocks; the stride stays at 8, and the last three stages are dilated instead.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Stage:
    """One stage of ``blocks`` blocks with convolutions of ``widths`` channels; stride and the first of the
    ``dilations`` are those of the first block."""

    def __init__(
        self, blocks: int, widths: Sequence[int], stride: int = 1, dilations: tuple[int, int] = (1, 1), drop: float = 0
    ) -> None:
        self.blocks, self.widths, self.stride, self.dilations, self.drop = blocks, widths, stride, dilations, drop


STAGES = (
    Stage(3, (128, 128), stride=2),
    Stage(3, (256, 256), stride=2),
    Stage(6, (512, 512), stride=2),
    Stage(3, (512, 1024), dilations=(1, 2)),
    Stage(1, (512, 1024, 2048), dilations=(1, 4), drop=0.3),
    Stage(1, (1024, 2048, 4096), dilations=(1, 4), drop=0.5),
)
"""The paper's network, after its stem of 64 channels."""


class WideBlock(nn.Module):
    """Batch norm, ReLU and convolution for each width: two of 3x3, or three of 1x1, 3x3, 1x1 with dropout between.

    The shortcut is the input or, where the shape changes, a 1x1 convolution of the first activation.
    """

    def __init__(
        self, before: int, widths: Sequence[int], stride: int, dilations: tuple[int, int], drop: float
    ) -> None:
        super().__init__()
        kernels = (3, 3) if len(widths) == 2 else (1, 3, 1)
        rates = (*dilations, 1)
        steps = (stride, 1, 1)
        channels = list(pairwise((before, *widths)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(a) for a, _ in channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, s, padding=d * (k // 2), dilation=d, bias=False)
            for (a, b), k, s, d in zip(channels, kernels, steps, rates, strict=False)
        )
        same = before == widths[-1] and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, widths[-1], 1, stride, bias=False)
        self.drop = nn.Dropout2d(drop)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Output of the block."""
        y = F.relu(self.norms[0](x))
        short = x if self.shortcut is None else self.shortcut(y)
        y = self.convs[0](y)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(self.drop(F.relu(norm(y))))
        return short + y


class Resnet38(nn.Module):
    """The network without its classifier; `forward` gives ``{8: (B, 4096, H/8, W/8)}``.

    ``norm="frozen"`` keeps batch norm in evaluation mode without gradients. With ``frozen_stride`` the stem and the
    stages up to this stride are frozen.
    """

    def __init__(self, norm: str = "frozen", frozen_stride: int = 0, stages: Sequence[Stage] = STAGES) -> None:
        super().__init__()
        self.norm = norm
        self.stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        before, stride = 64, 1
        for stage in stages:
            blocks = nn.Sequential()
            for i in range(stage.blocks):
                first, second = stage.dilations
                rates = (first if i == 0 else second, second)
                blocks.append(WideBlock(before, stage.widths, stage.stride if i == 0 else 1, rates, stage.drop))
                before = stage.widths[-1]
            stride *= stage.stride
            if stride <= frozen_stride:
                self.stem.requires_grad_(False)
                blocks.requires_grad_(False)
            self.stages.append(blocks)
        self.last_norm = nn.BatchNorm2d(before)
        self.channels = {stride: before}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d) and norm == "frozen":
                module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Resnet38":
        """Set the mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[int, Tensor]:
        """The last features, by their stride."""
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        (stride,) = self.channels
        return {stride: F.relu(self.last_norm(x))}
