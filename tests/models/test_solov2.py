"""SOLOv2: the shared conformance, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from maskkit import zoo
from maskkit.config import change
from maskkit.data.shapes import draw
from maskkit.models.solov2 import Solov2, Solov2Config, Solov2Raw
from maskkit.nn.grid import cell_middles
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, DenseMasks, Target, full_sizes
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "width": 32,
    "head_width": 32,
    "feature_width": 32,
    "kernel": 32,
    "grid": {
        "grids": (16, 12, 10, 8, 6),
        "scale_ranges": ((1, 20), (14, 32), (24, 48), (36, 70), (60, 999)),
        "candidates": 60,
    },
}


class TestSolov2(Conformance):
    preset = "solov2-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


def model(**knobs: Any) -> Solov2:
    config = zoo.preset("solov2-mobilenetv2-256").model
    assert isinstance(config, Solov2Config)
    return Solov2(change(change(config, num_classes=3, **SMALL), **knobs))


def test_shapes_of_the_published_coco_model() -> None:
    with torch.device("meta"):
        raw = Solov2(zoo.preset("solov2-resnet50-3x").model)(torch.zeros(1, 3, 320, 352))  # type: ignore[arg-type]
    assert raw.category.shape == (1, 80, 3872)
    assert raw.kernels.shape == (1, 256, 3872)
    assert raw.feature.shape == (1, 256, 80, 88)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_deformable_convolution_learns_where_to_look(kind: str) -> None:
    knobs = {"backbone": {"name": "resnet26", "pad_same": False}, "head_convs": 1, "deformable_feature": True}
    net = model(deformable=kind, **knobs).train()
    image, target = draw(3, (64, 64), (3, 5))
    target = replace(target, labels=target.labels % 3)
    images = image[None].float() / 128 - 1
    batch = Batch(images, full_sizes(images), [target], [ImageMeta(0, "", (64, 64), (64, 64))])
    for p in net.parameters():  # what starts at zero passes no gradient on
        if not p.any():
            nn.init.normal_(p, std=0.05)
    losses = net.loss_terms(net(batch.images), batch)
    torch.stack(list(losses.values())).sum().backward()
    offsets = [p for n, p in net.named_parameters() if "offset_mask.weight" in n]
    assert len(offsets) == 6 + 2 + 7 + 1  # stages of two blocks, towers, mask branch, its last
    assert all(p.shape[0] == (2 if kind == "v1" else 3) * p[0, 0].numel() for p in offsets)
    assert all(p.grad is not None and p.grad.any() for p in offsets)


def square_raw(net: Solov2, cells: list[tuple[int, int, float]]) -> Solov2Raw:
    """Every one of ``cells`` (cell, class, logit) draws the same square of 16 x 16 of the 32 x 32 cells."""
    feature = torch.full((1, 32, 32, 32), -1.0)
    feature[..., 8:24, 8:24] = 1.0
    category = torch.full((1, 3, sum(s * s for s in net.config.grid.grids)), -9.0)
    kernels = torch.zeros(1, 32, category.shape[2])
    for cell, label, logit in cells:
        category[0, label, cell] = logit
        kernels[0, 0, cell] = 12.0
    return Solov2Raw(category, kernels, feature)


def test_a_cell_draws_its_mask_and_copies_of_its_class_decay() -> None:
    net = model().eval()
    found = net.select(square_raw(net, [(5, 1, 3.0), (300, 1, 2.0), (320, 2, 1.0)]))
    scores = torch.tensor([3.0, 1.0, 2.0]).sigmoid() * torch.tensor([1.0, 1.0, torch.tensor(-2.0).exp()])
    assert found.labels[0, :3].tolist() == [1, 2, 1]
    assert torch.allclose(found.scores[0, :3], scores, atol=1e-4)
    assert (found.scores[0, 3:] == 0).all()
    assert torch.equal(found.boxes[0, 0], torch.tensor([0.25, 0.25, 0.75, 0.75]))
    assert (found.masks[0, 0] > 0.5).sum() == 256


def test_point_nms_keeps_one_of_two_neighbouring_cells() -> None:
    net = model().eval()
    found = net.select(square_raw(net, [(5, 1, 3.0), (6, 1, 2.9)]))
    assert int((found.scores > 0).sum()) == 1


def test_with_positional_encoding_masks_start_at_their_cell() -> None:
    net = model(position_frequencies=5).eval()
    nn.init.zeros_(net.kernel.weight)
    with torch.no_grad():
        raw = net(torch.randn(1, 3, 64, 96))
    logits = torch.einsum("dp,dhw->phw", raw.kernels[0], raw.feature[0])  # (P, 16, 24)
    best = logits.flatten(1).argmax(1)
    places = torch.stack([(best % 24 + 0.5) / 24, (best // 24 + 0.5) / 16], 1)
    assert (places - cell_middles(net.config.grid.grids)).abs().max() < 1 / 16


def test_masks_too_small_for_their_level_are_dropped() -> None:
    net = model(grid={"min_area": (300, 4, 4, 4, 4)}).eval()
    assert (net.select(square_raw(net, [(5, 1, 3.0)])).scores == 0).all()
    assert (net.select(square_raw(net, [(300, 1, 3.0)])).scores > 0).any()


def test_masks_and_boxes_can_be_mixed() -> None:
    net = model().train()
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, 20:60, 20:60] = True
    target = Target.of([[20, 20, 60, 60], [70, 70, 110, 110]], [0, 1], masks, has_mask=[True, False])
    metas = [ImageMeta(0, "", (128, 128), (128, 128))]
    images = torch.randn(1, 3, 128, 128)
    batch = Batch(images, full_sizes(images), [target], metas)
    losses = net.loss_terms(net(batch.images), batch)
    assert losses["mask"].item() > 0
    assert losses["mask/projection"].item() > 0
    before = losses["mask"].item()
    masks[1] = True  # the mask of a box-only object is never read
    target.masks = DenseMasks(masks)
    assert net.loss_terms(net(batch.images), batch)["mask"].item() == pytest.approx(before)
