"""PANet: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import torch
from torch import nn

from maskkit import zoo
from maskkit.config import change
from maskkit.data.shapes import CATEGORIES
from maskkit.decode import BoxesOnly
from maskkit.decode.outputs import Boxes
from maskkit.models.panet import Panet, PathAggregation, fuse
from maskkit.nn.roi import PoolingConfig, pool
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "width": 32,
    "box_width": 64,
    "mask_width": 64,
    "proposals": {"anchor_sizes": ((8,), (16,), (32,), (64,), (96,)), "before": (200, 100), "after": (100, 60)},
    "regions": {"sampled": 128, "detections": 20},
}


class TestPanet(Conformance):
    preset = "panet-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 320, "lr": 3e-3, "size": (320, 320)}


def small(**knobs: Any) -> Panet:
    torch.manual_seed(0)
    config = zoo.preset("panet-mobilenetv2-256").model
    return Panet(change(change(config, num_classes=len(CATEGORIES), **SMALL), **knobs))  # type: ignore[arg-type]


def test_equal_levels_and_equal_layers_are_ordinary_pooling() -> None:
    torch.manual_seed(0)
    level, rois = torch.randn(1, 32, 40, 40), torch.tensor([[0.0, 10, 20, 110, 90], [0, 0, 0, 160, 160]])
    pooled = pool([level], [4], rois, 7, PoolingConfig(sampling_ratio=2))
    layer = nn.Conv2d(32, 32, 3, padding=1)
    assert torch.equal(fuse(nn.ModuleList([layer] * 4), pooled.expand(4, *pooled.shape)), layer(pooled).relu())


def test_a_small_region_sees_the_coarsest_level() -> None:
    model = small().eval()
    levels = [torch.rand(1, 32, 32 >> i, 32 >> i) for i in range(5)]
    rois = torch.tensor([[0.0, 40, 40, 56, 60]])
    with torch.no_grad():
        before = model.box_head(model.pool(levels, rois, 7))[0]
        levels[3] = levels[3] + torch.randn(levels[3].shape)
        after = model.box_head(model.pool(levels, rois, 7))[0]
    assert not torch.allclose(before, after, atol=1e-6)


def test_without_the_foreground_map_plain_masks_remain() -> None:
    head = small().mask_head
    pooled, labels = torch.randn(4, 3, 32, 14, 14), torch.tensor([4, 0, 2])
    with torch.no_grad():
        features, foreground = head.features(pooled)
        assert foreground.shape == (3, 28 * 28)
        plain = head.predictor(features)[torch.arange(3), labels]
        assert torch.allclose(head(pooled, labels), plain + foreground.view(3, 28, 28), atol=1e-5)
        head.foreground.weight.zero_()
        assert torch.allclose(head(pooled, labels), plain, atol=1e-5)


def test_detail_reaches_every_level_through_the_bottom_up_path() -> None:
    path = PathAggregation((8, 8, 8, 8), 32).eval()
    features = [torch.randn(1, 8, 64 >> i, 64 >> i, requires_grad=True) for i in range(4)]
    levels = path(features)
    assert [level.shape[2] for level in levels] == [64, 32, 16, 8, 4]
    assert (levels[4] == levels[3][:, :, ::2, ::2]).all()
    (grad,) = torch.autograd.grad(levels[3].sum(), features[0])
    assert grad.any()


def test_a_detector_has_no_masks() -> None:
    model = small(masks=False).eval()
    with torch.no_grad():
        selected = model.select(model(torch.randn(1, 3, 128, 128)))
    assert isinstance(selected, Boxes)
    assert model.decoder == BoxesOnly()
    assert selected.boxes.shape == (1, 20, 4)
