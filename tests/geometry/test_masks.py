"""Mathematics of dense masks against torchvision and the formulas written out."""

import numpy as np
import torch
from hypothesis import given
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from maskkit.geometry import masks
from tests.geometry.test_rle import dense_masks, sizes


@given(dense_masks())
def test_boxes_are_edges_one_beyond_the_last_pixel(dense):
    full = dense.any((1, 2))
    expected = np.zeros((len(dense), 4))
    if full.any():
        expected[full] = masks_to_boxes(torch.from_numpy(dense[full])).numpy() + np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(masks.dense_boxes(torch.from_numpy(dense)), expected)


@given(dense_masks(), sizes)
def test_resample_cuts_the_bilinear_image_at_one_half(dense, size):
    tensor = torch.from_numpy(dense)
    small = masks.resample(tensor, size)
    assert small.shape == (len(dense), *size)
    assert small.dtype == torch.bool
    if size == dense.shape[1:]:
        assert torch.equal(small, tensor)
    for before, after in zip(tensor, small, strict=True):
        soft = F.interpolate(before[None, None].float(), size, mode="bilinear")[0, 0]
        assert torch.equal(after, soft > 0.5)
        if before.all() or not before.any():
            assert torch.equal(after, before.flatten()[0].expand(size))


def test_maskness_is_the_mean_of_the_foreground():
    soft = torch.tensor([[[[0.9, 0.7], [0.4, 0.1]], [[0.2, 0.3], [0.4, 0.1]]]])
    assert torch.allclose(masks.maskness(soft), torch.tensor([[0.8, 0.0]]))
