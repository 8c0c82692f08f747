"""MaskLab: the shared conformance, and each of its parts against a plain transcription of its formula."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskkit import zoo
from maskkit.config import change
from maskkit.data.shapes import CATEGORIES
from maskkit.models.masklab import (
    DeformableCrop,
    MaskHead,
    Masklab,
    MasklabConfig,
    crop_and_resize,
    crop_class,
    direction_bins,
    map_truths,
    pool_directions,
    template,
)
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.dilation import last_stage
from maskkit.nn.roi import BOX_WEIGHTS
from maskkit.nn.rpn import decode
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "anchor_sizes": (16, 32, 64, 96),
    "rpn_width": 64,
    "rpn_before": 200,
    "rpn_after": 60,
    "roi_sampled": 32,
    "box_crop": 7,
    "crop": 21,
    "low_width": 8,
    "refine_width": 16,
    "detections": 20,
}


class TestMasklab(Conformance):
    preset = "masklab-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 160, "lr": 3e-3, "size": (192, 192)}


def small(**knobs: Any) -> Masklab:
    torch.manual_seed(0)
    config = zoo.preset("masklab-mobilenetv2-256").model
    return Masklab(change(config, num_classes=len(CATEGORIES), **{**SMALL, **knobs}))  # type: ignore[arg-type]


# crops ----------------------------------------------------------------------------------------------------------------


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


# directions -----------------------------------------------------------------------------------------------------------


def bin_by_formula(dx: float, dy: float, reach: float, config: MasklabConfig) -> int:
    turn = (math.atan2(dy, dx) % (2 * math.pi)) / (2 * math.pi / config.sectors)
    sector = math.floor(turn + config.sector_offset + 1e-9) % config.sectors
    return min(config.rings - 1, math.floor(config.rings * math.hypot(dx, dy) / reach)) * config.sectors + sector


SHAPES = [MasklabConfig(), MasklabConfig(sectors=4, rings=1), MasklabConfig(sector_offset=0.5, ring_reach="side")]


@pytest.mark.parametrize("config", SHAPES)
def test_bins_are_the_formula(config: MasklabConfig) -> None:
    rng = np.random.default_rng(0)
    dx, dy = rng.normal(0, 30, (2, 500))
    found = direction_bins(torch.from_numpy(dx), torch.from_numpy(dy), torch.tensor(50.0), config)
    assert found.tolist() == [bin_by_formula(x, y, 50.0, config) for x, y in zip(dx, dy, strict=True)]
    assert set(found.tolist()) == set(range(config.sectors * config.rings))


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("side", [40, 41])
def test_the_template_leads_to_the_middle(side: int, config: MasklabConfig) -> None:
    reach = math.sqrt(0.5) if config.ring_reach == "corner" else 0.5
    wanted = np.empty((side, side), int)
    for i in range(side):
        for j in range(side):
            x, y = (side - 1 - 2 * j) / (2 * side), (side - 1 - 2 * i) / (2 * side)
            wanted[i, j] = bin_by_formula(x, y, reach, config)
    assert (template(side, config).numpy() == wanted).all()


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("side", [40, 41])
def test_a_quarter_turn_permutes_the_sectors(side: int, config: MasklabConfig) -> None:
    plain, turned = template(side, config), torch.rot90(template(side, config))
    away = torch.ones(side, side, dtype=torch.bool)
    away[side // 2, side // 2] = side % 2 == 0
    sectors = config.sectors
    assert torch.equal(plain // sectors, turned // sectors)
    assert torch.equal((plain % sectors + sectors // 4)[away] % sectors, (turned % sectors)[away])


def test_at_the_centre_the_direction_is_that_of_the_x_axis() -> None:
    assert template(41, MasklabConfig())[20, 20] == 0
    assert direction_bins(torch.zeros(1), torch.zeros(1), torch.ones(1), MasklabConfig()).item() == 0


def test_pooling_one_hot_maps_gives_the_template() -> None:
    config = MasklabConfig()
    named = template(41, config)
    for channel in range(32):
        maps = torch.zeros(1, 32, 41, 41)
        maps[:, channel] = 1
        assert torch.equal(pool_directions(maps, named)[0] == 1, named == channel)


def oblong(config: MasklabConfig) -> tuple[Batch, Tensor]:
    """Two touching objects of one class in an image of 96 x 192, three times as high as wide, and the first's box."""
    masks = torch.zeros(2, 96, 192, dtype=torch.bool)
    masks[0, 3:93, 40:70], masks[1, 3:93, 70:100] = True, True
    boxes = torch.tensor([[40.0, 3, 70, 93], [70, 3, 100, 93]])
    images = torch.zeros(1, 3, 96, 192)
    meta = ImageMeta(1, "", (96, 192), (96, 192))
    batch = Batch(images, full_sizes(images), [Target.of(boxes, [1, 1], masks)], [meta])
    return batch, F.pad(boxes, (1, 0))


def test_what_pixels_learn_is_what_pooling_reads_and_tells_touching_objects_apart() -> None:
    config = MasklabConfig(num_classes=3)
    batch, rois = oblong(config)
    classes, directions = map_truths(batch, (96, 192), config)
    maps = F.one_hot(directions.clamp(min=0), 32).permute(0, 3, 1, 2).float() * (directions >= 0)
    pooled = pool_directions(crop_and_resize(maps, rois, 41, 1), template(41, config))
    assert (pooled > 0.5).float().mean() > 0.75, "all but the borders of the bins and of the box"
    assert (classes[0, 3:93, 40:100] == 1).all(), "the semantic map sees one thing"
    both = torch.tensor([[0.0, 40, 3, 100, 93]])
    across = pool_directions(crop_and_resize(maps, both, 41, 1), template(41, config))
    assert (across > 0.5).float().mean() < 0.5
    in_pixels = replace(config, in_square=False)
    _, directions = map_truths(batch, (96, 192), in_pixels)
    maps = F.one_hot(directions.clamp(min=0), 32).permute(0, 3, 1, 2).float() * (directions >= 0)
    assert (pool_directions(crop_and_resize(maps, rois, 41, 1), template(41, config)) > 0.5).float().mean() < 0.6


@pytest.mark.parametrize("config", [MasklabConfig(num_classes=5), MasklabConfig(num_classes=5, in_square=False)])
def test_truths_of_the_maps_are_those_of_the_pixels_at_the_centres(config: MasklabConfig) -> None:
    batch = TestMasklab.batch([3, 4], (3, 5))
    crowd, unknown = batch.targets[0], batch.targets[1]
    batch.targets[0] = replace(crowd, crowd=torch.arange(len(crowd)) == 0)
    batch.targets[1] = replace(unknown, has_mask=torch.arange(len(unknown)) != 0)
    classes, directions = map_truths(batch, (16, 16), config)
    for b, target in enumerate(batch.targets):
        assert target.masks is not None
        masks, areas = target.masks.dense(), target.masks.areas()
        plain = ~target.crowd & target.has_mask
        for i in range(16):
            for j in range(16):
                y, x = 8 * i + 4, 8 * j + 4
                there = [n for n in range(len(target)) if masks[n, y, x] and plain[n]]
                x1, y1, x2, y2 = target.boxes[~plain][0].tolist()
                unknown = (
                    bool(masks[~plain][0, y, x]) if b == 0 else math.floor(x1) <= x <= x2 and math.floor(y1) <= y <= y2
                )
                if not there:
                    assert directions[b, i, j] == -1
                    assert classes[b, i, j] == (-1 if unknown else 5)
                    continue
                n = min(there, key=lambda n: int(areas[n]))
                x1, y1, x2, y2 = target.boxes[n].tolist()
                dx, dy, width, height = (x1 + x2) / 2 - x, (y1 + y2) / 2 - y, x2 - x1, y2 - y1
                reach = math.hypot(width, height) / 2
                if config.in_square:
                    dx, dy, reach = dx / width, dy / height, math.sqrt(0.5)
                assert classes[b, i, j] == target.labels[n]
                assert directions[b, i, j] == bin_by_formula(dx, dy, reach, config)


# masks ----------------------------------------------------------------------------------------------------------------


def test_the_coarse_mask_is_a_sum_of_both_crops_and_low_layers_touch_only_the_refined_one() -> None:
    torch.manual_seed(0)
    head = MaskHead((4, 6), MasklabConfig(low_width=3, refine_width=64))
    nn.init.normal_(head.coarse.weight)
    semantic, direction = torch.randn(2, 21, 21), torch.randn(2, 21, 21)
    low = [torch.randn(2, 3, 21, 21) for _ in range(2)]
    with torch.no_grad():
        coarse, refined = head(semantic, direction, low).unbind(1)
        (a, b), bias = head.coarse.weight.flatten(), head.coarse.bias
        assert bias is not None
        assert torch.allclose(coarse, a * semantic + b * direction + bias, atol=1e-5)
        again = head(semantic, direction, [low[0], low[1] + 1]).unbind(1)
    assert torch.equal(again[0], coarse)
    assert not torch.allclose(again[1], refined)
    convs = [m for m in head.refine if isinstance(m, nn.Conv2d)]
    assert [(c.kernel_size[0], c.out_channels) for c in convs] == [(5, 64)] * 3 + [(1, 1)]
    assert convs[0].in_channels == 1 + 2 * 3


def test_pasted_masks_lie_where_they_were_sampled() -> None:
    """A ramp that was sampled from corner to corner has, in the middle of each cell that is pasted, its value there."""
    model = small().eval()
    with torch.no_grad():
        raw = model(torch.randn(1, 3, 128, 128))
    side = model.config.crop
    ramp = torch.linspace(0.1, 0.9, side).expand(raw.mask_logits.shape).logit()
    masks = model.select(raw._replace(mask_logits=ramp)).masks
    wanted = 0.1 + 0.8 * (torch.arange(side - 1) + 0.5) / (side - 1)
    assert torch.allclose(masks, wanted.expand(masks.shape), atol=1e-5)


# boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "same"), [("resnet26", False), ("mobilenetv2_100", True)])
def test_atrous_conv5_sees_the_same_on_a_denser_grid(name: str, same: bool) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, (16, 32), pad_same=same).eval()
    strided, atrous = (last_stage(backbone, atrous).eval() for atrous in (False, True))
    crops = torch.randn(1, backbone.channels[16], 41, 41)
    with torch.no_grad():
        coarse, dense = strided(crops), atrous(crops)
    assert dense.shape[1:] == (backbone.channels[32], 41, 41)
    assert torch.allclose(coarse, dense[:, :, ::2, ::2], atol=1e-4)


def test_the_box_heads_conv5_begins_as_the_backbones() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.normal_()
    model.adopt_backbone()
    theirs = model.backbone.body.blocks[5:].parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.box_head.stage.parameters(), theirs, strict=True))
    with torch.no_grad():
        next(model.box_head.stage.parameters()).zero_()
    assert next(iter(model.backbone.body.blocks[5:].parameters())).any(), "a copy, not the same"


def test_frozen_norm_stays_as_it_is_in_the_copy_too() -> None:
    model = small(backbone={"norm": "frozen"}).train()
    norms = [m for m in model.box_head.stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)


def test_boxes_are_regressed_again_by_the_code_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[[20.0, 20, 60, 60], [70, 70, 110, 120]]])
    logits = torch.full((2, 6), -9.0)
    logits[0, 3], logits[1, 1] = 3, 1
    deltas = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    sizes = torch.tensor([[128.0, 128]])
    for passes in (1, 2, 3):
        model = small(box_passes=passes, detections=2)
        monkeypatch.setattr(model, "classify", lambda shared, rois: (logits, deltas))
        found = model.detect(torch.zeros(1), logits, deltas, boxes, sizes)
        wanted = boxes[0]
        for _ in range(passes):
            code = torch.stack([deltas[0, 3], deltas[1, 1]])
            wanted = decode(code, wanted, BOX_WEIGHTS).clamp(0, 128)
        assert found.labels[0].tolist() == [3, 1]
        assert torch.allclose(found.boxes[0], wanted, atol=1e-3)
