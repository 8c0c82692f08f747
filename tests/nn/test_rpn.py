"""Anchors, the box code, matching, sampling, proposals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from maskkit import zoo
from maskkit.config import InputConfig
from maskkit.data.loader import collate
from maskkit.data.shapes import draw
from maskkit.data.transforms import apply, eval_ops, train_ops
from maskkit.geometry import boxes as box_math
from maskkit.nn import rpn
from maskkit.prediction import ImageMeta
from maskkit.targets import Target
from tests.geometry.test_nms import random_boxes


def test_rounded_anchors_are_torchvisions():
    sizes, ratios, grids, size = ((32,), (64,), (128,)), (0.5, 1.0, 2.0), ((25, 38), (13, 19), (7, 10)), (100, 152)
    theirs = AnchorGenerator(sizes, (ratios,) * 3)(
        ImageList(torch.zeros(1, 3, *size), [size]), [torch.zeros(1, 1, *g) for g in grids]
    )[0]
    ours = [
        rpn.grid_anchors(rpn.cell_anchors(s, ratios, rounded=True), g, (size[0] // g[0], size[1] // g[1]))
        for s, g in zip(sizes, grids, strict=True)
    ]
    assert torch.equal(torch.cat(ours), theirs)


def test_exact_anchors_have_their_area_and_ratio():
    cells = rpn.cell_anchors((32, 64), (0.5, 1, 2))
    width, height = (cells[:, 2:] - cells[:, :2]).unbind(1)
    assert torch.allclose(box_math.area(cells), torch.tensor([32.0, 64.0]).repeat(3) ** 2)
    assert torch.allclose(height / width, torch.tensor([0.5, 1, 2]).repeat_interleave(2))
    assert (cells[:, :2] + cells[:, 2:] == 0).all()


@given(st.integers(0, 10_000))
def test_the_box_code_can_be_undone(seed):
    boxes, references = random_boxes(20, seed), random_boxes(20, seed + 1)
    for weights in (rpn.ONES, (10.0, 10.0, 5.0, 5.0)):
        again = rpn.decode(rpn.encode(boxes, references, weights), references, weights)
        assert torch.allclose(again, boxes, atol=1e-3)


def test_no_code_grows_a_box_without_limit():
    grown = rpn.decode(torch.tensor([[0.0, 0, 99, 99]]), torch.tensor([[0.0, 0, 16, 16]]))
    assert torch.allclose(grown[:, 2:] - grown[:, :2], torch.tensor(1000.0))


def test_extents_are_sizes_in_the_order_of_box_coordinates():
    images = torch.zeros(3, 3, 8, 10)
    found = rpn.extents_of(images, torch.tensor([[5, 7], [8, 10], [8, 1]]))
    assert found.tolist() == [[7, 5], [10, 8], [1, 8]]
    assert found.dtype == torch.float32
    assert rpn.extents_of(images, None).tolist() == [[10, 8]] * 3


def reach(images: torch.Tensor, sizes: torch.Tensor | None) -> list[list[float]]:
    """How far the proposals of each image go right and down when every anchor is far larger than the input."""
    n, side = len(images), images.shape[2]
    anchors = rpn.grid_anchors(rpn.cell_anchors((8 * side,), (1.0,)), (2, 2), (side // 2, side // 2))
    level = rpn.RpnRaw(torch.zeros(n, 4), torch.zeros(n, 4, 4), anchors)
    config = rpn.ProposalConfig(before=(4, 4), after=(4, 4), nms_threshold=1.0)
    found = rpn.propose([level], rpn.extents_of(images, sizes), config, training=False)
    return found.boxes[..., 2:].amax(1).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_proposals_are_clipped_to_the_size_that_the_batch_says_whatever_the_colours(seed):
    """Scale jitter fills with the mean colour, which is zero in the input, and still is a part of the image."""
    preset = zoo.preset("eva-giant-1280")
    given, augment = replace(preset.input, size=(128, 128)), replace(preset.augment, canvas=(128, 128))
    samples = []
    for i in range(4):
        image, target = draw(10 * seed + i, (96, 120), (1, 3))
        meta = ImageMeta(i, "", (96, 120), (96, 120))
        samples.append(apply(train_ops(augment, given), (image, target, meta), np.random.default_rng(seed + i)))
    batch = collate(samples, given)
    assert batch.images.shape == (4, 3, 128, 128)
    assert any(not image[:, -1].any() or not image[..., -1].any() for image in batch.images), "some end in the fill"
    assert batch.sizes.tolist() == [[128, 128]] * 4
    assert reach(batch.images, batch.sizes) == [[128, 128]] * 4


def test_a_black_border_is_a_part_of_the_image():
    """With a mean of zero nothing in the pixels tells it from padding."""
    given = InputConfig(size=(128, 128), resize="pad", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    samples = []
    for height in (128, 100):  # the second is padded to the input
        image = torch.full((3, height, 128), 200, dtype=torch.uint8)
        image[:, :, 90:] = 0
        image[:, 80:] = 0
        meta = ImageMeta(height, "", (height, 128), (height, 128))
        samples.append(apply(eval_ops(given), (image, Target.of([], []), meta), np.random.default_rng(0)))
    batch = collate(samples, given)
    assert not batch.images[:, :, 80:].any()
    assert not batch.images[..., 90:].any()
    assert batch.sizes.tolist() == [[128, 128], [100, 128]]
    assert reach(batch.images, batch.sizes) == [[128, 128], [128, 100]]


def test_matching_by_its_definition():
    anchors, objects = random_boxes(200), random_boxes(6, seed=1)
    target = Target.of(objects, range(6), crowd=[0, 0, 1, 0, 0, 0])
    matched = rpn.match_boxes(anchors, target, 0.3, 0.6, best_too=True, crowd_overlap=0.8)
    overlaps = box_math.iou(objects, anchors)
    overlaps[2] = -1
    covered = box_math.intersection(anchors, objects[2:3])[:, 0] / box_math.area(anchors)
    for i in range(len(anchors)):
        best, which = overlaps[:, i].max(0)
        if best >= 0.6 or any(overlaps[k, i] == overlaps[k].max() for k in (0, 1, 3, 4, 5)):
            assert matched[i] == which
        elif best >= 0.3 or covered[i] > 0.8:
            assert matched[i] == rpn.NEITHER
        else:
            assert matched[i] == rpn.BACKGROUND
    for kind in (rpn.NEITHER, rpn.BACKGROUND):
        assert (matched == kind).any()
    assert set(matched[matched >= 0].tolist()) == {0, 1, 3, 4, 5}, "every object but the crowd has an anchor"


def test_nothing_matches_where_there_is_nothing():
    assert (rpn.match_boxes(random_boxes(5), Target.of([], []), 0.3, 0.7, best_too=True) == rpn.BACKGROUND).all()


def test_samples_are_random_distinct_and_balanced():
    torch.manual_seed(0)
    matched = torch.tensor([0] * 50 + [rpn.NEITHER] * 50 + [rpn.BACKGROUND] * 300)
    seen = set()
    for _ in range(20):
        positive, negative = rpn.sample(matched, 64, 0.25)
        assert (len(positive), len(negative)) == (16, 48)
        assert (matched[positive] == 0).all()
        assert (matched[negative] == rpn.BACKGROUND).all()
        assert len(set(positive.tolist())) == 16
        seen |= set(positive.tolist())
    assert len(seen) == 50
    few, rest = rpn.sample(matched[47:], 64, 0.25)
    assert (len(few), len(rest)) == (3, 61)


def test_proposals_have_a_fixed_number_and_stay_inside():
    torch.manual_seed(0)
    cells = rpn.cell_anchors((16,), (0.5, 1, 2))
    anchors = rpn.grid_anchors(cells, (6, 8), (8, 8))
    level = rpn.RpnRaw(torch.randn(2, 144), 0.3 * torch.randn(2, 144, 4), anchors)
    images = torch.tensor([[64.0, 48.0], [30.0, 20.0]])
    config = rpn.ProposalConfig(before=(1, 100), after=(1, 100))
    boxes, scores = rpn.propose([level], images, config, training=False)
    assert boxes.shape == (2, 100, 4)
    for b in range(2):
        real = scores[b].isfinite()
        assert 0 < real.sum() < 100
        assert (boxes[b, real, 2:] <= images[b] + 1e-5).all()
        assert (boxes[b, ~real] == 0).all()
        assert not box_math.iou(boxes[b, real], boxes[b, real]).fill_diagonal_(0).gt(0.7).any()
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    least = rpn.propose([level], images, replace(config, min_score=0.5), training=False).scores
    assert torch.equal(least, scores.masked_fill(scores < 0, -torch.inf)), "a probability of a half is a logit of 0"
