"""Atrous networks: backbones whose deep stages keep their resolution and look at every n-th neighbour instead."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.errors import MaskkitError
from maskkit.nn.backbone import Backbone


def dilate(backbone: Backbone, output_stride: int, *, first_block: bool = False) -> Backbone:
    """Take the strides beyond ``output_stride`` (4, 8 or 16) out of a backbone, in place, and dilate what follows.

    Features keep the keys that they have without dilation: with ``output_stride`` 8 those of 16 and 32 are as large as
    that of 8. The convolution that loses its stride keeps the dilation from before it, as in torchvision, TensorFlow;
    with ``first_block`` it takes the new one, as in Caffe's DeepLab and in PSPNet. Raises `MaskkitError` for networks
    that are not ResNets and not built of inverted residuals.
    """
    blocks = [block for stage in _stages(backbone) for block in stage]
    _take_out(blocks, 32 >> sum(map(_strides, blocks)), output_stride, first_block)
    return backbone


def last_stage(backbone: Backbone, atrous: bool) -> nn.Sequential:
    """A copy of the layers that lead from features of stride 16 to those of 32, of a backbone that is not dilated.

    With ``atrous`` they keep the resolution and are dilated by 2: every second row and column of what bottlenecks and
    inverted residuals give is then what they give otherwise.
    """
    stages = _stages(backbone)
    start = max(i for i, stage in enumerate(stages) if any(map(_strides, stage)))
    copy = deepcopy([block for stage in stages[start:] for block in stage])
    if atrous:
        _take_out(copy, 16, 16, False)
    return nn.Sequential(*copy)


def _stages(backbone: Backbone) -> Sequence[Any]:
    body = backbone.body
    if hasattr(body, "blocks"):
        return list(body.blocks)
    if hasattr(body, "layer4"):
        return [body.layer1, body.layer2, body.layer3, body.layer4]
    raise MaskkitError(f"only ResNets and networks like MobileNet can be dilated, not {type(body).__name__}")


def _convs(block: nn.Module) -> list[nn.Conv2d]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)]


def _strides(block: nn.Module) -> bool:
    return any(conv.stride != (1, 1) for conv in _convs(block))


def _take_out(blocks: Sequence[nn.Module], stride: int, output_stride: int, first_block: bool) -> None:
    """What `dilate` does to ``blocks`` that begin at ``stride``."""
    dilation = 1
    strided = list(map(_strides, blocks))
    for convs, first in zip(map(_convs, blocks), strided, strict=True):
        stride, before = stride * 2 if first else stride, dilation
        if stride <= output_stride:
            continue
        dilation = dilation * 2 if first else dilation
        for conv in convs:
            conv.stride = (1, 1)
            side = conv.kernel_size[0]
            rate = before if first and not first_block else dilation
            if side > 1:
                conv.dilation, conv.padding = (rate, rate), (rate * (side // 2),) * 2


class AtrousConv(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; ``rate`` is the dilation."""

    def __init__(self, before: int, after: int, kernel: int = 1, rate: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )


class LoneBatchNorm(nn.BatchNorm2d):
    """Batch norm of one value per channel and picture: a single picture is normalised by the running statistics."""

    def forward(self, x: Float[Tensor, "b c 1 1"]) -> Float[Tensor, "b c 1 1"]:
        """Normalised values."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class ScoreHead(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, dropout and a score per class: the last layers of PSPNet, auxiliary heads."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits."""
        return super().forward(x)
