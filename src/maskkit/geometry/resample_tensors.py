"""Bilinear interpolation on tensors: the cells next to a place, their weights, and weighted sums of cells.

The counterpart of `maskkit.geometry.resample`, which does the same in numpy. Places are measured in cells from the
centre of the first one, as in ``F.interpolate(align_corners=False)``. Whole maps are resized by `resize`, images by
`resize_antialiased`, points are read by `sample_points`; `taps` serves the callers that combine the weights themselves
(RoIAlign, crops, label assignment).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Taps(NamedTuple):
    """The two cells around each place along one axis, the lower one first."""

    cells: Int[Tensor, "*n 2"]
    weights: Float[Tensor, "*n 2"]
    """They sum to 1 and carry the gradient with respect to the place."""


def taps(places: Float[Tensor, "*n"], cells: int) -> Taps:
    """Taps of ``places`` along an axis of ``cells`` cells.

    A place beyond the outermost centre reads the outermost cell twice, with weights that still sum to 1. Clamp the
    places first where it should be read once, without rounding and without a gradient.
    """
    lower = places.detach().floor()
    share = places - lower
    lower = lower.long()
    return Taps(torch.stack([lower, lower + 1], -1).clamp(0, cells - 1), torch.stack([1 - share, share], -1))


def weighted_sums(
    rows: Float[Tensor, "r c"], index: Int[Tensor, "*n k"], weights: Float[Tensor, "*n k"]
) -> Float[Tensor, "*n c"]:
    """For each of n results the weighted sum of k of the ``rows``.

    A map with its channels last is a table of such rows. On CPUs, reading whole rows is many times as fast as
    operators with the channels outermost, above all in the backward pass.
    """
    if torch.compiler.is_exporting():  # a bag is a loop in ONNX; one row after the other holds no table of all k
        pairs = zip(index.unbind(-1), weights.unbind(-1), strict=True)
        return sum((rows[i] * w[..., None] for i, w in pairs), rows.new_zeros(()))
    sums = F.embedding_bag(index.flatten(0, -2), rows, per_sample_weights=weights.flatten(0, -2), mode="sum")
    return sums.view(*index.shape[:-1], rows.shape[1])


def sample_points(maps: Float[Tensor, "n c h w"], points: Float[Tensor, "n p 2"]) -> Float[Tensor, "n c p"]:
    """Maps at points ``x y`` from 0 to 1 over the whole map, with zeros outside."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def resize(maps: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Maps at another resolution (h, w), without antialiasing."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resize_antialiased(images: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Images at another resolution (h, w), bilinear with antialiasing, as Pillow does it.

    An exported graph has two matrix products for it: OpenVINO computes ONNX's ``Resize`` without the antialiasing that
    its attribute asks for, and does not say so.
    """
    if size == images.shape[2:]:
        return images
    if torch.compiler.is_exporting():
        rows, columns = (
            antialiasing(cells, wanted, images.device) for cells, wanted in zip(images.shape[2:], size, strict=True)
        )
        return rows @ images @ columns.T
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def antialiasing(cells: int, wanted: int, device: torch.device | None = None) -> Float[Tensor, "wanted cells"]:
    """The share of each of ``cells`` along an axis in each of the ``wanted`` cells that they are resized to.

    It falls linearly from the centre of the wanted cell, to zero at the distance of one cell of the coarser axis.
    """
    # distances in units of 1 / (2 wanted) cells are integers, so that every runtime has the same
    own = (2 * torch.arange(cells, device=device) + 1) * wanted
    centres = (2 * torch.arange(wanted, device=device) + 1) * cells
    weights = (1 - (own - centres[:, None]).abs() / (2 * max(cells, wanted))).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
