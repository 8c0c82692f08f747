"""Small network parts."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """Modulated deformable 3x3 convolution (DCNv2; Zhu et al., 2019) in place of ``conv``, on torchvision's operator.

    A second convolution predicts for each of the nine taps an offset in x and y and a weight; it starts at zero, so
    that the layer starts as the ordinary convolution at half strength, as the paper does.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        geometry: Any = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        self.geometry = geometry
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(conv.out_channels))
        self.offset_mask = nn.Conv2d(conv.in_channels, 27, 3, **geometry)
        nn.init.zeros_(self.offset_mask.weight)
        assert self.offset_mask.bias is not None
        nn.init.zeros_(self.offset_mask.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Sampled and weighted 3x3 convolution."""
        offset, mask = self.offset_mask(x).split([18, 9], dim=1)  # (B, 18, H', W'), (B, 9, H', W')
        # the operator has no bf16 kernel on every device: it runs in the type of its weights
        return deform_conv2d(
            x.to(self.weight.dtype),
            offset.to(self.weight.dtype),
            self.weight,
            self.bias,
            mask=mask.to(self.weight.dtype).sigmoid(),
            **self.geometry,
        )
