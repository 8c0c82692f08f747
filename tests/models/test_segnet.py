"""SegNet under the suite that all semantic methods share, and what is its own."""

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from maskkit.models.segnet import median_frequency, unpool
from tests.models.semantic import SemanticConformance


class TestSegnet(SemanticConformance):
    preset = "segnet-thin"
    knobs: ClassVar[dict[str, Any]] = {"layout": ((8, 8), (16, 16), (32,), (32,), (32,))}
    overfit: ClassVar[dict[str, Any]] = {"steps": 300, "lr": 1e-2, "size": (128, 128)}


def test_unpooling_keeps_the_maxima_and_nothing_else() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 7) + 1
    pooled, places = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
    back = unpool(pooled, places, (9, 7))
    assert back.shape == x.shape
    assert torch.equal(back[back > 0], x[back > 0])
    assert int((back > 0).sum()) == pooled.numel()
    assert torch.allclose(back.sum((2, 3)), pooled.sum((2, 3)))


def test_any_size_comes_back() -> None:
    net = TestSegnet.model().eval()
    with torch.no_grad():
        for size in ((45, 60), (90, 120), (33, 71)):
            assert net(torch.zeros(1, 3, *size)).logits.shape[2:] == size


def test_median_frequency_is_that_of_the_images_that_show_a_class() -> None:
    truth = torch.tensor([[[0, 0, 0, 1]], [[0, 0, 0, 255]]])
    # class 0: 6 of 7 pixels; class 1: 1 of the 4 of its only image; class 2: nowhere
    weights = median_frequency(truth, 3)
    middle = (6 / 7 + 1 / 4) / 2
    assert torch.allclose(weights, torch.tensor([middle / (6 / 7), middle * 4, 1.0]))


@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("size", [(8, 6), (9, 7), (8, 7)])
def test_unpooling_of_an_exported_graph_is_the_same(size, ceil, monkeypatch) -> None:
    images = torch.rand(2, 3, *size)
    pooled, places = F.max_pool2d(images, 2, 2, ceil_mode=ceil, return_indices=True)
    expected = unpool(pooled, places, size)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(unpool(pooled, places, size), expected)
