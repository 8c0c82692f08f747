"""A depthwise atrous convolution in training: PyTorch's operator against ours on interleaved images.

    python benchmarks/atrous.py --channels 384 --size 56

Forward and backward pass, four images, channels last; both give the same numbers.
"""

import argparse
from functools import partial

import torch
from torch import Tensor, nn

from common_timing import compare, describe
from maskkit.nn.dilation import AtrousDepthwise


def step(conv: nn.Module, features: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradients of a training step: of the features, which are returned, and of the filters."""
    x = features.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = conv(x)
    return torch.autograd.grad(y.float().square().sum(), [x, *conv.parameters()])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--size", type=int, default=56, help="height and width of the features")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    c, side = given.channels, given.size
    print(describe(given.threads))
    for rate in (2, 4):
        theirs = nn.Conv2d(c, c, 3, padding=rate, dilation=rate, groups=c, bias=False)
        theirs = theirs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ours = AtrousDepthwise.of(theirs)
        features = torch.randn(4, c, side, side).to(memory_format=torch.channels_last)
        for dtype in (torch.float32, torch.bfloat16):
            calls = {name: partial(step, conv, features, dtype) for name, conv in (("theirs", theirs), ("ours", ours))}
            compare(f"rate {rate}, {dtype}", calls, given.rounds)


if __name__ == "__main__":
    main()
