"""Deformable attention on a CPU: values gathered by ``grid_sample`` against weighted sums of table rows.

    python benchmarks/deformable.py --size 448 --batch 4 --width 128

One layer of Mask2Former's pixel decoder, without the projections: every cell of strides 8, 16, 32 reads four places
on each level for each of eight heads. Forward pass only, and with gradients.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from common_timing import compare, describe
from maskkit.nn.deform_attn import Size, sample_by_grid, sample_by_rows


def forward(sample: Callable[..., Tensor], leaves: list[Tensor], sizes: list[Size]) -> Tensor:
    """The sums, in inference."""
    with torch.no_grad():
        return sample(*leaves, sizes)


def learn(sample: Callable[..., Tensor], leaves: list[Tensor], sizes: list[Size]) -> Tensor:
    """The sums, with their gradients computed."""
    seen = sample(*(leaf.requires_grad_() for leaf in leaves), sizes)
    torch.autograd.grad(seen.square().sum(), leaves)
    return seen.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=448, help="side of the image")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help="channels, of eight heads together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(describe(given.threads))
    sizes: list[Size] = [(given.size // stride,) * 2 for stride in (32, 16, 8)]
    cells = sum(h * w for h, w in sizes)
    extent = torch.tensor([side for side, _ in sizes])[:, None]  # squares: the same for x and y
    places = torch.rand(2, given.batch, cells, 8, 3, 4) * extent
    weights = torch.rand(given.batch, cells, 8, 12).softmax(3).unflatten(3, (3, 4))
    leaves = [torch.randn(given.batch, cells, 8, given.width // 8), places, weights]
    for what in (forward, learn):
        ways = {"grid_sample": sample_by_grid, "table rows": sample_by_rows}
        calls = {name: partial(what, sample, leaves, sizes) for name, sample in ways.items()}
        compare(what.__name__, calls, given.rounds)


if __name__ == "__main__":
    main()
