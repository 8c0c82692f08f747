"""The crop of masks that are made from prototypes."""

import torch

from maskkit.nn.prototypes import crop_window


def test_crop_window_is_the_box_and_one_cell_around() -> None:
    window = crop_window(torch.tensor([[0.25, 0.5, 0.5, 0.75]]), (8, 8))[0]
    assert torch.nonzero(window.any(0))[:, 0].tolist() == [1, 2, 3, 4]
    assert torch.nonzero(window.any(1))[:, 0].tolist() == [3, 4, 5, 6]
