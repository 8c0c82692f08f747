"""The pixel decoder of Mask2Former: an encoder with deformable attention over three levels of the backbone.

Cheng, Misra, Schwing, Kirillov, Girdhar: "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR
2022), section 3.2.2; the attention is that of Deformable DETR (Zhu et al., ICLR 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.nn.blocks import linear
from maskkit.nn.deform_attn import DeformableAttention, Size, portions
from maskkit.nn.positional_encoding import sine_encoding
from maskkit.ranges import Count, Whole


@dataclass(frozen=True)
class PixelDecoderConfig:
    """Knobs of `PixelDecoder`."""

    layers: Whole = 6
    """Layers of deformable attention."""
    feedforward: Count = 1024
    """Channels inside the feed-forward networks."""


class EncoderLayer(nn.Module):
    """Deformable attention between the cells of all levels, then a feed-forward network."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b n c"], where: Tensor, reference: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Update the cells; ``where`` is their positional encoding, ``reference`` their position in 0 to 1."""
        look = self.attention.sampler(x, sizes)
        done = []
        for some in portions(x):  # all of the layer for few cells, not one step after the other for all
            part = x[:, some]
            part = self.norm1(part + look(part + where[some], reference[some]))
            done.append(self.feed(part))
        return torch.cat(done, 1)

    def feed(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The feed-forward network, cell by cell."""
        inner = linear(x, self.linear1.weight, self.linear1.bias, "relu")
        return self.norm2(x + linear(inner, self.linear2.weight, self.linear2.bias))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a product, which is what it is where channels are last."""

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The same map with other channels."""
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PixelDecoder(nn.Module):
    """Deformable attention across the strides 32, 16, 8, and mask features at stride 4 (section 3.2.2)."""

    def __init__(self, channels: Sequence[int], width: int, heads: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(
            nn.Sequential(Pointwise(c, width), nn.GroupNorm(32, width)) for c in reversed(channels[1:])
        )
        self.level = nn.Parameter(torch.randn(3, width))
        self.layers = nn.ModuleList(EncoderLayer(width, heads, config.feedforward) for _ in range(config.layers))
        self.lateral = nn.Sequential(Pointwise(channels[0], width, bias=False), nn.GroupNorm(32, width))
        self.output = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(32, width))
        self.mask = Pointwise(width, width)
        for conv, _ in self.inputs:  # type: ignore[misc]
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        later: list[Any] = [self.lateral[0], self.output[0], self.mask]
        for conv in later:
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> tuple[Tensor, list[Tensor]]:
        """Mask features (B, C, H/4, W/4), and the levels of strides 32, 16, 8, each (B, C, h, w)."""
        inputs = [project(f) for project, f in zip(self.inputs, reversed(features[1:]), strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in inputs]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], 1)  # (B, N, C)
        where = torch.cat([sine_encoding(s, cells) + level for s, level in zip(sizes, self.level, strict=True)])
        reference = torch.cat([centres(s, cells) for s in sizes])[:, None]  # (N, 1, 2), alike on every level
        for layer in self.layers:
            cells = layer(cells, where, reference, sizes)
        counts = [h * w for h, w in sizes]
        # channels last, as they are: unflattened after the permutation, one image would have strides that hide it
        levels = [x.unflatten(1, s).permute(0, 3, 1, 2) for x, s in zip(cells.split(counts, 1), sizes, strict=True)]
        size = (features[0].shape[2], features[0].shape[3])
        fine = F.interpolate(levels[-1], size=size, mode="bilinear").add_(self.lateral(features[0]))
        return self.mask(F.relu(self.output(fine), inplace=True)), levels


def centres(size: Size, like: Tensor) -> Float[Tensor, "n 2"]:
    """Centres ``x y`` of the cells of a grid that spans 0 to 1."""
    y, x = ((torch.arange(cells, device=like.device) + 0.5) / cells for cells in size)
    return torch.stack([x.expand(y.shape[0], -1), y[:, None].expand(-1, x.shape[0])], 2).flatten(0, 1)
