"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021), in plain torch.

A query attends to a few sampling points instead of to every cell: each head predicts ``points`` offsets on each level
and a weight for each. The output is the weighted sum of the values at the sampling points, interpolated bilinearly,
with zeros outside the maps.

Inference on a CPU computes it as a weighted sum of table rows (`sample_by_rows`): the projected values are a table
with a row of C / M numbers for every cell and head, of which each output needs the four rows around every sampling
point. Nothing is rearranged, and whole rows are read, where ``grid_sample`` gathers single numbers that lie a whole map
apart. The gradients of ``embedding_bag``, however, take several times as long as those of ``grid_sample``, which
training therefore uses (``benchmarks/deformable.py``).
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.nn.blocks import infers_on_cpu, linear, numbers

Size = tuple[int, int]

_AT_A_TIME = 1024
"""Queries that `portions` puts together on a CPU."""


class DeformableAttention(nn.Module):
    """Attention of queries to ``levels`` maps, whose cells are concatenated."""

    def __init__(self, width: int, heads: int = 8, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.reset()

    def reset(self) -> None:
        """Initialise: each head looks in a direction of its own, 1 to ``points`` cells away, with equal weights."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        far = torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            first = (direction[:, None, None] * far).expand(-1, self.levels, -1, -1)  # (M, L, P, 2)
            self.offsets.bias.copy_(first.flatten())
        for parameter in (self.offsets.weight, *self.weights.parameters(), self.value.bias, self.output.bias):
            nn.init.zeros_(parameter)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        reference: Float[Tensor, "*b q l 2"],
        cells: Float[Tensor, "b n c"],
        sizes: Sequence[Size],
    ) -> Float[Tensor, "b q c"]:
        """Output for queries with ``reference`` points ``x y``, from 0 to 1 on every level.

        ``cells`` are those of all levels, one level after the other, row by row; ``sizes`` are the levels' (H, W).
        """
        look = self.sampler(cells, sizes)
        return torch.cat([look(query[:, some], reference[..., some, :, :]) for some in portions(query)], 1)

    def sampler(self, cells: Float[Tensor, "b n c"], sizes: Sequence[Size]) -> Callable[[Tensor, Tensor], Tensor]:
        """Project ``cells`` once; return `forward` as a function of queries and their reference points."""
        values = linear(cells, self.value.weight, self.value.bias).unflatten(2, (self.heads, -1))  # (B, N, M, C / M)
        extent = torch.stack([numbers((w, h), cells) for h, w in sizes])
        # two projections of the same queries are faster as one; x, y and weights of all places lie side by side
        count = self.heads * self.levels * self.points
        place = torch.arange(2 * count, device=cells.device).view(-1, 2).T.flatten()
        weight, bias = (
            torch.cat([o[place], w]) for o, w in zip(self.offsets.parameters(), self.weights.parameters(), strict=True)
        )
        sample = sample_by_grid
        if infers_on_cpu(cells):
            values, sample = tabulate(values, sizes), sum_rows

        def look(query: Float[Tensor, "b q c"], reference: Float[Tensor, "*b q l 2"]) -> Float[Tensor, "b q c"]:
            around = (reference * extent).movedim(-1, 0)  # (2, *B, Q, L)
            around = around[..., None, :, None].expand(*around.shape[:-1], self.heads, -1, self.points).flatten(-3)
            *offsets, shares = linear(query, weight, bias).chunk(3, 2)  # (B, Q, M L P) each
            shares = shares.unflatten(2, (self.heads, -1)).mT.softmax(2).mT  # (B, Q, M, L P); slow along the last axis
            places = torch.stack([at + off for at, off in zip(around, offsets, strict=True)])
            parts = (self.heads, self.levels, self.points)
            seen = sample(values, places.unflatten(3, parts), shares.unflatten(3, parts[1:]), sizes)
            return linear(seen, self.output.weight, self.output.bias)

        return look


def portions(queries: Float[Tensor, "b q c"]) -> list[slice]:
    """Slices of queries to process together: few at a time on CPUs, so that the intermediates stay in the cache."""
    total = queries.shape[1]
    count = _AT_A_TIME if infers_on_cpu(queries) else total
    return [slice(first, first + count) for first in range(0, total, count)]


def sample_by_grid(
    values: Float[Tensor, "b n m d"],
    places: Float[Tensor, "2 b q m l p"],
    weights: Float[Tensor, "b q m l p"],
    sizes: Sequence[Size],
) -> Float[Tensor, "b q c"]:
    """Weighted sums of ``values`` interpolated at ``places``, x and y in cells from the corner of the level.

    By ``grid_sample``, level by level, which is fast on accelerators and known to every exported runtime.
    """
    maps = values.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in sizes], 2)  # (BM, D, hw) each
    total = values.new_zeros(())
    for level, (cells, (h, w)) in enumerate(zip(maps, sizes, strict=True)):
        grid = places[..., level, :].movedim(0, -1) * (2 / numbers((w, h), places)) - 1  # (B, Q, M, P, 2)
        found = F.grid_sample(cells.unflatten(2, (h, w)), grid.transpose(1, 2).flatten(0, 1), align_corners=False)
        total = total + (found * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(3)  # (BM, D, Q)
    return total.unflatten(0, (values.shape[0], -1)).permute(0, 3, 1, 2).flatten(2)


def sample_by_rows(
    values: Float[Tensor, "b n m d"],
    places: Float[Tensor, "2 b q m l p"],
    weights: Float[Tensor, "b q m l p"],
    sizes: Sequence[Size],
) -> Float[Tensor, "b q c"]:
    """The same function as `sample_by_grid`, by weighted sums of table rows."""
    return sum_rows(tabulate(values, sizes), places, weights, sizes)


def tabulate(values: Float[Tensor, "b n m d"], sizes: Sequence[Size]) -> Float[Tensor, "b k m d"]:
    """The cells of all levels in one table, each level padded with zeros: a row above, and a cell before each row,
    which also ends the previous row.

    Three rows below instead of one, since the cells after a place at the very end are read, with a weight of zero.
    """
    levels = zip(values.split([h * w for h, w in sizes], 1), sizes, strict=True)
    return torch.cat([F.pad(v.unflatten(1, s), [0, 0, 0, 0, 1, 0, 1, 3]).flatten(1, 2) for v, s in levels], 1)


def sum_rows(
    table: Float[Tensor, "b k m d"],
    places: Float[Tensor, "2 b q m l p"],
    weights: Float[Tensor, "b q m l p"],
    sizes: Sequence[Size],
) -> Float[Tensor, "b q c"]:
    """Weighted sums of the rows of a table from `tabulate`, four for each place."""
    # It does not use `resample_tensors.taps`: over a padded table all four rows follow from one index by addition, in
    # int32 and without clamping neighbours, on arrays whose last axis is long. Memory traffic is what this costs.
    batch, cells, heads, depth = table.shape
    points = places.shape[-1]
    # what differs between levels is expanded to (M L P) first: CPUs are slow at short inner loops

    def spread(of_level: Sequence[int], kind: torch.dtype) -> Float[Tensor, "k"]:
        return torch.tensor(of_level, dtype=kind).repeat_interleave(points).repeat(heads)

    heights, widths = zip(*sizes, strict=True)
    starts = [0, *accumulate((h + 4) * (w + 1) for h, w in sizes)][:-1]
    height, width, first = (spread(numbers, places.dtype) for numbers in (heights, widths, starts))
    one_below = spread([(w + 1) * heads for w in widths], torch.int32)
    head = torch.arange(heads, dtype=torch.int32).repeat_interleave(len(sizes) * points)
    image = torch.arange(batch, dtype=torch.int32)[:, None, None] * (cells * heads)

    x, y = places.flatten(3)  # (B, Q, M L P), as all that follows
    x = (x + 0.5).clamp(min=0).minimum(width + 1)  # in cells of the padded level, from the centre of its first one
    y = (y + 0.5).clamp(min=0).minimum(height + 1)
    left, above = x.detach().floor(), y.detach().floor()
    right, below = x - left, y - above  # weights of the later cells
    row = (above * (width + 1) + left + first).int() * heads + (head + image)
    rows = [row, row + heads, row + one_below, row + (one_below + heads)]
    weights = weights.flatten(2)
    lower = weights * below
    upper = weights - lower
    later = [upper * right, lower * right]
    shares = [upper - later[0], later[0], lower - later[1], later[1]]
    rows, shares = (
        torch.stack([t.unflatten(2, (heads, -1)) for t in four], 3).flatten(0, 2).flatten(1) for four in (rows, shares)
    )  # (B Q M, 4 L P)
    sums = F.embedding_bag(rows, table.reshape(-1, depth), per_sample_weights=shares, mode="sum")
    return sums.view(batch, -1, heads * depth)
