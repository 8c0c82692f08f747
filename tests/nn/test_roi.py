"""Features of regions, and what is sampled and found among them."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, roi_align

from maskkit.nn import roi, rpn
from maskkit.targets import Target


def rois(count: int = 40, side: float = 128) -> torch.Tensor:
    rng = np.random.default_rng(0)
    low = rng.uniform(-4, 0.8 * side, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 0.7 * side, (count, 2))], 1)
    return torch.from_numpy(np.concatenate([rng.integers(0, 2, (count, 1)), boxes], 1)).float()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_align_by_rows_is_the_operator_and_its_gradient(aligned, ratio):
    level = torch.randn(2, 8, 32, 24, dtype=torch.float64, requires_grad=True)
    regions, weights = rois().double(), torch.randn(40, 8, 7, 7, dtype=torch.float64)
    results = []
    for align in (roi.align_by_rows, None):
        if align is None:
            pooled = roi_align(level, regions, 7, 0.25, ratio, aligned)
        else:
            pooled = align(level, regions, 7, 0.25, aligned, ratio)
        results.append((pooled, torch.autograd.grad((pooled * weights).sum(), level)[0]))
    for ours, operators in zip(*results, strict=True):
        assert torch.allclose(ours, operators, atol=1e-9)


def test_aligned_regions_read_a_ramp_exactly():
    """The mean of a linear function over a bin is its value in the middle of the bin (Mask R-CNN, section 3)."""
    ramp = (torch.arange(32) + 0.5).expand(1, 1, 32, 32) * 4  # each cell has its centre's place in pixels
    region = torch.tensor([[0, 13.3, 20.0, 61.9, 70.0]])
    pooled = roi.pool([ramp], [4], region, 7, roi.PoolingConfig(sampling_ratio=2))
    centres = 13.3 + (torch.arange(7) + 0.5) * (61.9 - 13.3) / 7
    assert torch.allclose(pooled[0, 0], centres.expand(7, 7), atol=1e-4)


def test_roi_pooling_rounds_what_roi_align_does_not():
    level = torch.randn(1, 4, 32, 32)
    here, near = torch.tensor([[0, 16.0, 16, 80, 80]]), torch.tensor([[0, 16.9, 16.9, 80.9, 80.9]])
    pooled = [roi.pool([level], [4], region, 7, roi.PoolingConfig("pool")) for region in (here, near)]
    assert torch.equal(*pooled), "a shift of less than half a cell is lost"
    aligned = [roi.pool([level], [4], region, 7, roi.PoolingConfig()) for region in (here, near)]
    assert (aligned[0] - aligned[1]).abs().max() > 0.05


def test_levels_of_regions():
    sides = torch.tensor([0.0, 40, 111, 112, 223, 224, 447, 448, 2000])
    regions = torch.stack([*[torch.zeros(9)] * 3, sides, sides], 1)
    assert roi.pyramid_level(regions, (4, 8, 16, 32)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert not roi.pyramid_level(regions, (32, 32)).any(), "of one stride the first level serves all"


def test_pool_reads_every_region_from_its_level():
    levels = [torch.full((2, 3, 64 // 2**i, 64 // 2**i), float(i)) for i in range(4)]
    regions = rois(side=600)
    regions[:, 1:] = regions[:, 1:].clamp(0, 250)
    regions[:, 3:] += 6  # the last ones lie at the rim, and are small
    pooled = roi.pool(levels, (4, 8, 16, 32), regions, 2, roi.PoolingConfig(sampling_ratio=2))
    level = roi.pyramid_level(regions, (4, 8, 16, 32)).float()
    assert level.unique().numel() >= 3
    assert torch.allclose(pooled.amax((1, 2, 3)), level)


def test_sampled_regions_are_positive_first_and_never_crowds():
    torch.manual_seed(0)
    objects = torch.tensor([[10.0, 10, 50, 50], [60, 60, 120, 110], [0, 60, 40, 120]])
    target = Target.of(objects, [1, 2, 0], crowd=[False, False, True])
    jitter = objects.repeat(30, 1) + 2 * torch.randn(90, 4)
    far = torch.tensor([[80.0, 5, 100, 20]]).repeat(40, 1)
    boxes = torch.cat([jitter, far])
    scores = torch.zeros(130).index_fill(0, torch.tensor([129]), -torch.inf)
    config = roi.RegionConfig(sampled=64, positive=0.25, crowd_overlap=0.7)
    found = roi.sample_rois(rpn.Proposals(boxes[None], scores[None]), [target], config)
    assert len(found.rois) == 16 + 39, "at most a quarter is positive, and the padding and the crowd are no background"
    assert (found.matched[:16] >= 0).all()
    assert (found.matched[16:] == rpn.BACKGROUND).all()
    assert set(found.matched[:16].tolist()) <= {0, 1}


def test_detections_are_those_of_class_wise_nms():
    torch.manual_seed(1)
    low = 100 * torch.rand(60, 2)
    boxes = torch.cat([low, low + 10 + 40 * torch.rand(60, 2)], 1)
    logits, deltas = 3 * torch.randn(1, 60, 5), 0.5 * torch.randn(1, 60, 4, 4)
    image = torch.tensor([[140.0, 120.0]])
    found = roi.detect(logits, deltas, boxes[None], image, roi.RegionConfig(detections=30))
    refined = rpn.decode(deltas[0], boxes[:, None], roi.BOX_WEIGHTS)
    refined = torch.minimum(refined.clamp(min=0), image.repeat(1, 2))
    scores = logits[0].softmax(1)[:, :4]
    row, label = torch.nonzero(scores > 0.05).T
    kept = batched_nms(refined[row, label], scores[row, label], label, 0.5)[:30]
    real = found.scores[0] > 0
    assert torch.allclose(found.scores[0][real], scores[row, label][kept])
    assert torch.allclose(found.boxes[0][real], refined[row, label][kept], atol=1e-4)
    assert torch.equal(found.labels[0][real], label[kept])
    assert (found.boxes[0][~real] == 0).all()


def test_boxes_with_a_short_side_are_dropped():
    boxes = torch.tensor([[[10.0, 10, 20, 10.005], [10, 10, 20, 10.05]]])
    logits = torch.tensor([[[5.0, 0], [4, 0]]])
    for least, count in ((1e-3, 2), (1e-2, 1)):
        config = roi.RegionConfig(least_side=least, detections=2)
        found = roi.detect(logits, torch.zeros(1, 2, 1, 4), boxes, torch.tensor([[64.0, 64]]), config)
        assert (found.scores > 0).sum() == count


def test_cropped_masks_are_the_object_seen_through_the_region():
    mask = torch.zeros(3, 64, 64)
    mask[0, 16:48, 16:48], mask[2, :, 32:] = 1, 1
    target = Target.of([[16, 16, 48, 48], [0, 0, 1, 1], [32, 0, 64, 64]], [0, 0, 0], mask)
    regions = torch.tensor([[0, 0.0, 0, 64, 64], [0, 16.0, 16, 48, 48], [0, 0, 0, 64, 64]])
    crops = roi.crop_masks([target], roi.Sampled(regions, torch.tensor([2, 0, 0])), 8)
    assert torch.equal(crops[0], (torch.arange(8) >= 4).float().expand(8, 8))
    assert torch.equal(crops[1], torch.ones(8, 8))
    assert crops[2].sum() == 16
    assert crops[2, 2:6, 2:6].all()
