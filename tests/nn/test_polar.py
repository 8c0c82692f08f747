"""Rays of masks and masks of rays."""

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit.nn.polar import (
    NO_BORDER,
    cast_rays,
    fill,
    mass_centre,
    outline,
    polar_centerness,
    polar_iou_loss,
    trace,
)


def ellipse(size: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float], turn: float) -> Tensor:
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(float)
    x, y = x - centre[0], y - centre[1]
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return torch.from_numpy((u / radii[0]) ** 2 + (v / radii[1]) ** 2 <= 1)


def drawn(mask: Tensor, origin: tuple[float, float], stride: int = 1, rays: int = 36) -> Tensor:
    """The mask again, from its rays as seen from ``origin``, at full resolution."""
    at = torch.tensor([origin])
    lengths = cast_rays(torch.from_numpy(outline(mask.numpy())).float(), at, rays)
    soft = fill(at, lengths, (mask.shape[0] // stride, mask.shape[1] // stride), stride)
    return torch.nn.functional.interpolate(soft[None], mask.shape, mode="bilinear", align_corners=False)[0, 0] > 0.5


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_border_is_walked_down_the_left_side_and_passes_thin_parts_twice() -> None:
    square = np.ones((3, 3), bool)
    around = [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2], [2, 1], [2, 0], [1, 0]]
    assert trace(square).tolist() == around
    hollow = square.copy()
    hollow[1, 1] = False
    assert trace(hollow).tolist() == around
    assert trace(np.eye(3, dtype=bool)).tolist() == [[0, 0], [1, 1], [2, 2], [1, 1]]
    assert trace(np.ones((1, 1), bool)).tolist() == [[0, 0]]


def test_outline_is_that_of_the_part_which_encloses_most() -> None:
    mask = np.zeros((20, 30), bool)
    mask[1:4, 1:12] = True  # encloses 2 x 10
    mask[8:18, 14:16] = True
    mask[8:18, 14:28] = True  # encloses 9 x 13
    mask[10:16, 16:26] = False
    border = outline(mask)
    assert border.min(0).tolist() == [14, 8]
    assert border.max(0).tolist() == [27, 17]
    assert len(border) == 2 * (9 + 13)  # the hole has no part in it
    assert mass_centre(border).tolist() == [20, 12]
    assert outline(np.zeros((4, 4), bool)).shape == (0, 2)


def test_mass_centre_of_a_line_is_its_middle() -> None:
    assert mass_centre(outline(np.ones((1, 9), bool))).tolist() == [4, 0]


def test_rays_of_a_square_start_downwards_and_turn_to_the_right() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:31, 5:31] = True  # rows 10 to 30, columns 5 to 30
    rays = cast_rays(torch.from_numpy(outline(mask)).float(), torch.tensor([[20.0, 20.0]]), 36)[0]
    assert rays[[0, 9, 18, 27]].tolist() == [10, 10, 10, 15]  # down, right, up, left


def test_a_ray_without_border_has_next_to_no_length() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    rays = cast_rays(torch.from_numpy(outline(mask)).float(), torch.tensor([[2.0, 20.0]]), 36)[0]
    assert rays[27] == NO_BORDER  # to the left of a point that lies left of the object
    assert rays[9] == 27


@pytest.mark.parametrize("stride", [1, 4])
def test_a_convex_object_survives_its_rays(stride: int) -> None:
    mask = ellipse((128, 160), (70.5, 60.5), (44, 30), 0.4)
    assert iou(drawn(mask, (70, 60), stride), mask) > 0.97
    assert iou(drawn(mask, (80, 66), stride), mask) > 0.95


def test_holes_and_bays_do_not_survive() -> None:
    ring = ellipse((96, 96), (48, 48), (40, 40), 0) & ~ellipse((96, 96), (48, 48), (24, 24), 0)
    again = drawn(ring, (48, 48))
    assert again[48, 48]
    assert iou(again, ellipse((96, 96), (48, 48), (40, 40), 0)) > 0.97


def test_more_rays_draw_a_rough_object_better() -> None:
    y, x = np.mgrid[0:160, 0:160].astype(float) - 80
    ripple = torch.from_numpy(np.hypot(x, y) <= 50 + 8 * np.sin(7 * np.arctan2(y, x)))
    quality = [iou(drawn(ripple, (80, 80), rays=n), ripple) for n in (12, 36, 72)]
    assert quality == sorted(quality)
    assert quality[1] > 0.93


def test_polar_iou_loss_is_zero_for_equal_rays_and_blind_to_scale() -> None:
    a, b = torch.rand(2, 5, 36).add(0.1).unbind()
    assert torch.equal(polar_iou_loss(a, a), torch.zeros(5))
    assert torch.allclose(polar_iou_loss(a, b), polar_iou_loss(7 * a, 7 * b), atol=1e-6)
    assert torch.allclose(polar_iou_loss(a, 2 * a), torch.full((5,), 2.0).log())


def test_polar_centerness_is_one_in_the_middle_of_a_disc() -> None:
    assert polar_centerness(torch.full((1, 36), 7.0)).item() == 1
    assert polar_centerness(torch.tensor([[1.0, 4.0]])).item() == 0.5
