"""Matrix NMS against the formula written out, and its limits."""

import math

import pytest
import torch
from torch import Tensor

from maskkit.geometry.nms import greedy_mask_nms, mask_iou, matrix_nms


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
    assert greedy_mask_nms(strip, labels, 0.5).tolist() == [True, False, True]
    assert greedy_mask_nms(strip, torch.tensor([0, 1, 0]), 0.5).all()
    assert greedy_mask_nms(strip[:0], labels[:0]).shape == (0,)
