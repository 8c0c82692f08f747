"""NMS of boxes against torchvision, Matrix NMS against the formula written out, and their limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops

from maskkit.geometry.boxes import iou
from maskkit.geometry.nms import (
    batched_nms,
    class_nms,
    fast_nms,
    greedy_nms,
    mask_iou,
    mask_nms,
    matrix_nms,
    soft_nms,
)
from tests.geometry.test_boxes import box_sets


@st.composite
def scored(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores without ties, whose order torchvision leaves open."""
    found = draw(box_sets())
    order = draw(st.permutations(range(len(found))))
    return found, torch.tensor(order, dtype=torch.float64) / 100


def random_boxes(count: int, seed: int = 0, side: float = 100) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8 * side, (count, 2))
    return torch.from_numpy(np.concatenate([low, low + rng.uniform(2, 0.5 * side, (count, 2))], 1)).float()


def blobs(n: int, seed: int = 0, size: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, size - 8, (n, 2), generator=generator)
    side = torch.randint(3, 9, (n, 2), generator=generator)
    place = torch.arange(size)
    rows, columns = ((place >= low[:, a, None]) & (place < (low + side)[:, a, None]) for a in (0, 1))
    labels = torch.randint(0, 2, (n,), generator=generator)
    scores = torch.rand(n, generator=generator).sort(descending=True).values
    return rows[:, :, None] & columns[:, None], labels, scores


def written_out(masks: Tensor, labels: Tensor, scores: Tensor, kernel: str, sigma: float) -> list[float]:
    """SOLOv2, section 3.3, one pair after the other."""

    def iou(i: int, j: int) -> float:
        if labels[i] != labels[j]:
            return 0.0
        return float((masks[i] & masks[j]).sum()) / float((masks[i] | masks[j]).sum())

    def f(x: float) -> float:
        return math.exp(-sigma * x * x) if kernel == "gaussian" else 1 - x

    decayed = []
    for j in range(len(masks)):
        decay = 1.0
        for i in range(j):
            covered = max((iou(k, i) for k in range(i)), default=0.0)
            if f(covered) > 0:
                decay = min(decay, f(iou(i, j)) / f(covered))
        decayed.append(float(scores[j]) * decay)
    return decayed


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("n", [0, 1, 2, 40])
def test_it_is_the_formula(kernel: str, n: int) -> None:
    masks, labels, scores = blobs(n)
    decayed = matrix_nms(masks, labels, scores, kernel=kernel, sigma=1.5)  # type: ignore[arg-type]
    assert decayed.tolist() == pytest.approx(written_out(masks, labels, scores, kernel, 1.5), abs=1e-6)


def test_images_are_independent() -> None:
    parts = [blobs(30, seed) for seed in (1, 2)]
    together = matrix_nms(*(torch.stack(p) for p in zip(*parts, strict=True)))  # type: ignore[arg-type]
    assert torch.allclose(together, torch.stack([matrix_nms(*p) for p in parts]))


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_copies_decay_within_their_class_and_strangers_stay(kernel: str) -> None:
    masks, _, _ = blobs(1)
    masks = torch.cat([masks, masks, masks, masks.flip(1, 2) & ~masks])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    factor = math.exp(-2) if kernel == "gaussian" else 0.0
    decayed = matrix_nms(masks, torch.tensor([0, 0, 1, 0]), scores, kernel=kernel)  # type: ignore[arg-type]
    assert decayed.tolist() == pytest.approx([0.9, 0.8 * factor, 0.7, 0.6])
    thrice = matrix_nms(masks[:3], torch.zeros(3, dtype=torch.int64), scores[:3], kernel=kernel)  # type: ignore[arg-type]
    assert thrice.isfinite().all()


def test_what_a_suppressed_mask_covers_decays_less() -> None:
    strip = torch.zeros(3, 1, 12, dtype=torch.bool)
    strip[0, :, 0:8], strip[1, :, 2:10], strip[2, :, 4:12] = True, True, True
    labels, scores = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    chain = matrix_nms(strip, labels, scores)[2]
    alone = matrix_nms(strip[1:], labels[1:], scores[1:])[1]
    assert chain > alone


def test_half_the_rows_and_columns_tell_copies_apart_as_well() -> None:
    masks, labels, scores = blobs(40, size=64)
    large = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(matrix_nms(large, labels, scores, stride=2), matrix_nms(masks, labels, scores))


def test_empty_masks_touch_nothing() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    assert (mask_iou(masks) == 0).all()
    assert matrix_nms(masks, torch.zeros(3, dtype=torch.int64), torch.ones(3)).tolist() == [1, 1, 1]


def test_greedy_removes_what_a_kept_mask_overlaps() -> None:
    strip = torch.zeros(3, 1, 12, dtype=torch.bool)
    strip[0, :, 0:8], strip[1, :, 2:10], strip[2, :, 4:12] = True, True, True
    labels = torch.zeros(3, dtype=torch.int64)
    # the first removes the second, which then cannot remove the third
    assert mask_nms(strip, labels, 0.5).tolist() == [True, False, True]
    assert mask_nms(strip, torch.tensor([0, 1, 0]), 0.5).all()
    assert mask_nms(strip[:0], labels[:0]).shape == (0,)


@given(scored(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.99]))
def test_greedy_nms_is_that_of_torchvision(case, threshold):
    found, scores = case
    assert greedy_nms(found, scores, threshold).tolist() == ops.nms(found, scores, threshold).tolist()


def test_greedy_nms_keeps_the_first_of_equal_scores():
    found = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    assert greedy_nms(found, torch.full((3,), 0.5), 0.5).tolist() == [0, 2]


@given(scored(), st.sampled_from([0.3, 0.45, 0.7]))
def test_greedy_nms_with_plus_one_is_nms_of_boxes_one_pixel_larger_up_to_equality(case, threshold):
    found, scores = case
    larger = torch.cat([found[:, :2], found[:, 2:] + 1], 1)
    # a threshold a little lower turns torchvision's > into >=; the overlaps of whole pixels lie further apart
    expected = ops.nms(larger, scores, threshold - 1e-9)
    assert greedy_nms(found, scores, threshold, plus_one=True).tolist() == expected.tolist()


@given(scored(), st.sampled_from([0.3, 0.5, 0.7]))
def test_fast_nms_keeps_no_more_than_greedy_and_the_same_without_chains(case, threshold):
    found, scores = case
    order = scores.argsort(descending=True)
    ranked = found[order]
    fast = set(order[fast_nms(ranked, threshold)].tolist())
    greedy = set(greedy_nms(found, scores, threshold).tolist())
    assert fast <= greedy
    overlaps = iou(ranked, ranked).triu(1) > threshold
    gone = torch.tensor([int(i) not in greedy for i in order], dtype=torch.bool)
    if not overlaps[gone].any():  # no box that is gone suppresses another
        assert fast == greedy


def test_fast_nms_lets_a_suppressed_box_suppress():
    chain = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert fast_nms(chain, 0.4).tolist() == [True, False, False]
    assert greedy_nms(chain, torch.tensor([0.9, 0.8, 0.7]), 0.4).tolist() == [0, 2]
    assert fast_nms(torch.stack([chain, chain[[0, 2, 1]]]), 0.4).tolist() == [
        [True, False, False],
        [True, True, False],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_boxes_leave_no_boxes(dtype):
    none = torch.zeros(0, 4, dtype=dtype)
    assert greedy_nms(none, torch.zeros(0), 0.5).shape == (0,)
    assert fast_nms(none, 0.5).shape == (0,)


def test_suppression_is_greedy_nms_of_each_group():
    boxes = torch.stack([random_boxes(80), random_boxes(80, 1)])
    boxes[:, 70:] = 0
    scores, groups = torch.rand(2, 80), torch.randint(0, 3, (2, 80))
    kept = batched_nms(boxes, scores, 0.5, groups)
    for b in range(2):
        wanted = ops.batched_nms(boxes[b, :70], scores[b, :70], groups[b, :70], 0.5)
        assert torch.equal(torch.nonzero(kept[b])[:, 0], wanted.sort().values)


def test_class_nms_is_that_of_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        low = torch.rand(200, 2, generator=generator) * 100 - 10
        boxes = torch.cat([low, low + torch.rand(200, 2, generator=generator) * 60 + 1], 1)
        labels = torch.randint(0, 4, (200,), generator=generator)
        scores = torch.rand(200, generator=generator)
        scores[150:] = 0
        expected = torch.zeros(200)
        expected[ops.batched_nms(boxes[:150], scores[:150], labels[:150], 0.5)] = 1
        ours = class_nms(boxes[None], labels[None], scores[None], 0.5)[0]
        assert torch.equal(ours[:150], expected[:150])


def test_soft_nms_by_hand() -> None:
    """Two boxes of one class with an IoU of 2/3, the same pair in two classes, and one that is far."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 2, 10, 12], [50, 50, 60, 60], [0, 0, 10, 10]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.3, 0.7]]), torch.tensor([[0, 0, 0, 1]])
    order, decayed = soft_nms(boxes, labels, scores, 0.5, 4)
    assert torch.allclose(decayed, torch.tensor([[0.9, 0.7, 0.3, 0.8 / 3]]))
    assert labels.gather(1, order).tolist() == [[0, 1, 0, 0]]
    assert torch.equal(boxes[0, order[0, 3]], boxes[0, 1])
    assert torch.allclose(soft_nms(boxes, labels, scores, 0.7, 4)[1], scores.sort(descending=True)[0])
