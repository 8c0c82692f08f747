"""SOLO: the shared conformance for two of its heads, and what is its own."""

from typing import Any, ClassVar

import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.models.solo import Solo, SoloConfig, SoloRaw
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "width": 32,
    "head_width": 32,
    "head_convs": 2,
    "grid": {
        "grids": (16, 12, 10, 8, 6),
        "scale_ranges": ((1, 20), (14, 32), (24, 48), (36, 70), (60, 999)),
        "candidates": 60,
    },
}


class TestSolo(Conformance):
    preset = "solo-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {**SMALL, "head": "vanilla"}
    floor = 0.6
    """Masks of larger objects lie on cells of 8 or 16 pixels: AP 0.71, at an AP75 of 1.0, is what 160 steps reach."""


class TestLightSolo(Conformance):
    variant = True
    preset = "solo-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {**Conformance.overfit, "steps": 240}
    floor = 0.6
    """As above."""


def model(**knobs: Any) -> Solo:
    config = zoo.preset("solo-mobilenetv2-256").model
    assert isinstance(config, SoloConfig)
    return Solo(change(change(config, num_classes=3, **SMALL), **knobs))


def test_mask_channels_of_the_published_coco_models() -> None:
    for preset, channels in (
        ("solo-resnet50-1x", [1600, 1296, 576, 256, 144]),
        ("solo-decoupled-resnet50-1x", [80, 72, 48, 32, 24]),
        ("solo-decoupled-light-resnet50-512", [80, 72, 48, 32, 24]),
    ):
        with torch.device("meta"):
            net = Solo(zoo.preset(preset).model)  # type: ignore[arg-type]
            raw = net.eval()(torch.zeros(1, 3, 320, 352))
        assert raw.category.shape == (1, 80, 3872)
        sizes = [(80, 88), (80, 88), (40, 44), (20, 22), (20, 22)]
        assert [m.shape[1:] for m in raw.masks] == [(c, *s) for c, s in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize("head", ["vanilla", "decoupled", "decoupled-light"])
def test_with_positional_encoding_masks_start_at_their_cell(head: str) -> None:
    net = model(head=head, position_frequencies=5).eval()
    with torch.no_grad():
        raw = net(torch.randn(1, 3, 128, 192))
    for side, masks in zip(net.config.grid.grids, raw.masks, strict=True):
        logits = net.cell_logits(masks[0], torch.arange(side**2), side)  # (S * S, h, w)
        height, width = logits.shape[1:]
        best = logits.flatten(1).argmax(1)
        places = torch.stack([(best % width + 0.5) / width, (best // width + 0.5) / height], 1)
        middles = (torch.arange(side) + 0.5) / side
        cells = torch.stack([middles.repeat(side), middles.repeat_interleave(side)], 1)
        assert (places - cells).abs().max() < 1.5 / min(height, width)


def test_decoupled_logits_are_those_of_the_product() -> None:
    net = model(head="decoupled")
    masks = 3 * torch.randn(32, 5, 6, dtype=torch.float64)
    cells = torch.tensor([0, 17, 255])
    product = masks[cells % 16].sigmoid() * masks[16 + cells // 16].sigmoid()
    assert torch.allclose(net.cell_logits(masks, cells, 16).sigmoid(), product)
    extreme = torch.full((32, 1, 1), 80.0)
    assert net.cell_logits(extreme, cells, 16).isfinite().all()
    assert net.cell_logits(-extreme, cells, 16).isfinite().all()


def test_row_i_and_column_j_make_the_mask_of_cell_i_j() -> None:
    net = model().eval()
    grids = net.config.grid.grids
    category = torch.full((1, 3, sum(s * s for s in grids)), -9.0)
    level, row, column = 1, 3, 7
    category[0, 2, grids[0] ** 2 + row * grids[1] + column] = 3.0
    masks = [torch.full((1, 2 * s, 32, 32), -9.0) for s in grids]
    masks[level][0, column, :, 8:16] = 9.0  # columns come first
    masks[level][0, grids[level] + row, 4:20] = 9.0
    found = net.select(SoloRaw(category, *masks))
    assert int(found.labels[0, 0]) == 2
    assert torch.equal(found.boxes[0, 0], torch.tensor([8, 4, 16, 20]) / 32)
    assert int((found.scores > 0).sum()) == 1
