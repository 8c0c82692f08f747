"""3x3 convolutions with a quarter of the multiplications, in fp32 on CPUs: for inference and for training.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016): tiles of 6x6 inputs and the kernel are transformed, multiplied place by place, which is one matrix product for
each of the 36 places, and transformed back to 4x4 outputs. The gradient of the inputs is such a convolution too, with
the kernel turned by 180 degrees; that of the kernel is the adjoint of the three steps. With 256 channels each takes 0.5
to 0.65 of the time of oneDNN's convolution (``benchmarks/winograd.py``). The result differs in its rounding: about 1e-5
of the largest value.
"""

import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IS_FASTER = platform.machine() in ("x86_64", "AMD64")
"""Measured on x86 alone."""
LEAST_IN, LEAST_OUT, LEAST_TILES = 96, 64, 32
"""Input channels, output channels and 4x4 tiles below which the transforms cost more than they save."""
LEAST_LEARNED = 128
"""Tiles where each call has to transform the kernels, because they learn."""
TILES = 128
"""Tiles that are transformed at a time: more would not fit the cache, fewer are too little work for several cores."""

_G = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
_KERNEL = torch.kron(_G, _G).float()
"""``G`` of the paper on both axes: the 9 numbers of a kernel at the 36 places of a tile."""


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution that takes fewer multiplications in fp32 on a CPU; `use_winograd` makes it."""

    transformed: Float[Tensor, "36 c d"] | None = None
    """Of weights that do not change. No buffer: an exported graph has the kernel alone."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d _ _"]:
        """Output of the convolution."""
        pad, kernels, learns = int(self.padding[0]), self.transformed, torch.is_grad_enabled()
        height, width = input.shape[2] + 2 * pad - 2, input.shape[3] + 2 * pad - 2
        tiles = input.shape[0] * -(-height // 4) * -(-width // 4)
        if not _computes(input) or tiles < (LEAST_TILES if kernels is not None else LEAST_LEARNED):
            return super().forward(input)
        if kernels is None:
            return _Convolution.apply(input, self.weight, self.bias, pad)
        return super().forward(input) if learns else convolve(input, kernels, self.bias, pad)


def _computes(images: Tensor) -> bool:
    """Whether ``images`` are fp32 numbers on a CPU that are computed with, not traced."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu")
    return images.dtype == torch.float32 and images.device.type == "cpu" and not traced


def use_winograd(model: nn.Module, learns: bool = False) -> nn.Module:
    """Turn the convolutions of ``model`` for which it pays into `WinogradConv`, in place.

    Unless the model ``learns``, its weights must not change afterwards: they are transformed here, once, and take four
    times the memory of the 3x3 ones, which stay. The weights of one that learns are transformed in each call.
    """
    for module in model.modules():
        if profits(module):
            module.__class__ = WinogradConv
            module.transformed = None if learns else transform(module.weight)  # type: ignore[assignment, arg-type]
    return model


def profits(module: nn.Module) -> bool:
    """Whether it is a 3x3 convolution of stride 1, in fp32, with enough channels, on a processor where it pays."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module) in (nn.Conv2d, WinogradConv)
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


class _Convolution(torch.autograd.Function):
    """`convolve` with gradients. It keeps the images and the weight, as oneDNN's convolution does."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(images, weight)
        ctx.pad = pad
        return convolve(images, transform(weight), bias, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        to_images, to_weight, to_bias = ctx.needs_input_grad[:3]
        return (
            convolve(grad, transform(weight.transpose(0, 1), turned=True), None, 2 - ctx.pad) if to_images else None,
            kernel_gradient(images, grad, ctx.pad) if to_weight else None,
            grad.sum((0, 2, 3)) if to_bias else None,
            None,
        )


def transform(weight: Float[Tensor, "d c 3 3"], turned: bool = False) -> Float[Tensor, "36 c d"]:
    """The kernels at the 36 places of a tile, ``G w G^T``, which may be ``turned`` by 180 degrees before."""
    with torch.no_grad():
        outputs, inputs = weight.shape[:2]
        places = weight.permute(2, 3, 1, 0).reshape(9, inputs * outputs)
        return (_KERNEL.flip(1) if turned else _KERNEL).mm(places).view(36, inputs, outputs)


def convolve(
    images: Float[Tensor, "b c h w"], kernels: Float[Tensor, "36 c d"], bias: Float[Tensor, "d"] | None, pad: int
) -> Float[Tensor, "b d _ _"]:
    """The convolution by the ``kernels`` of `transform`, with ``pad`` zeros around; channels last in memory."""
    count, _, height, width = images.shape
    shape = (count, kernels.shape[2], height + 2 * pad - 2, width + 2 * pad - 2)
    padded = _padded(images, shape, pad)
    found = torch.empty(shape, memory_format=torch.channels_last)
    for some, rows in _pieces(shape):
        out = found.permute(0, 2, 3, 1)[some, rows]
        tiles = _outputs(_inputs(padded[some, rows.start : rows.stop + 2]), kernels)[:, : out.shape[1], : shape[3]]
        torch.add(tiles, bias, out=out) if bias is not None else out.copy_(tiles)
    return found


def kernel_gradient(
    images: Float[Tensor, "b c h w"], grad: Float[Tensor, "b d _ _"], pad: int
) -> Float[Tensor, "d c 3 3"]:
    """The gradient of the kernels of `convolve` by that of its outputs."""
    places = grad.new_zeros(36, grad.shape[1], images.shape[1])
    padded, to_tiles = _padded(images, grad.shape, pad), _padded(grad, grad.shape, overlap=0)
    for some, rows in _pieces(grad.shape):
        tiles = _inputs(padded[some, rows.start : rows.stop + 2]).view(36, -1, images.shape[1])
        places.baddbmm_(_spread(to_tiles[some, rows]).view(36, -1, grad.shape[1]).mT, tiles)
    found = _KERNEL.T.mm(places.view(36, -1))
    return found.view(3, 3, *places.shape[1:]).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _padded(images: Tensor, shape: Sequence[int], pad: int = 0, overlap: int = 2) -> Float[Tensor, "b _ _ c"]:
    """Channels last, with ``pad`` zeros before them and as many behind as whole tiles of outputs of ``shape`` take.

    Tiles of inputs ``overlap`` by two places, those of outputs do not.
    """
    bottom, right = (4 * -(-shape[i] // 4) + overlap - images.shape[i] - pad for i in (2, 3))
    return F.pad(images.permute(0, 2, 3, 1).contiguous(), (0, 0, pad, right, pad, bottom))


def _pieces(shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Which images and rows of outputs of ``shape`` (B, D, height, width) are computed at a time: `TILES` or fewer."""
    down, across = -(-shape[2] // 4), -(-shape[3] // 4)
    rows = -(-down // -(-down * across // TILES))  # of tiles, and several images where all rows fit
    several = max(1, TILES // (down * across))
    for i in range(0, shape[0], several):
        for top in range(0, down, rows):
            yield slice(i, i + several), slice(4 * top, 4 * min(top + rows, down))


def _inputs(part: Float[Tensor, "b h w c"]) -> Float[Tensor, "6 6 b down across c"]:
    """The inputs of whole tiles at their 36 places: ``B^T x B``."""
    count, height, width, channels = part.shape
    down, across = (height - 2) // 4, (width - 2) // 4
    half = part.new_empty(6, count, down, width, channels)
    _forward([part[:, i : i + 4 * down - 3 : 4] for i in range(6)], half.unbind(0))
    tiles = part.new_empty(6, 6, count, down, across, channels)
    _forward([half[:, :, :, i : i + 4 * across - 3 : 4] for i in range(6)], tiles.unbind(1))
    return tiles


def _outputs(tiles: Float[Tensor, "6 6 b down across c"], kernels: Float[Tensor, "36 c d"]) -> Float[Tensor, "b _ _ d"]:
    """The outputs of whole tiles: ``A^T (tiles * kernels) A``."""
    _, _, count, down, across, channels = tiles.shape
    outputs = kernels.shape[2]
    products = torch.bmm(tiles.view(36, -1, channels), kernels)  # (36, B down across, D)
    products = products.view(6, 6, count, down, across, outputs)
    half = tiles.new_empty(4, 6, count, down, across, outputs)
    _backward(products.unbind(0), half.unbind(0))
    found = tiles.new_empty(count, down, 4, across, 4, outputs)
    _backward(half.unbind(1), [found[:, :, :, :, j].permute(2, 0, 1, 3, 4) for j in range(4)])
    return found.view(count, 4 * down, 4 * across, outputs)


def _spread(part: Float[Tensor, "b h w d"]) -> Float[Tensor, "6 6 b down across d"]:
    """What outputs of whole tiles contribute to the 36 places: ``A y A^T``, the adjoint of ``A^T m A``."""
    count, height, width, outputs = part.shape
    half = part.new_empty(6, count, height // 4, width, outputs)
    _adjoint([part[:, i::4] for i in range(4)], half.unbind(0))
    tiles = part.new_empty(6, 6, count, height // 4, width // 4, outputs)
    _adjoint([half[:, :, :, i::4] for i in range(4)], tiles.unbind(1))
    return tiles


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


def _adjoint(y: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """``A y`` along one axis: four outputs to six places."""
    out[0].copy_(y[0])
    out[5].copy_(y[3])
    a, b = y[0] + y[2], y[1] + y[3]
    torch.add(a, b, out=out[1])
    torch.sub(a, b, out=out[2])
    torch.add(y[0], y[2], alpha=4, out=a)
    torch.add(y[1], y[3], alpha=4, out=b)
    torch.add(a, b, alpha=2, out=out[3])
    torch.add(a, b, alpha=-2, out=out[4])
