"""The label assignment and the losses of NanoDet-Plus, on cases computed by hand."""

import math

import pytest
import torch

from maskkit.nn.fcos_targets import Locations
from maskkit.nn.nanodet import mean_distances
from maskkit.nn.nanodet_loss import assign, distribution_loss
from maskkit.targets import Target

XY = torch.tensor([[8.0, 8.0], [16.0, 8.0], [40.0, 8.0], [80.0, 80.0]])
PLACES = Locations(XY, torch.full((4,), 8.0), torch.zeros(4, dtype=torch.int64))


def test_the_distance_is_the_mean_of_its_distribution() -> None:
    sides = torch.full((1, 32), -30.0)
    sides[0, [0, 8 + 2, 8 + 3, 16 + 7, 24 + 1]] = 0.0
    assert torch.allclose(mean_distances(sides), torch.tensor([[0.0, 2.5, 7.0, 1.0]]), atol=1e-5)


def test_the_best_boxes_of_an_object_are_its_positives() -> None:
    """Two boxes with IoU 1 and 0.5 sum up to one positive, the better one; the third is not inside."""
    target = Target.of([[0, 0, 20, 20]], [1])
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 10], [0, 0, 20, 20], [0, 0, 20, 20]])
    found = assign(torch.zeros(4, 3), boxes, target, PLACES, assigned=13)
    assert found.classes.tolist() == [2, 0, 0, 0]


def test_an_object_of_bad_boxes_has_one_positive_that_another_object_may_need_more() -> None:
    target = Target.of([[0, 0, 20, 20], [0, 0, 12, 12]], [0, 2])
    boxes = torch.tensor([[0.0, 0, 12, 12], [0, 0, 20, 19], [0, 0, 1, 1], [0, 0, 1, 1]])
    found = assign(torch.zeros(4, 3), boxes, target, PLACES, assigned=13)
    assert found.classes.tolist() == [3, 1, 0, 0]
    assert found.objects.tolist() == [1, 0, 0, 0]


def test_a_crowd_is_ignored_and_never_learnt() -> None:
    target = Target.of([[0, 0, 50, 20]], [1], crowd=[True])
    found = assign(torch.zeros(4, 3), torch.zeros(4, 4), target, PLACES, assigned=13)
    assert found.classes.tolist() == [-1, -1, -1, 0]


def test_two_bins_share_a_distance() -> None:
    """All bins alike cost log 8; a distance beyond the last bin is learnt as just below it."""
    loss = distribution_loss(torch.zeros(1, 32), torch.tensor([[0.0, 2.25, 6.9, 100.0]]))
    assert loss.item() == pytest.approx(math.log(8))
    sides = torch.full((1, 32), -30.0)
    sides[0, [0, 10, 11, 22, 23, 30, 31]] = torch.tensor([9.0, math.log(3), 0.0, 0.0, math.log(9), 0.0, math.log(9)])
    mixed = distribution_loss(sides, torch.tensor([[0.0, 2.25, 6.9, 100.0]])).item()
    entropy = [0.0, *(-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.25, 0.1, 0.1))]
    assert mixed == pytest.approx(sum(entropy) / 4, abs=1e-3)
