"""3x3 convolutions by Winograd's algorithm (`maskkit.nn.winograd`) beside PyTorch's: time and rounding.

    python benchmarks/winograd.py

The shapes are those of a ResNet-50, and of the pyramid and heads on it, for 800 x 1088 pixels, and of small presets.
Times are the fastest of the rounds, processor time. Errors are the largest difference from float64, relative to the
largest output.
"""

import argparse

import torch
import torch.nn.functional as F

from common_timing import describe, in_turn
from maskkit.nn.winograd import convolve, transform

SHAPES = {
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    print("| layer | input | PyTorch, ms | Winograd | error of PyTorch | of Winograd |\n|" + " --- |" * 6)
    torch.manual_seed(0)
    for name, shape in SHAPES.items():
        channels = shape[1]
        images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        bias, kernels = torch.randn(channels), transform(weight)
        exact = F.conv2d(images[:1].double(), weight.double(), bias.double(), padding=1)

        def plain(images=images, weight=weight, bias=bias) -> torch.Tensor:
            with torch.inference_mode():
                return F.conv2d(images, weight, bias, padding=1)

        def fewer(images=images, kernels=kernels, bias=bias) -> torch.Tensor:
            with torch.inference_mode():
                return convolve(images, kernels, bias, 1)

        found, took = in_turn({"plain": plain, "fewer": fewer}, given.rounds)
        errors = [float((found[k][:1] - exact).abs().max() / exact.abs().max()) for k in ("plain", "fewer")]
        ratio = took["fewer"][0] / took["plain"][0]
        size = " x ".join(map(str, shape))
        print(f"| {name} | {size} | {1000 * took['plain'][0]:.1f} | {ratio:.2f} | {errors[0]:.0e} | {errors[1]:.0e} |")


if __name__ == "__main__":
    main()
