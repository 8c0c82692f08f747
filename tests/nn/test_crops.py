"""Crops of features, against loops over their cells."""

import numpy as np
import torch

from maskkit.nn.crops import DeformableCrop, crop_and_resize, crop_class


def bilinear(plane: np.ndarray, x: float, y: float) -> float:
    """The value between the middles of four cells; beyond the outermost ones theirs."""
    x, y = np.clip(x, 0, plane.shape[1] - 1), np.clip(y, 0, plane.shape[0] - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, plane.shape[1] - 1), min(top + 1, plane.shape[0] - 1)
    x, y = x - left, y - top
    above, below = (plane[row, left] * (1 - x) + plane[row, right] * x for row in (top, bottom))
    return above * (1 - y) + below * y


def crop_by_loops(level: np.ndarray, roi: np.ndarray, side: int, stride: int, offsets: np.ndarray | None = None):
    """Samples from corner to corner of a box; the sub-box of a sample, if any, is moved by a share of the box."""
    _, x1, y1, x2, y2 = roi
    found = np.zeros((level.shape[1], side, side))
    for c in range(level.shape[1]):
        for i in range(side):
            for j in range(side):
                x, y = x1 + (x2 - x1) * j / (side - 1), y1 + (y2 - y1) * i / (side - 1)
                if offsets is not None:
                    grid = offsets.shape[1]
                    dx, dy = offsets[:, i * grid // side, j * grid // side]
                    x, y = x + 0.1 * dx * (x2 - x1), y + 0.1 * dy * (y2 - y1)
                found[c, i, j] = bilinear(level[int(roi[0]), c], x / stride - 0.5, y / stride - 0.5)
    return found


ROIS = torch.tensor([[0.0, 12, 20, 100, 60], [1, 0, 0, 128, 96], [1, 50.5, 30.2, 61.7, 90.1]])


def test_crops_go_from_corner_to_corner() -> None:
    level = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    crops = crop_and_resize(level, ROIS, 7, 8)
    for crop, roi in zip(crops, ROIS, strict=True):
        assert np.allclose(crop, crop_by_loops(level.numpy(), roi.numpy(), 7, 8), atol=1e-4)


def test_zero_offsets_are_plain_cropping() -> None:
    level = torch.randn(2, 3, 12, 16)
    crop = DeformableCrop(3, 9, 4, 0.1)
    assert torch.allclose(crop(level, ROIS, 8), crop_and_resize(level, ROIS, 9, 8), atol=1e-4)


def test_offsets_move_parts_by_shares_of_the_box_and_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    level, offsets = (torch.randn(*shape, generator=generator) for shape in ((2, 2, 12, 16), (3, 2, 3, 3)))
    offsets.requires_grad_(True)
    moved = DeformableCrop(2, 8, 3, 0.1).move(level, ROIS, 8, offsets)
    for crop, roi, offset in zip(moved.detach(), ROIS, offsets.detach(), strict=True):
        assert np.allclose(crop, crop_by_loops(level.numpy(), roi.numpy(), 8, 8, offset.numpy()), atol=1e-4)
    (grad,) = torch.autograd.grad(moved.square().sum(), offsets)
    assert (grad[0] != 0).all()


def test_cropping_a_class_ignores_the_other_classes() -> None:
    semantic, labels = torch.randn(2, 5, 12, 16), torch.tensor([3, 0, 4])
    crops = crop_class(semantic, ROIS, labels, 9, 8)
    for n, label in enumerate(labels.tolist()):
        alone = crop_and_resize(semantic[:, label : label + 1], ROIS[n : n + 1], 9, 8)[0, 0]
        assert torch.allclose(crops[n], alone, atol=1e-5)
        others = torch.arange(5) != label
        changed = semantic + torch.randn(5, 1, 1) * others[:, None, None]
        assert torch.equal(crop_class(changed, ROIS, labels, 9, 8)[n], crops[n])
