"""Whose pixel it is, and of which class."""

import numpy as np
import torch

from maskkit.nn.pixels import BACKGROUND, UNKNOWN, class_loss, likeliest, object_map
from maskkit.targets import DenseMasks, Target


def test_smaller_masks_lie_above_larger_ones_and_masks_above_what_is_unknown() -> None:
    masks = np.zeros((5, 10, 12), bool)
    masks[0, 2:4, 2:4] = True
    masks[1, 1:6, 1:6] = True  # around the first
    masks[2, 5:8, 3:9] = True  # a crowd
    masks[4] = True  # of this one only the box may count
    target = Target.of(
        [[2, 2, 4, 4], [1, 1, 6, 6], [3, 5, 9, 8], [8, 0, 10, 2], [4, 8, 6, 10]],
        [0, 1, 0, 0, 0],
        DenseMasks(masks),
        crowd=[False, False, True, True, False],
        has_mask=[True, True, True, False, False],
    )
    valid = torch.ones(10, 12, dtype=torch.bool)
    valid[:, 11] = False
    owners = object_map(target, valid)
    assert (owners[2:4, 2:4] == 0).all()
    assert (owners == 1).sum() == 21
    assert owners[5, 5] == 1
    assert (owners[6:8, 3:9] == UNKNOWN).all()
    assert owners[1, 9] == owners[9, 5] == UNKNOWN
    assert (owners[:, 11] == UNKNOWN).all()
    assert owners[0, 0] == owners[8, 0] == BACKGROUND


def test_nothing_known_is_no_mask_at_all() -> None:
    valid = torch.ones(4, 4, dtype=torch.bool)
    assert (object_map(Target.of([], []), valid) == BACKGROUND).all()
    owners = object_map(Target.of([[0, 0, 2, 2]], [0]), valid)
    assert owners[0, 0] == UNKNOWN
    assert owners[3, 3] == BACKGROUND


def test_classes_are_learnt_on_objects_alone() -> None:
    owners = torch.full((1, 8, 8), BACKGROUND)
    owners[0, :4, :4] = 0
    target = Target.of([[0, 0, 4, 4]], [2])
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = class_loss(logits, owners, [target])
    assert abs(loss.item() - np.log(3)) < 1e-6
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, 0, 0] != 0).all()
    assert not logits.grad[0, :, 1].any()
    assert class_loss(logits, owners.fill_(UNKNOWN), [target]).item() == 0


def test_the_likeliest_class_of_one_needs_no_map() -> None:
    assert likeliest(torch.zeros(2, 0, 3, 3), (6, 6)).shape == (2, 6, 6)
    logits = torch.eye(2).reshape(1, 2, 1, 2)
    assert likeliest(logits, (2, 4)).tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]
