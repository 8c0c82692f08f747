"""PolarMask: the shared conformance, and what is its own; its rays are tested in tests/nn/test_polar.py."""

from dataclasses import replace
from typing import Any, ClassVar

import torch

from maskkit import zoo
from maskkit.data.shapes import CATEGORIES
from maskkit.models.polarmask import PolarHead, PolarMask, PolarMaskConfig
from tests.models.conformance import Conformance
from tests.nn.test_polar import ellipse, iou

SMALL = {"detector": {"width": 32, "tower_convs": 1, "size_ranges": (24.0, 48.0, 64.0)}}


class TestPolarMask(Conformance):
    preset = "polarmask-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit_seed: ClassVar[int] = 116
    """Discs and squares alone: rays fill the hole of a ring, whose IoU ends at 0.7 even with the true rays."""


def polarmask() -> PolarMask:
    net = TestPolarMask.model()
    assert isinstance(net, PolarMask)
    return net


def test_objects_without_a_known_mask_train_the_box_but_no_rays() -> None:
    net = polarmask()
    batch = TestPolarMask.batch([3, 4])
    known = net.loss_terms(net(batch.images), batch)
    batch.targets = [replace(t, has_mask=torch.zeros_like(t.has_mask)) for t in batch.targets]
    losses = net.loss_terms(net(batch.images), batch)
    assert known["mask"] > 0
    assert losses["box"] > 0
    assert losses["mask"] == losses["quality"] == 0


def test_untrained_distances_are_about_one_unit() -> None:
    torch.manual_seed(0)
    preset = zoo.preset("polarmask-mobilenetv2-320").model
    assert isinstance(preset, PolarMaskConfig)
    levels = [torch.randn(1, preset.detector.width, n, n) for n in (8, 4, 2, 1)]
    for unit, expected in (("strides", preset.detector.strides), ("pixels", (1, 1, 1, 1))):
        raw = PolarHead(replace(preset.detector, distance_unit=unit), 1, 36)(levels)
        for size, distances, rays in zip(expected, raw.distances, raw.rays, strict=True):
            assert 0.5 < distances.mean() / size < 2
            assert 0.5 < rays.mean() / size < 2


def test_of_two_copies_of_a_box_one_is_kept() -> None:
    net = polarmask().eval()
    size = (128, 128)
    grids = [(128 // s, 128 // s) for s in net.config.detector.strides]
    logits = [torch.full((1, len(CATEGORIES), *g), -9.0) for g in grids]
    logits[0][0, 1, 7:9, 8] = torch.tensor([3.0, 2.0])
    sides = [torch.full((1, 4, *g), 20.0) for g in grids]
    zeros = [torch.zeros(1, 1, *g) for g in grids]
    rays = [torch.full((1, 36, *g), 20.0) for g in grids]
    raw = type(net(torch.zeros(1, 3, *size)))(tuple(logits), tuple(sides), tuple(zeros), tuple(rays))
    found = net.detect(raw, size)
    assert int((found.scores > 0).sum()) == 1
    assert found.boxes[0, 0].tolist() == [48, 40, 88, 80]
    chosen = net.select(raw)
    full = torch.nn.functional.interpolate(chosen.masks[:, :1], size, mode="bilinear", align_corners=False)[0, 0] > 0.5
    assert iou(full, ellipse(size, (68, 60), (20.5, 20.5), 0)) > 0.97
