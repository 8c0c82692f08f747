"""Bilinear interpolation on tensors against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from maskkit.geometry.resample_tensors import antialiasing, resize_antialiased


@pytest.mark.parametrize("size", [(40, 64), (27, 43), (8, 24), (90, 65), (1, 7)])
def test_two_matrix_products_resize_with_antialiasing(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 40, 65)
    rows, columns = antialiasing(40, size[0]), antialiasing(65, size[1])
    wanted = F.interpolate(images, size=size, mode="bilinear", antialias=True)
    assert torch.allclose(rows @ images @ columns.T, wanted, atol=1e-5)
    assert torch.equal(resize_antialiased(images, size), wanted)


def test_images_that_have_the_size_are_left_as_they_are() -> None:
    images = torch.randn(1, 3, 5, 8)
    assert resize_antialiased(images, (5, 8)) is images
    assert torch.equal(F.interpolate(images, size=(5, 8), mode="bilinear", antialias=True), images)
