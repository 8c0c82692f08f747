"""Small network parts."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """Deformable convolution in place of ``conv``, on torchvision's operator.

    A second convolution predicts for each tap an offset in y and x and, if ``modulated`` (DCNv2; Zhu et al., 2019), a
    weight; it starts at zero, so that the layer starts as the ordinary convolution, at half strength when modulated, as
    in the papers. ``bias`` gives it a bias of its own, whether ``conv`` has one or not (YOLACT++).
    """

    def __init__(self, conv: nn.Conv2d, *, modulated: bool = True, bias: bool = True) -> None:
        super().__init__()
        geometry: Any = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        self.geometry = geometry
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(conv.out_channels)) if bias else None
        height, width = conv.weight.shape[2:]
        self.taps = height * width
        self.modulated = modulated
        self.offset_mask = nn.Conv2d(conv.in_channels, (2 + modulated) * self.taps, (height, width), **geometry)
        nn.init.zeros_(self.offset_mask.weight)
        assert self.offset_mask.bias is not None
        nn.init.zeros_(self.offset_mask.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Sampled and weighted convolution."""
        # the operator has no bf16 kernel on every device: it runs in the type of its weights
        found = self.offset_mask(x).to(self.weight.dtype)
        offset, mask = found[:, : 2 * self.taps], found[:, 2 * self.taps :]  # (B, 2 taps, H', W'), (B, taps, H', W')
        return deform_conv2d(
            x.to(self.weight.dtype),
            offset,
            self.weight,
            self.bias,
            mask=mask.sigmoid() if self.modulated else None,
            **self.geometry,
        )


def linear(
    x: Float[Tensor, "*n c"],
    weight: Float[Tensor, "d c"],
    bias: Tensor | None,
    then: Literal["none", "relu", "gelu"] = "none",
) -> Float[Tensor, "*n d"]:
    """A linear layer, and the activation that comes ``then``.

    Where a processor infers in single precision, oneDNN computes both at once, as it does convolutions: up to a third
    faster than the product that `torch.nn.functional.linear` takes from MKL (`benchmarks/against_transformers.py`).
    """
    single = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if single and infers_on_cpu(x) and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, then, [], "none")
    x = F.linear(x, weight, bias)
    if then == "relu":
        return F.relu(x, inplace=True)
    return F.gelu(x) if then == "gelu" else x


def infers_on_cpu(x: Tensor) -> bool:
    """Whether a processor computes without keeping anything for gradients, or for a graph that is exported."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_exporting()


def in_pieces(
    layer: Callable[[Tensor], Tensor], rows: Float[Tensor, "*n c"], count: int = 1024
) -> Float[Tensor, "*n c"]:
    """``layer``, which treats every row alike, of ``count`` rows at a time.

    Processors are faster so, since what a feed-forward network holds in between stays in the cache. Where gradients are
    wanted that is kept anyhow, and all rows go through at once.
    """
    if not infers_on_cpu(rows):
        return layer(rows)
    return torch.cat([layer(piece) for piece in rows.flatten(0, -2).split(count)]).view(rows.shape)
