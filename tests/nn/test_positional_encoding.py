import numpy as np
import pytest
import torch

from maskkit.nn.positional_encoding import encode_cells, encode_positions, sine_encoding


def test_inner_products_depend_on_the_distance_of_two_positions() -> None:
    found = encode_cells(torch.zeros(2, 1, 8, 8), 4)
    assert found.shape == (2, 16, 8, 8)
    assert torch.equal(found[0], found[1])
    cells = found[0].flatten(1)  # (16, 64)
    products = cells.T @ cells
    assert torch.allclose(products.diagonal(), torch.full((64,), 8.0))
    assert torch.allclose(products[9 * 0, 9 * 2], products[9 * 5, 9 * 7], atol=1e-5)
    assert (products - 9 * torch.eye(64)).max() < 7  # nowhere else as large


def test_a_position_has_the_encoding_of_its_cell() -> None:
    found = encode_cells(torch.zeros(1, 3, 4, 5), 3)[0]
    place = torch.tensor([(2 + 0.5) / 5, (1 + 0.5) / 4])  # third column, second row
    torch.testing.assert_close(encode_positions(place, 3), found[:, 1, 2])


def test_sines_are_those_of_detr() -> None:
    """Half of the channels are the row's sines and cosines in turn, of ever longer periods; then the column's."""
    found = sine_encoding((2, 3), torch.zeros(1, 8)).view(2, 3, 8)
    y = 2 * np.pi * 2 / 2
    assert found[1, 0, :4].tolist() == pytest.approx([np.sin(y), np.cos(y), np.sin(y / 100), np.cos(y / 100)], abs=1e-4)
    x = 2 * np.pi * 2 / 3
    assert found[0, 1, 4:].tolist() == pytest.approx([np.sin(x), np.cos(x), np.sin(x / 100), np.cos(x / 100)], abs=1e-4)
