"""3x3 convolutions with a quarter of the multiplications, for inference on CPUs.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016): tiles of 6x6 inputs and the kernel are transformed, multiplied place by place, which is one matrix product for
each of the 36 places, and transformed back to 4x4 outputs. With 256 channels this takes 0.55 to 0.65 of the time of
oneDNN's convolution (``benchmarks/winograd.py``). The result differs in its rounding: about 1e-5 of the largest output.
"""

import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.nn.blocks import infers_on_cpu

IS_FASTER = platform.machine() in ("x86_64", "AMD64")
"""Measured on x86 alone."""
LEAST_IN, LEAST_OUT, LEAST_TILES = 96, 64, 32
"""Input channels, output channels and 4x4 tiles below which the transforms cost more than they save."""
TILES = 512
"""Tiles that are transformed at a time: more would not fit the cache, fewer are too little work for several cores."""

_KERNEL = torch.tensor(
    [[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
).div(24)
"""``G`` of the paper."""


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution whose inference in fp32 on a CPU takes fewer multiplications; `use_winograd` makes it."""

    transformed: Float[Tensor, "36 c d"]
    """No buffer: an exported graph has the kernel alone."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Output of the convolution."""
        pad = int(self.padding[0])
        height, width = input.shape[2] + 2 * pad - 2, input.shape[3] + 2 * pad - 2
        plain = input.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not infers_on_cpu(input)
        if plain or input.shape[0] * -(-height // 4) * -(-width // 4) < LEAST_TILES:
            return super().forward(input)
        return convolve(input, self.transformed, self.bias, pad)


def use_winograd(model: nn.Module) -> nn.Module:
    """Turn the convolutions of ``model`` for which it pays into `WinogradConv`, in place. Their weights must not change
    afterwards.

    The transformed weights take four times the memory of the 3x3 ones, which stay.
    """
    for module in model.modules():
        if profits(module):
            module.__class__ = WinogradConv
            module.transformed = transform(module.weight)  # type: ignore[assignment, arg-type]
    return model


def profits(module: nn.Module) -> bool:
    """Whether it is a 3x3 convolution of stride 1, in fp32, with enough channels, on a processor where it pays."""
    return (
        type(module) is nn.Conv2d
        and IS_FASTER
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.padding in ((0, 0), (1, 1))
        and module.in_channels >= LEAST_IN
        and module.out_channels >= LEAST_OUT
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


def transform(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "36 c d"]:
    """The kernels at the 36 places of a tile, ``G w G^T``."""
    with torch.no_grad():
        found = torch.einsum("ia,jb,dcab->ijcd", _KERNEL, _KERNEL, weight.double())  # (6, 6, C, D)
        return found.flatten(0, 1).to(weight.dtype).contiguous()


def convolve(
    images: Float[Tensor, "b c h w"], kernels: Float[Tensor, "36 c d"], bias: Float[Tensor, "d"] | None, pad: int
) -> Float[Tensor, "b d _ _"]:
    """The convolution by the ``kernels`` of `transform`, with ``pad`` zeros around; channels last in memory."""
    count, _, height, width = images.shape
    height, width, outputs = height + 2 * pad - 2, width + 2 * pad - 2, kernels.shape[2]
    down, across = -(-height // 4), -(-width // 4)
    borders = (0, 0, pad, pad + 4 * across - width, pad, pad + 4 * down - height)
    padded = F.pad(images.permute(0, 2, 3, 1).contiguous(), borders)  # (B, 4 down + 2, 4 across + 2, C)
    found = images.new_empty(count, height, width, outputs)
    rows = -(-down // -(-down * across // TILES))  # of tiles at a time, and images where all rows fit
    several = max(1, TILES // (down * across))
    for i in range(0, count, several):
        for top in range(0, down, rows):
            part = padded[i : i + several, 4 * top : 4 * min(top + rows, down) + 2]
            out = found[i : i + several, 4 * top : 4 * (top + rows)]
            tiles = _outputs(part, kernels, across)[:, : out.shape[1], :width]
            torch.add(tiles, bias, out=out) if bias is not None else out.copy_(tiles)
    return found.permute(0, 3, 1, 2)


def _outputs(part: Float[Tensor, "b h w c"], kernels: Float[Tensor, "36 c d"], across: int) -> Float[Tensor, "b _ _ d"]:
    """The outputs of whole tiles: ``A^T ((B^T x B) * kernels) A``."""
    count, height, width, channels = part.shape
    down, outputs = (height - 2) // 4, kernels.shape[2]
    half = part.new_empty(6, count, down, width, channels)
    _forward([part[:, i : i + 4 * down - 3 : 4] for i in range(6)], half.unbind(0))
    tiles = part.new_empty(6, 6, count, down, across, channels)
    _forward([half[:, :, :, i : i + 4 * across - 3 : 4] for i in range(6)], tiles.unbind(1))
    products = torch.bmm(tiles.view(36, -1, channels), kernels)  # (36, B down across, D)
    products = products.view(6, 6, count, down, across, outputs)
    half = part.new_empty(4, 6, count, down, across, outputs)
    _backward(products.unbind(0), half.unbind(0))
    found = part.new_empty(count, down, 4, across, 4, outputs)
    _backward(half.unbind(1), [found[:, :, :, :, j].permute(2, 0, 1, 3, 4) for j in range(4)])
    return found.view(count, 4 * down, 4 * across, outputs)


def _forward(x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """``B^T x`` of the paper along one axis: six inputs to six places."""
    a, b = torch.add(x[4], x[2], alpha=-4), torch.add(x[3], x[1], alpha=-4)
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.sub(x[4], x[2], out=a)
    torch.sub(x[3], x[1], out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.add(a, b, alpha=-2, out=out[4])
    torch.add(x[4], x[2], alpha=-5, out=a)
    torch.add(a, x[0], alpha=4, out=out[0])
    torch.add(x[5], x[3], alpha=-5, out=b)
    torch.add(b, x[1], alpha=4, out=out[5])


def _backward(y: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """``A^T y`` of the paper along one axis: six places to four outputs."""
    a, b, c, d = y[1] + y[2], y[1] - y[2], y[3] + y[4], y[3] - y[4]
    torch.add(b, d, alpha=2, out=out[1])
    torch.add(a, c, alpha=4, out=out[2])
    torch.add(a.add_(y[0]), c, out=out[0])
    torch.add(b.add_(y[5]), d, alpha=8, out=out[3])
