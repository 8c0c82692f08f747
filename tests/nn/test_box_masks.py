"""Dynamic masks inside boxes."""

import torch

from maskkit.nn.box_masks import BoxMaskConfig, box_masks


def test_a_mask_ends_near_its_box() -> None:
    """Parameters that draw everything draw the box and its margin: a tenth of a side at either end."""
    config = BoxMaskConfig(margin=0.2)
    parameters = torch.zeros(1, config.head_parameters)
    parameters[0, -1] = 5.0  # the last bias
    drawn = box_masks(parameters, torch.tensor([[40.0, 20, 80, 60]]), torch.zeros(8, 32, 32), config) > 0
    rows, columns = drawn[0].any(1).nonzero()[:, 0], drawn[0].any(0).nonzero()[:, 0]
    assert (columns.min().item(), columns.max().item()) == (8, 21)  # cells that 36 to 84 touches
    assert (rows.min().item(), rows.max().item()) == (3, 16)


def test_a_network_sees_the_place_in_the_box() -> None:
    """Its first coordinate alone: positive left of the middle of the box, whatever the box's size."""
    config = BoxMaskConfig(head_convs=1)
    parameters = torch.zeros(2, config.head_parameters)
    parameters[:, 0] = 1.0
    boxes = torch.tensor([[0.0, 0, 128, 128], [32, 32, 64, 96]])
    drawn = box_masks(parameters, boxes, torch.zeros(8, 32, 32), config)
    assert torch.allclose(drawn[0, 5, [0, 16]], torch.tensor([62 / 64, -2 / 64]))
    assert torch.allclose(drawn[1, 12, 9], torch.tensor(10 / 16))
