"""Waves of a place: sines and cosines, from whose products one sees how far two places are from each other.

Where a mask is the product of an embedding with the features of all cells, and both have the waves of their place as
further channels, it begins near that place. Without them it begins all over the image, on everything that looks
alike, and which of many similar objects it is to show takes long to learn. The small presets of SOLOv2 and Mask2Former
have them, which are trained for minutes; their papers do not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def waves_at(places: Float[Tensor, "*n 2"], count: int) -> Float[Tensor, "*n 4*count"]:
    """Sine and cosine of x and y, of 1/2, 1, 2, ... 2 ** (count - 2) periods between 0 and 1.

    The sum over the products of two places' waves depends on their distance alone, and is largest, twice ``count``,
    where they meet.
    """
    phase = places[..., None] * (math.pi * 2.0 ** torch.arange(count, device=places.device))
    return torch.cat([phase.sin(), phase.cos()], -2).flatten(-2)


def wave_map(like: Float[Tensor, "b _ h w"], count: int) -> Float[Tensor, "b 4*count h w"]:
    """The waves of all cells of a map, whose sides go from 0 to 1."""
    height, width = like.shape[2:]
    y, x = ((torch.arange(cells, device=like.device) + 0.5) / cells for cells in (height, width))
    places = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2)
    return waves_at(places, count).permute(2, 0, 1).to(like.dtype).expand(len(like), -1, -1, -1)
