"""Atrous networks: backbones whose deep stages keep their resolution and look at every n-th neighbour instead."""

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
    body = backbone.body
    stages: Any = getattr(body, "blocks", None)
    if stages is None and hasattr(body, "layer4"):
        stages = [body.layer1, body.layer2, body.layer3, body.layer4]
    if stages is None:
        raise MaskkitError(f"only ResNets and networks like MobileNet can be dilated, not {type(body).__name__}")
    blocks = [[m for m in block.modules() if isinstance(m, nn.Conv2d)] for stage in stages for block in stage]
    strided = [any(conv.stride != (1, 1) for conv in convs) for convs in blocks]
    stride, dilation = 32 >> sum(strided), 1
    for convs, first in zip(blocks, strided, strict=True):
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
    return backbone


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
