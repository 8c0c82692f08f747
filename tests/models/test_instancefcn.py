"""InstanceFCN: the shared conformance, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from maskkit import zoo
from maskkit.data.dataset import ONE_CLASS
from maskkit.geometry import boxes as box_math
from maskkit.models.instancefcn import (
    InstanceFcn,
    InstanceFcnConfig,
    assemble,
    fitting,
    in_a_row,
    part_of,
    window_boxes,
    window_places,
)
from maskkit.nn.backbones.backbone import fold_batch_norm
from maskkit.nn.losses import OUTSIDE
from maskkit.nn.position_sensitive import parts
from maskkit.nn.rpn import match_boxes
from maskkit.prediction import ImageMeta
from maskkit.targets import Target
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {"width": 64, "window": 15, "scales": (1.0, 1 / 1.5), "candidates": 200, "detections": 100}


class TestInstanceFcn(Conformance):
    preset = "instancefcn-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    floor = 0.6
    """Of one class, "object", with masks put together from cells of stride 8: AP 0.75, AP50 1.0 after 60 steps."""
    overfit: ClassVar[dict[str, Any]] = {"steps": 80, "lr": 3e-3, "size": (160, 160)}


def small(**knobs: Any) -> InstanceFcn:
    torch.manual_seed(0)
    config = zoo.preset("instancefcn-mobilenetv2-256").model
    return InstanceFcn(replace(config, **{**SMALL, **knobs}))  # type: ignore[arg-type]


def test_one_gather_is_the_loop_over_windows() -> None:
    rng = np.random.default_rng(0)
    k, m = 3, 7
    maps = [torch.from_numpy(rng.standard_normal((2, k * k, h, w))) for h, w in ((6, 9), (3, 4))]
    grids = [(6, 9), (3, 4)]
    places, part = window_places(grids, m, k), part_of(m, k)
    for b in range(2):
        found = assemble(in_a_row(maps, m), torch.full((len(places),), b), places, part)
        n = 0
        for level in maps:
            for y in range(level.shape[2]):
                for x in range(level.shape[3]):
                    for i in range(m):
                        for j in range(m):
                            row, column = y + i - m // 2, x + j - m // 2
                            inside = 0 <= row < level.shape[2] and 0 <= column < level.shape[3]
                            which = (i * k // m) * k + j * k // m
                            wanted = level[b, which, row, column].item() if inside else OUTSIDE
                            assert found[n, i, j].item() == wanted
                    n += 1
        assert n == len(found)


def test_windows_lie_around_their_cells() -> None:
    boxes = window_boxes([(4, 6), (2, 3)], (32, 48), 5)
    centres = box_math.to_centres(boxes)
    assert centres[:7, :2].tolist() == [[4, 4], [12, 4], [20, 4], [28, 4], [36, 4], [44, 4], [4, 12]]
    assert centres[24:26, :2].tolist() == [[8, 8], [24, 8]]
    assert (centres[:24, 2:] == 40).all()
    assert (centres[24:, 2:] == 80).all()


def test_constant_maps_are_copied_part_by_part() -> None:
    maps = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 21, 21)
    whole = torch.tensor([[0, 441, 21]])
    found = assemble(maps.reshape(1, -1), torch.zeros(1, dtype=torch.int64), whole, part_of(21, 3))[0]
    part = torch.arange(3).repeat_interleave(7)
    assert torch.equal(found, (part[:, None] * 3 + part).float())


def test_floor_is_how_fcis_cuts_its_regions() -> None:
    for cells, count in ((21, 5), (21, 3), (15, 7), (8, 8)):
        assert torch.equal(part_of(cells, count), parts(cells, count))


def test_touching_objects_get_masks_of_their_own_and_with_one_part_they_cannot() -> None:
    """Score maps as they should be: at each pixel of an object the map of its part is high, all others are low."""
    masks = torch.zeros(2, 21, 40, dtype=torch.bool)
    masks[0, 4:17, 4:16], masks[1, 4:17, 16:28] = True, True
    for k, apart in ((5, True), (1, False)):
        part, m = part_of(21, k), 21
        maps = torch.full((1, k * k, 21, 40), -5.0)
        for mask, left in zip(masks, (0, 12), strict=True):  # the windows around the objects begin here
            for y, x in mask.nonzero().tolist():
                maps[0, part[y] * k + part[x - left], y, x] = 5
        corner = torch.tensor([[0, 840, 40], [12, 840, 40]])
        found = assemble(maps.reshape(1, -1), torch.zeros(2, dtype=torch.int64), corner, part) > 0
        wanted = torch.stack([masks[0, :, :m], masks[1, :, 12 : 12 + m]])
        assert torch.equal(found, wanted) == apart
        if not apart:
            assert torch.equal(
                found, (masks[0] | masks[1])[:, torch.stack([torch.arange(m), torch.arange(m) + 12])].transpose(0, 1)
            )


def test_masks_take_a_few_maps_and_not_one_for_each_cell_of_a_window() -> None:
    last = small().segment[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.out_channels == 25
    assert last.out_channels < 21 * 21


def test_a_fitting_window_holds_its_whole_object() -> None:
    boxes = torch.tensor([[10.0, 20, 40, 110], [0, 0, 50, 50]])
    windows = torch.tensor([[0.0, 0, 40, 40], [0, 0, 200, 200]])
    squares = fitting(Target.of(boxes, [0, 0], crowd=[False, True]), windows, 0.9).boxes
    assert torch.allclose(squares[0], torch.tensor([-25.0, 15, 75, 115]))
    assert torch.equal(squares[1], boxes[1]), "a crowd stays what it is"
    assert torch.equal(fitting(Target.of(boxes, [0, 0]), windows, None).boxes, boxes)


def test_the_positive_windows_of_an_object_smaller_than_all_of_them_have_it_in_the_middle() -> None:
    windows = window_boxes([(16, 16)], (128, 128), 9)
    target = Target.of(torch.tensor([[58.0, 60, 68, 64]]), [0])
    plain, fitted = (
        match_boxes(windows, fitting(target, windows, fill), 0.3, 0.7, best_too=True) for fill in (None, 0.8)
    )
    away = (box_math.to_centres(windows)[:, :2] - torch.tensor([63.0, 62])).abs().amax(1)
    assert away[plain == 0].max() > 24, "all windows that hold the whole of it are equally good"
    assert (fitted == 0).any()
    assert away[fitted == 0].max() < 12


def test_objects_are_found_where_the_maps_show_them() -> None:
    """From maps that are as they should be to an image's proposals, in original pixels."""
    model = small(scales=(1.0,), window=9, parts=3)
    grid, part = (12, 16), part_of(9, 3)
    maps, objectness = torch.full((1, 9, *grid), -9.0), torch.full((1, *grid), -9.0)
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[0:4, 2:8] = True  # its window reaches over the upper border
    for y, x in mask.nonzero().tolist():
        maps[0, part[y + 3] * 3 + part[x - 1], y, x] = 9
    objectness[0, 1, 5] = 3
    raw = model(torch.zeros(1, 3, 96, 128))
    raw = raw._replace(maps=(maps,), objectness=objectness.flatten(1))
    scale = np.diag([2.0, 2.0])
    meta = ImageMeta(1, "", (192, 256), (96, 128), np.concatenate([scale, np.zeros((2, 1))], 1))
    found = model.decode(raw, [meta], ONE_CLASS, score=0.5)[0].instances
    assert found is not None
    assert found.labels.tolist() == [0]
    assert np.allclose(found.boxes, [[32, 0, 128, 64]], atol=2)
    assert found.masks is not None
    wanted = F.interpolate(mask[None, None].float(), (192, 256))[0, 0] > 0
    dense = torch.from_numpy(found.masks.dense()[0])
    assert (dense & wanted).sum() / (dense | wanted).sum() > 0.95


def test_folding_a_backbone_that_sees_every_scale() -> None:
    model = small().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        after = fold_batch_norm(model, images)(images)
    assert torch.allclose(before.objectness, after.objectness, atol=1e-3)


def test_vgg_keeps_stride_8() -> None:
    model = InstanceFcn(InstanceFcnConfig(scales=(1.0, 0.5), width=16))
    with torch.no_grad():
        raw = model(torch.randn(1, 3, 32, 48))
    assert [tuple(m.shape) for m in raw.maps] == [(1, 25, 4, 6), (1, 25, 2, 3)]
    assert raw.objectness.shape == (1, 4 * 6 + 2 * 3)
