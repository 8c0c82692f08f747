"""The fully connected CRF that refines label maps (Krahenbuhl and Koltun, NIPS 2011), in plain torch.

Every pair of pixels is connected by two kernels: a Gaussian of their distance, and a Gaussian of their distance and
colour difference. Each mean-field iteration filters the class probabilities with both, in two and in five dimensions.
The permutohedral lattice (Adams, Baek, Davis, 2010), `Lattice`, does so in time linear in the number of pixels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.ranges import Positive, Weight, Whole


@dataclass(frozen=True)
class CrfConfig:
    """Weights and standard deviations of the kernels; the defaults are those of DeepLab v2 for VOC."""

    iterations: Whole = 10
    smoothness: Weight = 3.0
    """Weight of the smoothness kernel (distance alone); 0 disables it."""
    smoothness_pixels: Positive = 1.0
    """Its standard deviation in pixels."""
    appearance: Weight = 4.0
    """Weight of the appearance kernel (distance and colour); 0 disables it."""
    appearance_pixels: Positive = 67.0
    """Its standard deviation in pixels."""
    appearance_colour: Positive = 3.0
    """Its standard deviation in colour values from 0 to 255."""


class Lattice:
    """Gaussian filter of unit standard deviation in d dimensions over N points, on the permutohedral lattice.

    Each point is splatted onto the d + 1 corners of the simplex around it, the lattice is blurred along its d + 1
    directions with weights 1/2, 1, 1/2, and each point is sliced from its corners. The scale of results is arbitrary.
    """

    def __init__(self, features: Float[Tensor, "n d"]) -> None:
        n, d = features.shape
        self.size = n
        # project onto the hyperplane where coordinates sum to zero, scaled so that the blur has unit standard deviation
        index = torch.arange(1, d + 1, dtype=torch.float64, device=features.device)
        scale = (d + 1) * (2 / 3) ** 0.5 / torch.sqrt(index * (index + 1))
        scaled = features.double() * scale  # (N, d)
        tail = scaled.flip(1).cumsum(1).flip(1)
        tail = torch.cat([tail, tail.new_zeros(n, 1)], 1)  # the sum of all later coordinates
        elevated = tail.clone()
        elevated[:, 1:] -= index * scaled  # (N, d + 1)

        # the nearest point of the lattice whose coordinates are multiples of d + 1, and each coordinate's rank from it
        rounded = torch.round(elevated / (d + 1)) * (d + 1)
        excess = (rounded.sum(1) / (d + 1)).round().long()  # (N,)
        order = (elevated - rounded).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(1)
        rank = rank + excess[:, None]
        low, high = rank < 0, rank > d
        rounded = rounded + (low.double() - high.double()) * (d + 1)
        rank = rank + (low.long() - high.long()) * (d + 1)

        # barycentric weights of the d + 1 corners
        delta = (elevated - rounded) / (d + 1)
        weights = torch.zeros(n, d + 2, dtype=torch.float64, device=features.device)
        weights.scatter_add_(1, d - rank, delta)
        weights.scatter_add_(1, d + 1 - rank, -delta)
        weights[:, 0] += 1 + weights[:, d + 1]
        self.weights = weights[:, : d + 1].float()  # (N, d + 1)

        # corner k adds k to the coordinates of low rank and k - (d + 1) to the others
        corner = torch.arange(d + 1, device=features.device)
        shift = torch.where(
            rank[:, None] <= d - corner[None, :, None], corner[None, :, None], corner[None, :, None] - d - 1
        )
        keys = (rounded.long()[:, None] + shift)[..., :d].reshape(-1, d)  # the last coordinate follows from the sum
        span = keys.abs().amax(0) + d + 2
        radix = torch.cat([span.new_ones(1), (2 * span + 1).cumprod(0)[:-1]])
        codes = ((keys + span) * radix).sum(1)
        known, inverse = codes.unique(return_inverse=True)
        self.corners = inverse.reshape(n, d + 1)
        self.count = len(known)
        self.neighbours = []
        for axis in range(d + 1):
            step = keys.new_full((d,), -1)
            if axis < d:
                step[axis] = d
            move = int((step * radix).sum())
            self.neighbours.append((_find(known, known - move), _find(known, known + move)))

    def filter(self, values: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
        """Filtered values of the points."""
        spread = (values.T[:, None] * self.weights[..., None]).reshape(-1, len(values))  # (N (d + 1), C)
        cells = values.new_zeros(self.count + 1, len(values))  # the last one stands for all empty ones
        cells.index_add_(0, self.corners.reshape(-1), spread)
        for before, after in self.neighbours:
            cells[:-1] = cells[:-1] + 0.5 * (cells[before] + cells[after])
        return (cells[self.corners] * self.weights[..., None]).sum(1).T


def _find(known: Int[Tensor, "m"], codes: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
    """Indices of ``codes`` in the sorted ``known``; one past the end for those not found."""
    place = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
    return torch.where(known[place] == codes, place, len(known))


def features_of(image: Float[Tensor, "3 h w"], pixels: float, colour: float | None = None) -> Float[Tensor, "n d"]:
    """Position, and colour if ``colour`` is given, of every pixel, in standard deviations."""
    height, width = image.shape[1:]
    y = torch.arange(height, device=image.device)[:, None].expand(height, width) / pixels
    x = torch.arange(width, device=image.device)[None].expand(height, width) / pixels
    parts = [x, y] if colour is None else [x, y, *(image / colour)]
    return torch.stack(parts, -1).reshape(height * width, -1)


@torch.no_grad()
def mean_field(
    probabilities: Float[Tensor, "c h w"], image: Float[Tensor, "3 h w"], config: CrfConfig
) -> Float[Tensor, "c h w"]:
    """Class probabilities after ``config.iterations`` mean-field iterations with Potts compatibility.

    ``image`` is RGB from 0 to 255. Kernels are normalised symmetrically: by the square roots of their sums at both
    pixels of a pair.
    """
    unary = probabilities.flatten(1).clamp(min=1e-5).log()  # (C, N)
    kernels = []
    if config.smoothness:
        kernels.append((config.smoothness, Lattice(features_of(image, config.smoothness_pixels))))
    if config.appearance:
        features = features_of(image, config.appearance_pixels, config.appearance_colour)
        kernels.append((config.appearance, Lattice(features)))
    norms = [lattice.filter(unary.new_ones(1, unary.shape[1])).clamp(min=1e-20).rsqrt() for _, lattice in kernels]
    q = unary.softmax(0)
    for _ in range(config.iterations):
        total = unary
        for (weight, lattice), norm in zip(kernels, norms, strict=True):
            total = total + weight * norm * lattice.filter(q * norm)
        q = total.softmax(0)
    return q.reshape(probabilities.shape)
