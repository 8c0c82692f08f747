"""FCIS: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.data.shapes import CATEGORIES
from maskkit.models.fcis import Fcis
from maskkit.nn.position_sensitive import corner_sums, parts, pool
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "width": 64,
    "rpn_width": 64,
    "parts": 5,
    "bins": 15,
    "proposals": {"anchor_sizes": ((16, 32, 64),), "before": (600, 600), "after": (200, 200)},
    "regions": {"sampled": 256, "detections": 20},
}


class TestFcis(Conformance):
    preset = "fcis-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    near = 0.9
    """Regions of random models that tie are ranked by the last digit, and the second pass follows them."""
    floor = 0.7
    """Masks are put together from cells of stride 16: AP 0.79 and AP75 0.82 after 250 steps, 0.87 and 1.0 after 400."""
    overfit: ClassVar[dict[str, Any]] = {"steps": 250, "lr": 3e-3, "size": (320, 320)}


def small(**knobs: Any) -> Fcis:
    torch.manual_seed(0)
    config = zoo.preset("fcis-mobilenetv2-256").model
    return Fcis(change(change(config, num_classes=len(CATEGORIES), **SMALL), **knobs))  # type: ignore[arg-type]


def by_loops(maps: np.ndarray, rois: np.ndarray, groups: int, bins: int, stride: int) -> np.ndarray:
    """Position-sensitive pooling as R-FCN describes it, bin by bin."""
    _, channels, height, width = maps.shape
    outputs = channels // groups**2
    pooled = np.zeros((len(rois), bins, bins, outputs))
    for n, roi in enumerate(rois):
        x1, y1, x2, y2 = np.floor(roi[1:] + 0.5) / stride
        for i in range(bins):
            for j in range(bins):
                top, bottom = np.floor(y1 + i * (y2 - y1) / bins), np.ceil(y1 + (i + 1) * (y2 - y1) / bins)
                left, right = np.floor(x1 + j * (x2 - x1) / bins), np.ceil(x1 + (j + 1) * (x2 - x1) / bins)
                rows = slice(int(np.clip(top, 0, height)), int(np.clip(bottom, 0, height)))
                columns = slice(int(np.clip(left, 0, width)), int(np.clip(right, 0, width)))
                part = (i * groups // bins) * groups + j * groups // bins
                cells = maps[int(roi[0]), part :: groups**2, rows, columns]
                pooled[n, i, j] = cells.mean((1, 2)) if cells.size else 0
    return pooled


def test_one_gather_is_the_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 3 * 16, 11, 13))
    low = rng.uniform(-20, 150, (12, 2))
    rois = np.concatenate([rng.integers(0, 2, (12, 1)), low, low + rng.uniform(3, 120, (12, 2))], 1)
    pooled = pool(corner_sums(torch.from_numpy(maps), 4), torch.from_numpy(rois), 8, 16)
    assert np.allclose(pooled, by_loops(maps, rois, 4, 8, 16), atol=1e-4)


def test_constant_parts_are_copied_and_their_order_matters() -> None:
    maps = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 12, 12).contiguous()
    rois = torch.tensor([[0.0, 16, 16, 112, 112]])
    pooled = pool(corner_sums(maps, 3), rois, 9, 16)[0, :, :, 0]
    part = parts(9, 3)
    assert torch.allclose(pooled, (part[:, None] * 3 + part).float(), atol=1e-4)
    assert not torch.allclose(pool(corner_sums(maps.flip(1), 3), rois, 9, 16)[0, :, :, 0], pooled)


@pytest.mark.parametrize(("inside", "outside", "found", "drawn"), [(6, -6, 1, 1), (-6, 6, 1, 0), (-6, -6, 0, None)])
def test_three_cases_of_scores(inside: float, outside: float, found: int, drawn: int | None) -> None:
    """High inside: object and mask; high outside: object, no mask; neither: no object (FCIS, section 2)."""
    model = small()
    config = model.config
    maps = torch.full((1, config.num_classes + 1, 2, config.parts**2, 10, 10), -6.0)
    maps[:, 2, 0], maps[:, 2, 1] = outside, inside
    boxes = torch.zeros(1, 4 * config.parts**2, 10, 10)
    rois = torch.tensor([[0.0, 20, 20, 120, 110]])
    maps, boxes = (corner_sums(m, config.parts) for m in (maps.flatten(1, 3), boxes))
    regions = model.read(maps, boxes, rois, torch.tensor([2]))
    assert torch.allclose(regions.class_logits[0, 2], torch.tensor(6.0 if found else -6.0), atol=1e-3)
    if drawn is not None:
        assert ((regions.mask_logits > 0) == bool(drawn)).all()


def test_with_one_part_a_pixel_means_the_same_wherever_it_lies_in_its_region() -> None:
    maps = torch.randn(1, 1, 20, 20)
    here, there = (torch.tensor([[0.0, x, 32, x + 160, 192]]) for x in (32, 48))
    a, b = (pool(corner_sums(maps, 1), rois, 10, 16)[0, :, :, 0] for rois in (here, there))
    assert torch.allclose(a[:, 1:], b[:, :-1], atol=1e-4)
    sensitive = torch.randn(1, 25, 20, 20)
    a, b = (pool(corner_sums(sensitive, 5), rois, 10, 16)[0, :, :, 0] for rois in (here, there))
    assert not torch.allclose(a[:, 1:], b[:, :-1], atol=1e-2)


def test_regions_are_few_against_the_network() -> None:
    """Pooling writes as many numbers as there are cells, and nothing of the size of the maps for each region."""
    model = small()
    maps, boxes = (corner_sums(torch.randn(1, n * 25, 16, 16), 5) for n in ((len(CATEGORIES) + 1) * 2, 4))
    with torch.no_grad():
        one = model.read(maps, boxes, torch.tensor([[0.0, 0, 0, 100, 100]]))
        many = model.read(maps, boxes, torch.tensor([[0.0, 0, 0, 100, 100]]).expand(300, 5))
    assert torch.equal(many.class_logits, one.class_logits.expand(300, -1))
