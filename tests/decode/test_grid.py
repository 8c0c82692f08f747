"""Masks and boxes of the network's grid in original pixels; torch's own interpolation is the oracle."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkit.decode import OverInput, decode
from maskkit.prediction import Categories, ImageMeta

NAMES = Categories(("cat", "dog"), (17, 18))


def selected(masks: np.ndarray, boxes: np.ndarray | None = None, scores: np.ndarray | None = None) -> dict:
    n = len(masks)
    scores = np.linspace(0.9, 0.1, n, dtype=np.float32) if scores is None else scores
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (n, 1)) if boxes is None else boxes
    return {
        "boxes": boxes[None],
        "labels": np.zeros((1, n), np.int64),
        "scores": scores[None],
        "masks": masks[None].astype(np.float32),
        "mask_scores": scores[None],
    }


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 10_000),
)
def test_stretched_masks_are_torchs_bilinear_ones(grid: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.uniform(0, 1, (2, *grid)).astype(np.float32) * (rng.uniform(0, 1, (2, *grid)) > 0.5)
    side = 64
    affine = np.array([[size[1] / side, 0, 0], [0, size[0] / side, 0]])
    meta = ImageMeta(1, "", size, (side, side), affine)
    found = decode(OverInput(), selected(masks), [meta], NAMES)[0].instances
    assert found is not None
    assert found.masks is not None
    expected = F.interpolate(torch.from_numpy(masks)[None], size=size, mode="bilinear", align_corners=False)[0]
    sure = (expected - 0.5).abs() > 1e-5
    assert (found.masks.dense() == (expected > 0.5).numpy())[sure.numpy()].all()


def test_a_padded_input_is_cut_back_to_the_image() -> None:
    # an image of 40 x 100 in the upper left of an input of 64 x 64, so scaled by 0.64
    meta = ImageMeta(1, "", (40, 100), (64, 64), np.array([[1 / 0.64, 0, 0], [0, 1 / 0.64, 0]]))
    mask = np.zeros((1, 64, 64), np.float32)
    mask[0, :, 32:] = 1  # the right half, padding below included
    found = decode(OverInput(), selected(mask, np.array([[0.5, 0, 1, 1]], np.float32)), [meta], NAMES)[0].instances
    assert found is not None
    assert found.masks is not None
    assert np.allclose(found.boxes, [[50, 0, 100, 40]])
    dense = found.masks.dense()[0]
    assert dense.shape == (40, 100)
    assert dense[:, 50:].all()
    assert not dense[:, :50].any()


def test_a_mirrored_input_is_mirrored_back() -> None:
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, 2:5, 1:3] = 1
    box = np.array([[1 / 8, 2 / 8, 3 / 8, 5 / 8]], np.float32)
    straight = ImageMeta(1, "", (80, 80), (64, 64), np.array([[1.25, 0, 0], [0, 1.25, 0]]))
    mirrored = ImageMeta(1, "", (80, 80), (64, 64), np.array([[-1.25, 0, 80], [0, 1.25, 0]]))
    a, b = (decode(OverInput(), selected(mask, box), [meta], NAMES)[0].instances for meta in (straight, mirrored))
    assert a is not None
    assert b is not None
    assert np.allclose(b.boxes, [[50, 20, 70, 50]])
    assert a.masks is not None
    assert b.masks is not None
    assert np.array_equal(b.masks.dense(), a.masks.dense()[:, :, ::-1])


def test_threshold_order_and_rescored_masks() -> None:
    masks = np.ones((4, 4, 4))
    arrays = selected(masks, scores=np.array([0.2, 0.0, 0.7, 0.3], np.float32))
    meta = ImageMeta(5, "", (8, 8), (8, 8))
    plain = decode(OverInput(), arrays, [meta], NAMES, score=0.25)[0].instances
    assert plain is not None
    assert np.allclose(plain.scores, [0.7, 0.3])
    assert plain.mask_scores is None
    arrays["mask_scores"] = arrays["mask_scores"] * 0.5
    rated = decode(OverInput(), arrays, [meta], NAMES)[0]
    assert rated.instances is not None
    assert len(rated) == 3, "a score of 0 is padding"
    assert rated.instances.mask_scores is not None
    assert np.allclose(rated.instances.mask_scores, [0.35, 0.15, 0.1])
    assert [r["category_id"] for r in rated.to_coco()] == [17] * 3


def test_nothing_found_is_a_prediction_without_objects() -> None:
    meta = ImageMeta(1, "", (30, 20), (8, 8))
    prediction = decode(OverInput(), selected(np.zeros((3, 4, 4)), scores=np.zeros(3, np.float32)), [meta], NAMES)[0]
    assert len(prediction) == 0
    assert prediction.to_coco() == []


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 10_000),
)
def test_logits_in_two_steps_are_torchs(grid: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    """Enlarged to the network's input, from there to the original, and cut off where that ends in the padding."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.standard_normal((3, *grid)).astype(np.float32)
    logits[2] = 0  # a logit of 0 is background
    inputs = (8 * grid[0], 8 * grid[1])
    factor = min(inputs[0] / size[0], inputs[1] / size[1])
    meta = ImageMeta(1, "", size, inputs, np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]]))
    found = decode(OverInput(threshold=0.0, steps=2), selected(logits), [meta], NAMES)[0].instances
    assert found is not None
    assert found.masks is not None
    large = F.interpolate(torch.from_numpy(logits)[None], size=inputs, mode="bilinear")
    at = [(torch.arange(n) + 0.5) * factor / side * 2 - 1 for n, side in zip(size, inputs, strict=True)]
    places = torch.stack([at[1].expand(size[0], -1), at[0][:, None].expand(-1, size[1])], -1)[None].float()
    expected = F.grid_sample(large, places, mode="bilinear", padding_mode="border", align_corners=False)[0]
    sure = expected.abs() > 1e-3
    sure[2] = True
    assert np.array_equal(found.masks.dense() & sure.numpy(), ((expected > 0) & sure).numpy())
