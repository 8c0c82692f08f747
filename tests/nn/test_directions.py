"""Directions and what is pooled from them, against a plain transcription of the formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit.data.shapes import draw
from maskkit.nn.crops import crop_and_resize
from maskkit.nn.directions import DirectionConfig, direction_bins, map_targets, pool_directions, template
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes


def bin_by_formula(dx: float, dy: float, radius: float, config: DirectionConfig) -> int:
    turn = (math.atan2(dy, dx) % (2 * math.pi)) / (2 * math.pi / config.sectors)
    sector = math.floor(turn + config.offset + 1e-9) % config.sectors
    return min(config.rings - 1, math.floor(config.rings * math.hypot(dx, dy) / radius)) * config.sectors + sector


SHAPES = [DirectionConfig(), DirectionConfig(sectors=4, rings=1), DirectionConfig(offset=0.5, last_ring="side")]


@pytest.mark.parametrize("config", SHAPES)
def test_bins_are_the_formula(config: DirectionConfig) -> None:
    rng = np.random.default_rng(0)
    dx, dy = rng.normal(0, 30, (2, 500))
    found = direction_bins(torch.from_numpy(dx), torch.from_numpy(dy), torch.tensor(50.0), config)
    assert found.tolist() == [bin_by_formula(x, y, 50.0, config) for x, y in zip(dx, dy, strict=True)]
    assert set(found.tolist()) == set(range(config.sectors * config.rings))


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("side", [40, 41])
def test_the_template_leads_to_the_middle(side: int, config: DirectionConfig) -> None:
    radius = math.sqrt(0.5) if config.last_ring == "corner" else 0.5
    wanted = np.empty((side, side), int)
    for i in range(side):
        for j in range(side):
            x, y = (side - 1 - 2 * j) / (2 * side), (side - 1 - 2 * i) / (2 * side)
            wanted[i, j] = bin_by_formula(x, y, radius, config)
    assert (template(side, config).numpy() == wanted).all()


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("side", [40, 41])
def test_a_quarter_turn_permutes_the_sectors(side: int, config: DirectionConfig) -> None:
    plain, turned = template(side, config), torch.rot90(template(side, config))
    away = torch.ones(side, side, dtype=torch.bool)
    away[side // 2, side // 2] = side % 2 == 0
    sectors = config.sectors
    assert torch.equal(plain // sectors, turned // sectors)
    assert torch.equal((plain % sectors + sectors // 4)[away] % sectors, (turned % sectors)[away])


def test_at_the_centre_the_direction_is_that_of_the_x_axis() -> None:
    assert template(41, DirectionConfig())[20, 20] == 0
    assert direction_bins(torch.zeros(1), torch.zeros(1), torch.ones(1), DirectionConfig()).item() == 0


def test_pooling_one_hot_maps_gives_the_template() -> None:
    config = DirectionConfig()
    named = template(41, config)
    for channel in range(32):
        maps = torch.zeros(1, 32, 41, 41)
        maps[:, channel] = 1
        assert torch.equal(pool_directions(maps, named)[0] == 1, named == channel)


def oblong() -> tuple[Batch, Tensor]:
    """Two touching objects of one class in an image of 96 x 192, three times as high as wide, and the first's box."""
    masks = torch.zeros(2, 96, 192, dtype=torch.bool)
    masks[0, 3:93, 40:70], masks[1, 3:93, 70:100] = True, True
    boxes = torch.tensor([[40.0, 3, 70, 93], [70, 3, 100, 93]])
    images = torch.zeros(1, 3, 96, 192)
    meta = ImageMeta(1, "", (96, 192), (96, 192))
    batch = Batch(images, full_sizes(images), [Target.of(boxes, [1, 1], masks)], [meta])
    return batch, F.pad(boxes, (1, 0))


def test_what_pixels_learn_is_what_pooling_reads_and_tells_touching_objects_apart() -> None:
    config = DirectionConfig()
    batch, rois = oblong()
    classes, directions = map_targets(batch, (96, 192), 3, config)
    maps = F.one_hot(directions.clamp(min=0), 32).permute(0, 3, 1, 2).float() * (directions >= 0)
    pooled = pool_directions(crop_and_resize(maps, rois, 41, 1), template(41, config))
    assert (pooled > 0.5).float().mean() > 0.75, "all but the borders of the bins and of the box"
    assert (classes[0, 3:93, 40:100] == 1).all(), "the semantic map sees one thing"
    both = torch.tensor([[0.0, 40, 3, 100, 93]])
    across = pool_directions(crop_and_resize(maps, both, 41, 1), template(41, config))
    assert (across > 0.5).float().mean() < 0.5
    in_pixels = replace(config, in_square=False)
    _, directions = map_targets(batch, (96, 192), 3, in_pixels)
    maps = F.one_hot(directions.clamp(min=0), 32).permute(0, 3, 1, 2).float() * (directions >= 0)
    assert (pool_directions(crop_and_resize(maps, rois, 41, 1), template(41, config)) > 0.5).float().mean() < 0.6


def shapes() -> Batch:
    """Two images of 128 x 128 pixels with a few objects each."""
    targets = [draw(seed, (128, 128), (3, 5))[1] for seed in (3, 4)]
    images = torch.zeros(2, 3, 128, 128)
    return Batch(images, full_sizes(images), targets, [ImageMeta(i, "", (128, 128), (128, 128)) for i in (3, 4)])


@pytest.mark.parametrize("config", [DirectionConfig(), DirectionConfig(in_square=False)])
def test_truths_of_the_maps_are_those_of_the_pixels_at_the_centres(config: DirectionConfig) -> None:
    batch = shapes()
    crowd, unknown = batch.targets[0], batch.targets[1]
    batch.targets[0] = replace(crowd, crowd=torch.arange(len(crowd)) == 0)
    batch.targets[1] = replace(unknown, has_mask=torch.arange(len(unknown)) != 0)
    classes, directions = map_targets(batch, (16, 16), 5, config)
    for b, target in enumerate(batch.targets):
        assert target.masks is not None
        masks, areas = target.masks.dense(), target.masks.areas()
        plain = ~target.crowd & target.has_mask
        for i in range(16):
            for j in range(16):
                y, x = 8 * i + 4, 8 * j + 4
                there = [n for n in range(len(target)) if masks[n, y, x] and plain[n]]
                x1, y1, x2, y2 = target.boxes[~plain][0].tolist()
                unclear = (
                    bool(masks[~plain][0, y, x]) if b == 0 else math.floor(x1) <= x <= x2 and math.floor(y1) <= y <= y2
                )
                if not there:
                    assert directions[b, i, j] == -1
                    assert classes[b, i, j] == (-1 if unclear else 5)
                    continue
                n = min(there, key=lambda n: int(areas[n]))
                x1, y1, x2, y2 = target.boxes[n].tolist()
                dx, dy, width, height = (x1 + x2) / 2 - x, (y1 + y2) / 2 - y, x2 - x1, y2 - y1
                radius = math.hypot(width, height) / 2
                if config.in_square:
                    dx, dy, radius = dx / width, dy / height, math.sqrt(0.5)
                assert classes[b, i, j] == target.labels[n]
                assert directions[b, i, j] == bin_by_formula(dx, dy, radius, config)
