"""Boxes: conversions, area, IoU, SSD's encoding.

Boxes are float ``x1 y1 x2 y2`` on pixel *edges* (a box around pixel column 3 alone is 3 to 4) unless a name says
otherwise. Every function works for zero boxes and keeps the dtype and the device.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEAST_SIDE = 1e-3
"""A box with a side shorter than this, in pixels, counts as having no area."""


def to_centres(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """``x1 y1 x2 y2`` to ``cx cy w h``."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def to_corners(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """``cx cy w h`` to ``x1 y1 x2 y2``."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def area(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Area of each box; zero where a side is negative."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def has_area(boxes: Float[Tensor, "*n 4"], least_side: float = LEAST_SIDE) -> Bool[Tensor, "*n"]:
    """Whether both sides of a box are at least ``least_side`` pixels long."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= least_side).all(-1)


def intersection(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Area shared by every box of ``a`` and every box of ``b``."""
    left, top, right, bottom = a[..., :, None, :].unbind(-1)  # (..., N, 1) each: planes are faster than pairs
    left_b, top_b, right_b, bottom_b = b[..., None, :, :].unbind(-1)  # (..., 1, M)
    width = (torch.minimum(right, right_b) - torch.maximum(left, left_b)).clamp(min=0)
    return width * (torch.minimum(bottom, bottom_b) - torch.maximum(top, top_b)).clamp(min=0)  # (..., N, M)


def iou(a: Float[Tensor, "*b n 4"], b: Float[Tensor, "*b m 4"]) -> Float[Tensor, "*b n m"]:
    """Intersection over union of every pair; zero for a pair of empty boxes."""
    inter = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - inter
    return inter / union.clamp(min=torch.finfo(inter.dtype).tiny)


def encode(boxes: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """SSD's encoding of ``boxes`` (corners) relative to ``anchors`` (centres), with variances 0.1 and 0.2."""
    centre, size = to_centres(boxes).split(2, -1)
    return torch.cat(
        [(centre - anchors[..., :2]) / (0.1 * anchors[..., 2:]), torch.log(size / anchors[..., 2:]) / 0.2], -1
    )


def decode(code: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Boxes (corners) of an SSD ``code`` relative to ``anchors`` (centres): the inverse of `encode`."""
    centre = anchors[..., :2] + 0.1 * code[..., :2] * anchors[..., 2:]
    return to_corners(torch.cat([centre, anchors[..., 2:] * torch.exp(0.2 * code[..., 2:])], -1))
