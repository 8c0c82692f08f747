"""Atrous networks: backbones whose deep stages keep their resolution and look at every n-th neighbour instead."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.errors import MaskkitError
from maskkit.nn.backbones.backbone import Backbone


def dilate(backbone: Backbone, output_stride: int, *, first_block: bool = False) -> Backbone:
    """Take the strides beyond ``output_stride`` (4, 8 or 16) out of a backbone, in place, and dilate what follows.

    Features keep the keys that they have without dilation: with ``output_stride`` 8 those of 16 and 32 are as large as
    that of 8. The convolution that loses its stride keeps the dilation from before it, as in torchvision, TensorFlow;
    with ``first_block`` it takes the new one, as in Caffe's DeepLab and in PSPNet. Raises `MaskkitError` for networks
    that are not ResNets and not built of inverted residuals.
    """
    blocks = [block for stage in _stages(backbone) for block in stage]
    _take_out(blocks, 2 if hasattr(backbone.body, "blocks") else 4, output_stride, first_block)
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
    if hasattr(body, "layer1"):  # the last ones are left out where no feature is read from them
        return [stage for name, stage in body.named_children() if name.startswith("layer")]
    raise MaskkitError(f"only ResNets and networks like MobileNet can be dilated, not {type(body).__name__}")


def _convs(block: nn.Module) -> list[nn.Conv2d]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)]


def _strides(block: nn.Module) -> bool:
    return any(conv.stride != (1, 1) for conv in _convs(block))


class AtrousDepthwise(nn.Conv2d):
    """A 3x3 convolution of each channel by itself, dilated, with as many zeros around the image.

    Every ``rate``-th row and column together are an image that the filter sees without dilation. Processors train
    these ``rate`` x ``rate`` images up to four times as fast as the one (``benchmarks/atrous.py``).
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "AtrousDepthwise":
        """With the parameters of ``conv``."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features of the same size."""
        learning = x.device.type == "cpu" and self.training and torch.is_grad_enabled()
        return self.interleaved(x) if learning else super().forward(x)

    def interleaved(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same, computed from the interleaved images."""
        (b, c, h, w), rate = x.shape, self.dilation[0]
        x = F.pad(x, [0, -w % rate, 0, -h % rate]).permute(0, 2, 3, 1)
        rows, columns = x.shape[1] // rate, x.shape[2] // rate
        # channels stay last throughout: whole rows of them are copied, once on the way in and once out
        x = x.reshape(b, rows, rate, columns, rate, c).permute(0, 2, 4, 1, 3, 5)  # (B, r, r, H/r, W/r, C)
        x = x.reshape(-1, rows, columns, c).permute(0, 3, 1, 2)
        y = F.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2, groups=self.groups)
        y = y.permute(0, 2, 3, 1).reshape(b, rate, rate, rows, columns, c).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(b, rows * rate, columns * rate, c)
        return y.permute(0, 3, 1, 2)[:, :, :h, :w]  # (B, C, H, W)


def _take_out(blocks: Sequence[nn.Module], stride: int, output_stride: int, first_block: bool) -> None:
    """What `dilate` does to ``blocks`` that begin at ``stride``."""
    dilation = 1
    strided = list(map(_strides, blocks))
    for block, first in zip(blocks, strided, strict=True):
        stride, before = stride * 2 if first else stride, dilation
        if stride <= output_stride:
            continue
        dilation = dilation * 2 if first else dilation
        rate = before if first and not first_block else dilation
        for parent in list(block.modules()):
            for name, conv in parent.named_children():
                if isinstance(conv, nn.Conv2d):
                    setattr(parent, name, _dilated(conv, rate))


def _dilated(conv: nn.Conv2d, rate: int) -> nn.Conv2d:
    """``conv`` without its stride, dilated by ``rate`` where it has more than one tap."""
    conv.stride, side = (1, 1), conv.kernel_size[0]
    if side > 1:
        conv.dilation, conv.padding = (rate, rate), (rate * (side // 2),) * 2
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    return AtrousDepthwise.of(conv) if depthwise and conv.dilation != (1, 1) else conv


class AtrousConv(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; ``rate`` is the dilation."""

    def __init__(self, before: int, after: int, kernel: int = 1, rate: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )


class SeparableConv(nn.Sequential):
    """A 3x3 convolution of each channel by itself and a 1x1 convolution, without biases, each with norm and ReLU."""

    def __init__(self, before: int, after: int, rate: int = 1) -> None:
        kind = AtrousDepthwise if rate > 1 else nn.Conv2d
        super().__init__(
            kind(before, before, 3, padding=rate, dilation=rate, groups=before, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU(),
            *AtrousConv(before, after),
        )


class LoneBatchNorm(nn.BatchNorm2d):
    """Batch norm of one value per channel and image: a single image is normalised by the running statistics."""

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


class JoinedScoreHead(nn.Module):
    """Two 3x3 convolutions, joined with their input by a third, dropout and a score per class: mmsegmentation's FCN."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(AtrousConv(channels, width, 3), AtrousConv(width, width, 3))
        self.join = AtrousConv(channels + width, width, 3)
        self.score = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits."""
        return self.score(self.join(torch.cat([x, self.convs(x)], 1)))
