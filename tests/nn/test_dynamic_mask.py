"""Dynamic mask heads and what they learn from."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit.config import BoxOnly
from maskkit.nn.dynamic_mask import (
    DynamicMaskConfig,
    DynamicMaskRaw,
    MaskBranchRaw,
    aligned_upsample,
    dynamic_masks,
    find,
    mask_centres,
    mask_terms,
    semantic_loss,
    split_parameters,
)
from maskkit.nn.fcos import FcosDetectorConfig, FcosRaw, fcos_loss
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes

DETECTOR = FcosDetectorConfig(strides=(8, 16), size_ranges=(64,), score_with_quality=True)
CONFIG = DynamicMaskConfig(mask_channels=2, mask_candidates=12)
SIZE = (64, 96)


def test_parameters_of_the_published_heads() -> None:
    assert DynamicMaskConfig().head_parameters == 169
    assert DynamicMaskConfig(mask_channels=16).head_parameters == 233


@pytest.mark.parametrize("count", [0, 1, 8, 19])
def test_masks_are_those_of_a_grouped_convolution(count: int) -> None:
    torch.manual_seed(0)
    features, parameters = torch.randn(2, 8, 12), torch.randn(count, CONFIG.head_parameters)
    xy, stride = torch.rand(count, 2) * 90, torch.tensor([8.0, 16.0])[torch.arange(count) % 2]
    ours = dynamic_masks(parameters, xy, stride, features, 8, CONFIG.head_widths)
    assert ours.shape == (count, 8, 12)
    if count:
        y, x = torch.meshgrid(torch.arange(8) * 8 + 4, torch.arange(12) * 8 + 4, indexing="ij")
        offsets = (xy[:, :, None, None] - torch.stack([x, y])) / (8 * stride[:, None, None, None])
        maps = torch.cat([offsets, features.expand(count, -1, -1, -1)], 1).flatten(0, 1)[None]
        for i, (weight, bias) in enumerate(zip(*split_parameters(parameters, CONFIG.head_widths), strict=True)):
            maps = F.conv2d(
                F.relu(maps) if i else maps, weight.flatten(0, 1)[..., None, None], bias.flatten(), groups=count
            )
        assert torch.allclose(ours, maps[0], atol=1e-4)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_an_enlarged_map_has_its_values_at_the_locations(factor: int) -> None:
    small = torch.randn(1, 2, 5, 7)
    large = aligned_upsample(small, factor)
    assert large.shape == (1, 2, 5 * factor, 7 * factor)
    assert torch.allclose(large[..., factor // 2 :: factor, factor // 2 :: factor], small, atol=1e-5)


def test_a_centre_is_that_of_the_mask_where_it_is_known() -> None:
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, 10:20, 10:15] = True  # an L: the mask's centre is not the box's
    masks[0, 18:20, 10:40] = True
    masks[2, 0:9, 0:9] = True
    boxes = [[10, 10, 40, 20], [10.2, 10.2, 20.8, 30.8], [50, 40, 96, 64]]
    target = Target.of(boxes, [0, 0, 0], masks, has_mask=[True, True, False])
    centres = mask_centres(target, SIZE)
    y, x = torch.nonzero(masks[0]).float().mean(0)
    assert torch.allclose(centres[0], torch.stack([x, y]))
    assert centres[1].tolist() == [15, 20]  # an empty mask: the middle of columns 10 to 20, rows 10 to 30
    assert centres[2].tolist() == [(50 + 95) / 2, (40 + 63) / 2]  # cut off at the input's edge


def drawing(box: tuple[float, float, float, float]) -> Tensor:
    """Parameters, for stride 8, of a head that draws a diamond in a box of the size around the location."""
    rx, ry = 0.6 * (box[2] - box[0]) / 64, 0.6 * (box[3] - box[1]) / 64
    first, second, third = torch.zeros(8, 4), torch.eye(8), torch.zeros(1, 8)
    first[0, 0], first[1, 0], first[2, 1], first[3, 1] = 1 / rx, -1 / rx, 1 / ry, -1 / ry
    third[0, :4] = -8
    return torch.cat([first.flatten(), second.flatten(), third.flatten(), torch.zeros(16), torch.tensor([8.0])])


def raw_of(spots: list[tuple[int, int, float, Tensor]]) -> DynamicMaskRaw:
    """Nothing but (location on the finest level, class, logit, head); boxes of 40 pixels."""
    shapes = [(64 // s, 96 // s) for s in DETECTOR.strides]
    logits, extra = (
        [torch.full((1, c, *s), v) for s in shapes] for c, v in ((3, -20.0), (CONFIG.head_parameters, 0.0))
    )
    for location, label, logit, head in spots:
        logits[0].view(3, -1)[label, location] = logit
        extra[0].view(CONFIG.head_parameters, -1)[:, location] = head
    sides, quality = (tuple(torch.full((1, c, *s), v) for s in shapes) for c, v in ((4, 2.5), (1, 20.0)))
    detector = FcosRaw(tuple(logits), sides, quality, tuple(extra))
    return DynamicMaskRaw(detector, MaskBranchRaw(torch.zeros(1, 2, 8, 12), None))


def test_masks_are_not_cut_off_at_the_box() -> None:
    raw = raw_of([(12 * 4 + 6, 0, 3.0, drawing((0, 0, 70, 50)))])
    found, masks = find(raw, DETECTOR, CONFIG)
    columns = torch.nonzero((masks[0, 0] > 0.5).any(0))[:, 0] * 4 + 2
    x1, _, x2, _ = found.boxes[0, 0].tolist()
    assert columns.min() < x1 - 4
    assert columns.max() > x2 + 4


def test_mask_nms_looks_at_masks_alone() -> None:
    large, small = drawing((0, 0, 90, 90)), drawing((0, 0, 12, 12))
    here, beside = 12 * 4 + 6, 12 * 4 + 7
    by_masks = replace(CONFIG, nms="masks")
    # the same box twice: a small and a large mask both stay, two large ones do not, unless they are of two classes
    for second, label, kept in ((small, 0, 2), (large, 0, 1), (large, 1, 2)):
        raw = raw_of([(here, 0, 3.0, large), (beside, label, 2.0, second)])
        assert int((find(raw, DETECTOR, by_masks)[0].scores > 0).sum()) == kept
        boxes_say = int((find(raw, DETECTOR, CONFIG)[0].scores > 0).sum())
        assert boxes_say == (1 if label == 0 else 2)


def labelled(has_mask: list[bool], masks: Tensor) -> Batch:
    boxes = [[8, 8, 40, 40], [50, 20, 90, 60]]
    target = Target.of(boxes, [0, 1], masks, has_mask=has_mask)
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 255
    return Batch(images, full_sizes(images), [target], [ImageMeta(0, "", SIZE, SIZE)])


def terms_of(batch: Batch, raw: DynamicMaskRaw) -> dict[str, float]:
    _, positives = fcos_loss(raw.detector, batch, DETECTOR, [mask_centres(t, SIZE) for t in batch.targets])
    terms = mask_terms(raw, positives, batch, DETECTOR.strides, CONFIG, BoxOnly())
    return {name: value.item() for name, value in terms.items()}


def test_each_object_is_taught_by_what_is_known_of_it() -> None:
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 8:40, 8:40], masks[1, 20:60, 50:90] = True, True
    raw = raw_of([])
    heads = torch.randn(1, CONFIG.head_parameters, 8, 12, generator=torch.Generator().manual_seed(1))
    raw = raw._replace(detector=raw.detector._replace(extra=(heads, *raw.detector.extra[1:])))
    known, mixed, boxed = (
        terms_of(labelled(flags, masks), raw) for flags in ([True, True], [True, False], [False, False])
    )
    assert known["mask"] > 0
    assert known["mask/projection"] == known["mask/pairwise"] == boxed["mask"] == 0
    assert 0 < mixed["mask"] < known["mask"]
    assert 0 < mixed["mask/projection"] < boxed["mask/projection"]
    assert mixed["mask/pairwise"] > 0
    # what lies in the place of an unknown mask has no influence
    scribble = masks.clone()
    scribble[1] = torch.rand(SIZE) > 0.5
    assert terms_of(labelled([True, False], scribble), raw) == mixed


def test_the_semantic_loss_gives_a_cell_to_the_smallest_object_and_leaves_crowds_out() -> None:
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :32, :32], masks[1, :16, :16], masks[2, :, 64:] = True, True, True
    target = Target.of([[0, 0, 32, 32], [0, 0, 16, 16], [64, 0, 96, 64]], [0, 1, 2], masks, crowd=[False, False, True])
    images = torch.zeros(1, 3, *SIZE)
    batch = Batch(images, full_sizes(images), [target], [ImageMeta(0, "", SIZE, SIZE)])
    right = torch.full((1, 3, 8, 12), -20.0)
    right[0, 0, :4, :4], right[0, :2, :2, :2] = 20.0, torch.tensor([-20.0, 20.0])[:, None, None]
    assert semantic_loss(right, batch).item() == pytest.approx(0, abs=1e-6)
    in_crowd = right.clone()
    in_crowd[..., 8:] = 20.0
    assert semantic_loss(in_crowd, batch).item() == pytest.approx(0, abs=1e-6)
    assert semantic_loss(-right, batch).item() > 1
    target.has_mask[1] = False  # then nothing is certain about any cell
    assert semantic_loss(-right, batch).item() == 0
