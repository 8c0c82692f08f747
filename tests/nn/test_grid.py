"""Cells, targets and losses of SOLO and SOLOv2."""

import numpy as np
import pytest
import torch

from maskkit.nn.grid import (
    GridConfig,
    assign_cells,
    category_loss,
    cell_levels,
    cell_middles,
    cell_scores,
    coordinates,
    last_object,
    shrink,
)
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes

CONFIG = GridConfig(grids=(8, 4), scale_ranges=((1, 32), (24, 96)), min_area=(1, 1))


def square(x: int, y: int, side: int, size: int = 64) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def cells(lit: torch.Tensor) -> list[int]:
    return torch.nonzero(lit)[:, 0].tolist()


def test_an_object_lights_the_cells_of_its_centre_on_the_levels_of_its_size() -> None:
    boxes = [[18, 18, 22, 22], [4, 4, 32, 32], [0, 0, 64, 64]]
    masks = torch.stack([square(18, 18, 4), square(4, 4, 28), square(0, 0, 64)])
    lit = assign_cells(Target.of(boxes, [0, 1, 2], masks), (64, 64), CONFIG)
    # the centre region of the second, 17.5 +- 2.8 px, touches cells 1 and 2 of 8 px, and cells 0 and 1 of 16 px
    assert cells(lit[0]) == [2 * 8 + 2]
    assert cells(lit[1]) == [9, 10, 17, 18, 64, 65, 68, 69]
    # 64 px belong to the second level alone; their region of 12.8 px lies on both sides of the middle
    assert cells(lit[2]) == [64 + 5, 64 + 6, 64 + 9, 64 + 10]


def test_the_centre_is_that_of_the_mass_or_of_the_box_without_a_mask() -> None:
    half = square(16, 16, 16)
    half[:, 20:] = False  # all of its mass is on the left
    boxes = [[16, 16, 32, 32]]
    known = assign_cells(Target.of(boxes, [0], half[None]), (64, 64), CONFIG)
    boxed = assign_cells(Target.of(boxes, [0], half[None], has_mask=[False]), (64, 64), CONFIG)
    assert {c % 8 for c in cells(known[0])} == {1, 2}
    assert {c % 8 for c in cells(boxed[0])} == {2, 3}
    assert cells(assign_cells(Target.of(boxes, [0]), (64, 64), CONFIG)[0]) == cells(boxed[0])


def test_no_more_than_three_by_three_cells() -> None:
    config = GridConfig(grids=(32,), scale_ranges=((1, 999),), min_area=(1,))
    lit = assign_cells(Target.of([[0, 0, 64, 64]], [0], square(0, 0, 64)[None]), (64, 64), config)
    assert int(lit.sum()) == 9


def test_crowds_and_empty_masks_light_nothing() -> None:
    masks = torch.stack([square(8, 8, 16), torch.zeros(64, 64, dtype=torch.bool)])
    target = Target.of([[8, 8, 24, 24], [30, 30, 50, 50]], [0, 0], masks, crowd=[True, False])
    assert not assign_cells(target, (64, 64), CONFIG).any()
    assert assign_cells(Target.of([], []), (64, 64), CONFIG).shape == (0, 80)


def test_the_last_object_of_a_cell_owns_it() -> None:
    lit = torch.tensor([[True, True, False], [False, True, False]])
    assert last_object(lit).tolist() == [0, 1, -1]
    assert last_object(lit[:0]).tolist() == [-1, -1, -1]


def test_masks_shrink_as_opencv_does_it() -> None:
    """On multiples of the factor a cell is on when two of the four pixels around its middle are."""
    rng = np.random.default_rng(0)
    dense = torch.from_numpy(rng.random((3, 32, 48)) < 0.5)
    target = Target.of(torch.zeros(3, 4), [0, 0, 0], dense)
    whole, left = torch.tensor([32, 48]), torch.tensor([32, 24])
    around = sum(dense[:, 1 + a :: 4, 1 + b :: 4].int() for a in (0, 1) for b in (0, 1))
    assert torch.equal(shrink(target, whole, 32, (8, 12)).bool(), torch.as_tensor(around) >= 2)
    assert not shrink(target, left, 32, (8, 12))[:, :, 6:].any(), "padding stays empty"
    assert shrink(target, left, 32, (8, 12))[:, :, :6].any()


def test_point_nms_looks_up_and_left() -> None:
    logits = torch.full((1, 1, 9), -9.0)
    logits[0, 0, [0, 1, 4, 8]] = torch.tensor([1.0, 2.0, 0.5, 3.0])
    kept = cell_scores(logits, (3,)) > 0.1
    # cell 1 beats cell 4 below it; cell 0 has no neighbour above or to the left, whatever is to its right
    assert kept[0, 0].nonzero()[:, 0].tolist() == [0, 1, 8]


def test_coordinates_run_from_minus_one_to_one() -> None:
    grid = coordinates(torch.zeros(2, 7, 3, 5))
    assert grid.shape == (2, 2, 3, 5)
    assert torch.allclose(grid[1, 0, 0], torch.linspace(-1, 1, 5))
    assert grid[1, 1, :, 0].tolist() == [-1, 0, 1]


def test_cells_are_numbered_level_by_level_row_by_row() -> None:
    middles = cell_middles((2, 1))
    assert middles.tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75], [0.5, 0.5]]
    assert cell_levels((2, 1)).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("crowd", [False, True])
def test_cells_in_a_crowd_are_not_background(crowd: bool) -> None:
    target = Target.of([[0, 0, 32, 64]], [0], crowd=[True]) if crowd else Target.of([], [])
    meta = ImageMeta(0, "", (64, 64), (64, 64))
    images = torch.zeros(1, 3, 64, 64)
    batch = Batch(images, full_sizes(images), [target], [meta])
    category = torch.zeros(1, 2, 4, requires_grad=True)
    category_loss(category, [torch.full((4,), -1)], batch, (2,)).backward()
    assert category.grad is not None
    assert (category.grad[0, 0] != 0).tolist() == ([False, True, False, True] if crowd else [True] * 4)
