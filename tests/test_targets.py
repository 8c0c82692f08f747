"""What a model learns from: masks in every storage, targets, batches."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from maskkit.data.patches import Patches
from maskkit.geometry import rle as mask_math
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, DenseMasks, RleMasks, Target, TargetMasks, full_sizes

stacks = arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)), elements=st.booleans())


def both(dense: np.ndarray) -> list[TargetMasks]:
    """The same masks as one tensor and as run lengths."""
    return [DenseMasks(dense), RleMasks((dense.shape[1], dense.shape[2]), mask_math.encode(dense))]


def every(dense: np.ndarray) -> list[TargetMasks]:
    """The same masks in every storage."""
    return [*both(dense), Patches.of(DenseMasks(dense))]


@st.composite
def indices(draw: st.DrawFn, n: int):
    """Anything that chooses among n things."""
    positions = st.lists(st.integers(-n, n - 1), max_size=6) if n else st.just([])
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    chosen = draw(
        st.one_of(
            positions,
            positions.map(lambda v: np.array(v, np.int64)),
            positions.map(lambda v: torch.tensor(v, dtype=torch.int64)),
            flags.map(lambda v: np.array(v, bool)),
            flags.map(lambda v: torch.tensor(v, dtype=torch.bool)),
            st.slices(n).filter(lambda s: s.step is None or s.step > 0),  # torch steps forward only
        )
    )
    return chosen


@given(st.data())
def test_masks_are_indexed_like_an_array(data):
    dense = data.draw(stacks)
    index = data.draw(indices(len(dense)))
    expected = dense[index if isinstance(index, slice) else np.asarray(index, None if len(index) else int)]
    for masks in every(dense):
        chosen = masks[index]
        assert type(chosen) is type(masks)
        assert chosen.size == masks.size
        assert len(chosen) == len(expected)
        np.testing.assert_array_equal(chosen.dense().numpy(), expected)


@given(stacks, st.sampled_from([int, np.int64, torch.tensor]))
def test_one_index_gives_masks_of_length_one(dense, kind):
    assume(len(dense))
    for masks in every(dense):
        np.testing.assert_array_equal(masks[kind(len(dense) - 1)].dense().numpy(), dense[-1:])


def test_indices_that_do_not_fit_are_refused():
    for masks in both(np.ones((2, 3, 3), bool)):
        with pytest.raises(IndexError):
            masks[2]
        with pytest.raises(IndexError):
            masks[np.array([True])]


@given(stacks)
def test_every_storage_says_the_same(dense):
    first, *others = every(dense)
    assert first.dense((4, 6)).shape == (len(dense), 4, 6)
    for other in others:
        assert len(first) == len(other) == len(dense)
        assert torch.equal(first.dense(), other.dense())
        assert first.rle() == other.rle()
        assert_close(first.boxes(), other.boxes())
        assert torch.equal(first.areas(), other.areas())
    a, b = both(dense)
    assert torch.equal(a.dense((4, 6)), b.dense((4, 6)))  # patches may differ at ties


@given(stacks)
def test_moved_masks_are_the_same(dense):
    for masks in every(dense):
        moved = masks.to("cpu")
        assert isinstance(moved, RleMasks if isinstance(masks, RleMasks) else DenseMasks)
        np.testing.assert_array_equal(moved.dense().numpy(), dense)


def test_dense_masks_have_three_axes():
    with pytest.raises(ValueError, match="shape"):
        DenseMasks(torch.zeros(4, 3))
    assert len(RleMasks((3, 4), [])) == 0
    assert RleMasks((3, 4), []).dense().shape == (0, 3, 4)


def mixed_target() -> Target:
    dense = np.zeros((3, 6, 8), bool)
    dense[0, :2, :2] = dense[2, 3:, 4:] = True
    return Target.of(
        [[0, 0, 2, 2], [1, 1, 5, 5], [4, 3, 8, 6]],
        [0, 1, 1],
        dense,
        crowd=[0, 0, 1],
        has_mask=[True, False, True],
        semantic=torch.full((6, 8), 255, dtype=torch.uint8),
        tags=torch.tensor([True, True, False]),
    )


@pytest.mark.parametrize("index", [[2, 0], torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3), []])
def test_targets_keep_their_objects_together(index):
    target = mixed_target()
    part = target[index]
    position = torch.arange(3)[index]
    assert torch.equal(part.boxes, target.boxes[position])
    assert torch.equal(part.labels, target.labels[position])
    assert torch.equal(part.crowd, target.crowd[position])
    assert torch.equal(part.has_mask, target.has_mask[position])
    assert part.masks is not None
    assert target.masks is not None
    assert torch.equal(part.masks.dense(), target.masks.dense()[position])
    assert part.semantic is target.semantic
    assert part.tags is target.tags


def test_targets_without_masks_or_objects_are_normal():
    boxes_only = Target.of([[0, 0, 2, 2]], [3])
    assert boxes_only.masks is None
    assert boxes_only.has_mask.tolist() == [False]
    assert boxes_only[[0]].masks is None
    nothing = Target.of([], [])
    assert nothing.boxes.shape == (0, 4)
    assert nothing.labels.dtype == torch.int64
    assert len(nothing[torch.zeros(0, dtype=torch.bool)]) == 0


def test_targets_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="1 boxes, 2 labels"):
        Target.of([[0, 0, 2, 2]], [0, 1])
    with pytest.raises(ValueError, match="2 masks"):
        Target.of([[0, 0, 2, 2]], [0], torch.zeros(2, 4, 4))


def test_moving_keeps_the_values():
    target = mixed_target()
    meta = ImageMeta(1, "a.jpg", (6, 8), (6, 8))
    images = torch.zeros(1, 3, 6, 8)
    batch = Batch(images, full_sizes(images), [target], [meta]).to("cpu")
    moved = batch.targets[0]
    assert torch.equal(moved.boxes, target.boxes)
    assert moved.masks is not None
    assert target.masks is not None
    assert moved.masks.rle() == target.masks.rle()
    assert len(batch) == 1


def test_valid_pixels_are_those_inside_the_sizes():
    images = torch.zeros(3, 3, 8, 10)
    batch = Batch(images, torch.tensor([[5, 7], [8, 10], [8, 1]]), [], [])
    wanted = torch.zeros(3, 8, 10, dtype=torch.bool)
    wanted[0, :5, :7] = wanted[1] = wanted[2, :, :1] = True
    assert torch.equal(batch.valid, wanted)
    assert full_sizes(images).tolist() == [[8, 10]] * 3
    assert Batch(images, full_sizes(images), [], []).valid.all()
