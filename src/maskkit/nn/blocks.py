"""Building blocks of networks: deformable convolution, linear layers that are fast on CPUs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from maskkit.errors import MaskkitError


class DeformConv(nn.Module):
    """Deformable convolution that replaces ``conv``, by torchvision's operator.

    A second convolution predicts an offset in y and x for each kernel element and, if ``modulated`` (DCNv2; Zhu et al.,
    2019), a weight. It is initialised with zeros, so that the layer starts as the ordinary convolution, times one half
    if modulated, as in the papers. ``bias`` adds a bias, whether or not ``conv`` has one (YOLACT++).
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
        """Output of the convolution at the sampled positions."""
        # not every device has a bf16 kernel of the operator, so it runs in the dtype of its weights
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


def deform_stages(body: Any, *, every: int = 1, modulated: bool = True, bias: bool = True) -> None:
    """Deformable convolution in the stages C3 to C5 of a ResNet: the 3x3 of every ``every``-th block.

    Raises `MaskkitError` for another network.
    """
    stages = [getattr(body, f"layer{number}", None) for number in (2, 3, 4)]
    if None in stages:
        raise MaskkitError(
            "deformable convolution is for ResNets: set --model.backbone.name resnet50, or leave --model.deformable out"
        )
    for stage in stages:
        for block in cast(nn.Sequential, stage)[::every]:
            block.conv2 = DeformConv(cast(nn.Conv2d, block.conv2), modulated=modulated, bias=bias)


def linear(
    x: Float[Tensor, "*n c"],
    weight: Float[Tensor, "d c"],
    bias: Tensor | None,
    then: Literal["none", "relu", "gelu"] = "none",
) -> Float[Tensor, "*n d"]:
    """A linear layer followed by the activation ``then``.

    In fp32 inference on a CPU, oneDNN computes both at once, up to a third faster than `torch.nn.functional.linear`,
    which uses MKL (``benchmarks/peers.py``).
    """
    single = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if single and infers_on_cpu(x) and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, then, [], "none")
    x = F.linear(x, weight, bias)
    if then == "relu":
        return F.relu(x, inplace=True)
    return F.gelu(x) if then == "gelu" else x


def infers_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is on a CPU, outside training and export."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_exporting()


def may_learn() -> bool:
    """Whether a loss may follow. In inference mode it cannot, and outputs that it alone reads are not computed."""
    return not torch.is_inference_mode_enabled()


def in_pieces(
    layer: Callable[[Tensor], Tensor], rows: Float[Tensor, "*n c"], count: int = 1024
) -> Float[Tensor, "*n c"]:
    """Apply ``layer``, which treats rows independently, to ``count`` rows at a time.

    This is faster on CPUs, since the intermediate results of a feed-forward network then stay in the cache. With
    gradients they have to be kept anyway, and all rows go through at once.
    """
    if not infers_on_cpu(rows):
        return layer(rows)
    return torch.cat([layer(piece) for piece in rows.flatten(0, -2).split(count)]).view(rows.shape)


def image_of(rows: Shaped[Tensor, "b m"]) -> Int[Tensor, "n"]:
    """The image of each of the B M rows, image by image."""
    return torch.arange(rows.shape[0], device=rows.device)[:, None].expand(rows.shape).flatten()


def numbers(values: Sequence[int], like: Tensor) -> Float[Tensor, "n"]:
    """``values`` as a tensor beside ``like``; in an exported graph they may be sizes that it leaves open."""
    if torch.compiler.is_exporting():
        return torch.stack([torch.full((), value, dtype=like.dtype, device=like.device) for value in values])
    return like.new_tensor(values)
