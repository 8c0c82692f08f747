"""Sinusoidal positional encodings: one whose inner product depends on distance alone, and DETR's.

A mask is the inner product of an embedding with the features of every cell. Where both carry the encoding of their
position (`encode_positions`) as further channels, the mask starts near the position of the embedding. Without them it
starts on everything that looks alike all over the image, and learning which of many similar objects to segment takes
long. The small presets of SOLO, SOLOv2 and Mask2Former, which are trained for minutes, use it; the papers do not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def encode_positions(positions: Float[Tensor, "*n 2"], frequencies: int) -> Float[Tensor, "*n 4*frequencies"]:
    """Sine and cosine of x and y, each from 0 to 1, at ``frequencies`` frequencies: 1/2, 1, 2, 4, ... periods.

    The inner product of two encodings depends on the offset between the positions alone, and is largest, twice
    ``frequencies``, where they coincide.
    """
    phase = positions[..., None] * (math.pi * 2.0 ** torch.arange(frequencies, device=positions.device))
    return torch.cat([phase.sin(), phase.cos()], -2).flatten(-2)


def encode_cells(like: Float[Tensor, "b _ h w"], frequencies: int) -> Float[Tensor, "b 4*frequencies h w"]:
    """The encoding of the centre of every cell of a map, which spans 0 to 1 in both directions."""
    height, width = like.shape[2:]
    y, x = ((torch.arange(cells, device=like.device) + 0.5) / cells for cells in (height, width))
    positions = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2)
    return encode_positions(positions, frequencies).permute(2, 0, 1).to(like.dtype).expand(like.shape[0], -1, -1, -1)


def sine_encoding(size: tuple[int, int], like: Tensor) -> Float[Tensor, "n c"]:
    """Encoding of the cells of a grid of ``size`` (h, w), row by row: half of the channels hold y, half x (DETR).

    Device and number of channels are those of ``like`` (..., C).
    """
    channels = like.shape[-1] // 2
    rate = 10000 ** (torch.arange(channels, device=like.device) // 2 * 2 / channels)
    axes = []
    for cells in size:
        place = torch.arange(1, cells + 1, device=like.device) * (2 * torch.pi / (cells + 1e-6))
        phase = place[:, None] / rate
        axes.append(torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], 2).flatten(1))  # (cells, C / 2)
    y, x = axes
    height, width = size
    grid = [y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)]
    return torch.cat(grid, 2).flatten(0, 1)
