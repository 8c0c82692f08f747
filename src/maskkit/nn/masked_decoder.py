"""The transformer decoder of Mask2Former: learnt queries with masked attention.

Cheng, Misra, Schwing, Kirillov, Girdhar: "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR
2022), section 3.2.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maskkit.nn.blocks import linear
from maskkit.nn.positional_encoding import encode_positions, sine_encoding
from maskkit.ranges import Count, Whole


@dataclass(frozen=True)
class MaskedDecoderConfig:
    """Knobs of `MaskedDecoder`."""

    queries: Count = 100
    layers: Whole = 9
    feedforward: Count = 2048
    """Channels inside the feed-forward networks."""
    position_frequencies: Whole = 0
    """Frequencies, per axis, of the positional encoding that features and mask embeddings get as extra channels
    (`maskkit.nn.positional_encoding`): the mask of each query starts near another place. 0 for none, as in the
    paper."""


class Attention(nn.Module):
    """Multi-head attention whose keys and values may differ, by a positional encoding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Bool[Tensor, "b q n"] | None = None) -> Tensor:
        """The attended values of each query; False in ``seen`` hides a value from it."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q, k, v = (
            linear(x, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, M, _, C / M)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        found = F.scaled_dot_product_attention(q, k, v, None if seen is None else seen[:, None])
        return self.out_proj(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked attention to the cells, attention between the queries, a feed-forward network."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.cross_attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm3 = nn.LayerNorm(width)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, x: Float[Tensor, "b q c"], who: Tensor, cells: Float[Tensor, "b n c"], where: Tensor, seen: Tensor
    ) -> Tensor:
        """Update the queries; ``who`` and ``where`` are the positional encodings of queries and cells."""
        x = self.norm1(x + self.cross_attention(x + who, cells + where, cells, seen))
        x = self.norm2(x + self.self_attention(x + who, x + who, x))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class QueryPositions(nn.Module):
    """Extra channels of the mask embeddings: the positional encoding of a learnt place times predicted weights.

    The places start evenly spread over the image, and each query may move its own; the weights start at one.
    """

    def __init__(self, queries: int, width: int, frequencies: int) -> None:
        super().__init__()
        self.position_frequencies = frequencies
        self.start = nn.Parameter(spread(queries))
        self.move = nn.Linear(width, 2)
        self.weigh = nn.Linear(width, 4 * frequencies)
        for layer, bias in ((self.move, 0.0), (self.weigh, 1.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b q 4*frequencies"]:
        """The channels."""
        return self.weigh(x) * encode_positions(self.start + self.move(x), self.position_frequencies)


def spread(count: int) -> Float[Tensor, "n 2"]:
    """Places in 0 to 1 that cover a square evenly, as does any first part of them: multiples of the plastic ratio."""
    ratio = 1.324717957244746  # its cube is itself plus one
    multiples = torch.arange(count, dtype=torch.float64)[:, None] / torch.tensor([ratio, ratio**2])
    return ((multiples + 0.5) % 1).float()


class MaskedDecoder(nn.Module):
    """Queries that attend to the levels in turn, each within its own mask (section 3.2.1)."""

    def __init__(self, width: int, heads: int, classes: int, config: MaskedDecoderConfig) -> None:
        super().__init__()
        self.queries = nn.Embedding(config.queries, width)
        self.positions = nn.Embedding(config.queries, width)
        self.level = nn.Embedding(3, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, config.feedforward) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.label = nn.Linear(width, classes + 1)
        frequencies = config.position_frequencies
        self.near = QueryPositions(config.queries, width, frequencies) if frequencies else None
        self.embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]], features: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Class logits (B, L + 1, Q, K + 1) and mask embeddings (B, L + 1, Q, C), before and after each layer."""
        cells, where, coarse = [], [], []
        for level, embedding in zip(levels, self.level.weight, strict=True):
            size = (level.shape[2], level.shape[3])
            cells.append(level.flatten(2).transpose(1, 2) + embedding)  # (B, N, C)
            where.append(sine_encoding(size, level.flatten(2).transpose(1, 2)))
            coarse.append(F.interpolate(features.detach(), size=size, mode="bilinear").flatten(2))  # (B, C, N)
        x = self.queries.weight.expand(features.shape[0], -1, -1)
        predictions = [self.predict(x)]
        for i, layer in enumerate(self.layers):
            inside = predictions[-1][1].detach() @ coarse[i % 3] >= 0  # (B, Q, N)
            seen = inside | ~inside.any(2, keepdim=True)  # an empty mask hides nothing
            x = layer(x, self.positions.weight, cells[i % 3], where[i % 3], seen)
            predictions.append(self.predict(x))
        return [torch.stack(parts, 1) for parts in zip(*predictions, strict=True)]

    def predict(self, x: Float[Tensor, "b q c"]) -> tuple[Tensor, Tensor]:
        """Class logits and mask embeddings of the queries."""
        x = self.norm(x)
        embedding = self.embed(x)
        if self.near is not None:
            embedding = torch.cat([embedding, self.near(x)], 2)  # (B, Q, C + 4 frequencies)
        return self.label(x), embedding
