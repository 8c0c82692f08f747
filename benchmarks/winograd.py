"""3x3 convolutions by Winograd's algorithm (`maskkit.nn.winograd`) beside PyTorch's: time and rounding.

    python benchmarks/winograd.py
    python benchmarks/winograd.py --training --threads 1

The shapes are those of a ResNet-50, and of the pyramid and heads on it, for 800 x 1088 pixels, and of small presets;
in ``--training``, forward and backward, those of two images of 480 x 640 and of small presets with four. Times are
medians of processor time. Errors are the largest difference from float64, relative to the largest output or
gradient of the kernel.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from common_timing import describe, in_turn
from maskkit.nn import winograd
from maskkit.nn.winograd import convolve, transform, use_winograd

INFERENCE = {
    "stage 2": (1, 128, 100, 136),
    "stage 3": (1, 256, 50, 68),
    "stage 4": (1, 512, 25, 34),
    "pyramid, stride 4": (1, 256, 200, 272),
    "pyramid, stride 8": (1, 256, 100, 136),
    "heads, stride 16": (1, 256, 50, 68),
    "heads, stride 64": (1, 256, 13, 17),
    "100 masks": (100, 256, 14, 14),
    "a small preset, stride 8": (1, 128, 40, 40),
}
TRAINING = {
    "stage 2": (2, 128, 60, 80),
    "stage 3": (2, 256, 30, 40),
    "stage 4": (2, 512, 15, 20),
    "pyramid, stride 4": (2, 256, 120, 160),
    "pyramid, stride 8": (2, 256, 60, 80),
    "heads, stride 32": (2, 256, 15, 20),
    "100 masks": (100, 256, 14, 14),
    "a small preset, stride 4": (4, 128, 80, 80),
    "a small preset, stride 8": (4, 128, 40, 40),
    "a small preset, stride 16": (4, 128, 20, 20),
    "a small preset, stride 32": (4, 128, 10, 10),
    "96 channels, stride 8": (4, 96, 40, 40),
    "64 channels, stride 4": (4, 64, 80, 80),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--training", action="store_true", help="forward and backward")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    print("| layer | input | PyTorch, ms | Winograd | error of PyTorch | of Winograd |\n|" + " --- |" * 6)
    torch.manual_seed(0)
    for name, shape in (TRAINING if given.training else INFERENCE).items():
        channels = shape[1]
        images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        calls, exact = (learning if given.training else inferring)(images, weight, torch.randn(channels))
        found, took = in_turn(calls, given.rounds)
        errors = [float((found[k] - exact).abs().max() / exact.abs().max()) for k in ("plain", "fewer")]
        ratio = took["fewer"][0] / took["plain"][0]
        size = " x ".join(map(str, shape))
        print(f"| {name} | {size} | {1000 * took['plain'][0]:.1f} | {ratio:.2f} | {errors[0]:.0e} | {errors[1]:.0e} |")


def inferring(images: Tensor, weight: Tensor, bias: Tensor) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """Both ways to the outputs, and the exact ones."""
    kernels = transform(weight)

    def plain() -> Tensor:
        with torch.inference_mode():
            return F.conv2d(images, weight, bias, padding=1)

    def fewer() -> Tensor:
        with torch.inference_mode():
            return convolve(images, kernels, bias, 1)

    return {"plain": plain, "fewer": fewer}, F.conv2d(images.double(), weight.double(), bias.double(), padding=1)


def learning(images: Tensor, weight: Tensor, bias: Tensor) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """Both ways to the gradient of ``weight``, with those of the images and the bias, and the exact one."""
    winograd.LEAST_IN = winograd.LEAST_OUT = winograd.LEAST_LEARNED = 1  # also where it does not pay
    given, outer = images.requires_grad_(), torch.randn_like(images)

    def layer() -> nn.Conv2d:
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv

    def call(conv: nn.Module) -> Tensor:
        conv.zero_grad()
        given.grad = None
        conv(given).backward(outer)
        return conv.get_parameter("weight").grad  # type: ignore[return-value]

    convs = {"plain": layer(), "fewer": use_winograd(layer(), learns=True)}
    exact = conv2d_weight(images.detach().double(), weight.shape, outer.double(), padding=1)
    return {name: lambda conv=conv: call(conv) for name, conv in convs.items()}, exact


if __name__ == "__main__":
    main()
