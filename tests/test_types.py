"""The central types: indexing, storage, and the way back to the user's file."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction
from maskkit.targets import Batch, Target, full_sizes

stacks = arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)), elements=st.booleans())


def both(dense: np.ndarray) -> list[Masks]:
    """The same masks in either storage."""
    size = (dense.shape[1], dense.shape[2])
    return [Masks.from_dense(dense), Masks(size, rles=mask_math.encode(dense))]


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
    for masks in both(dense):
        chosen = masks[index]
        assert chosen.size == masks.size
        assert len(chosen) == len(expected)
        np.testing.assert_array_equal(chosen.dense().numpy(), expected)


@given(stacks, st.sampled_from([int, np.int64, torch.tensor]))
def test_one_index_gives_masks_of_length_one(dense, kind):
    assume(len(dense))
    for masks in both(dense):
        np.testing.assert_array_equal(masks[kind(len(dense) - 1)].dense().numpy(), dense[-1:])


def test_indices_that_do_not_fit_are_refused():
    for masks in both(np.ones((2, 3, 3), bool)):
        with pytest.raises(IndexError):
            masks[2]
        with pytest.raises(IndexError):
            masks[np.array([True])]


@given(stacks)
def test_both_storages_say_the_same(dense):
    a, b = both(dense)
    assert len(a) == len(b) == len(dense)
    assert torch.equal(a.dense(), b.dense())
    assert a.rle() == b.rle()
    assert_close(a.boxes(), b.boxes())
    assert torch.equal(a.areas(), b.areas())
    assert torch.equal(a.dense((4, 6)), b.dense((4, 6)))
    assert a.dense((4, 6)).shape == (len(dense), 4, 6)


def test_masks_need_one_storage_of_their_size():
    with pytest.raises(ValueError, match="exactly one"):
        Masks((3, 3))
    with pytest.raises(ValueError, match="shape"):
        Masks((3, 4), dense=torch.zeros(1, 4, 3))
    assert len(Masks.empty((3, 4))) == 0
    assert Masks.empty((3, 4)).dense().shape == (0, 3, 4)


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
    batch = Batch(torch.zeros(1, 3, 6, 8), full_sizes(torch.zeros(1, 3, 6, 8)), [target], [meta]).to("cpu")
    moved = batch.targets[0]
    assert torch.equal(moved.boxes, target.boxes)
    assert moved.masks is not None
    assert target.masks is not None
    assert moved.masks.rle() == target.masks.rle()
    assert len(batch) == 1


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.floats(0.2, 5),
    st.floats(0.2, 5),
    st.booleans(),
    arrays(float, (4, 4), elements=st.floats(0, 1)),
)
def test_to_original_inverts_resize_and_mirror(size, fx, fy, mirrored, shares):
    height, width = size
    corners = np.sort(shares.reshape(-1, 2, 2), axis=1).reshape(-1, 4) * np.tile([width, height], 2)
    affine = np.array([[1 / fx, 0, 0], [0, 1 / fy, 0]])
    inputs = corners * np.tile([fx, fy], 2)
    if mirrored:
        affine[0] = [-1 / fx, 0, width]
        inputs[:, [0, 2]] = width * fx - inputs[:, [2, 0]]
    meta = ImageMeta(1, "", size, (round(height * fy), round(width * fx)), affine)
    np.testing.assert_allclose(meta.to_original(inputs), corners, atol=1e-3)


def test_to_original_clips_to_the_image():
    meta = ImageMeta(1, "", (10, 20), (10, 20))
    assert meta.to_original(np.array([[-5.0, -5, 50, 50]])).tolist() == [[0, 0, 20, 10]]
    assert meta.to_original(np.zeros((0, 4))).shape == (0, 4)


def test_categories_map_ids_to_numbers():
    categories = Categories(("cat", "dog"), (17, 18))
    assert categories.index(18) == 1
    assert len(categories) == 2
    with pytest.raises(KeyError):
        categories.index(1)
    with pytest.raises(ValueError, match="unique"):
        Categories(("cat", "dog"), (1, 1))
    assert Categories.of(["a", "b"]).ids == (1, 2)
    assert categories.things == (True, True)
    mixed = Categories.of(["cat"], stuff=["sky"])
    assert mixed == Categories(("cat", "sky"), (1, 2), (True, False))
    assert mixed[[1]] == Categories(("sky",), (2,), (False,))
    assert [row.get("isthing") for c in (categories, mixed) for row in c.to_coco()] == [None, None, 1, 0]
    with pytest.raises(ValueError, match="thing"):
        Categories(("cat", "dog"), (1, 2), (True,))


@given(stacks, st.booleans())
def test_result_rows_carry_the_ids_of_the_file_and_the_masks(dense, ranked_apart):
    n = len(dense)
    scores = np.linspace(0.9, 0.5, n, dtype=np.float32)
    masks = both(dense)[1]
    found = Instances(masks.boxes().numpy(), np.arange(n) % 2, scores, masks, scores / 2 if ranked_apart else None)
    meta = ImageMeta(42, "a.jpg", masks.size, masks.size)
    rows = list(Prediction(meta, Categories(("cat", "dog"), (17, 18)), found))
    assert len(rows) == n
    for i, row in enumerate(rows):
        assert (row["image_id"], row["category_id"]) == (42, 17 + i % 2)
        x1, y1, x2, y2 = found.boxes[i].tolist()
        assert row["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert row["score"] == pytest.approx(scores[i])
        assert row.get("mask_score") == (pytest.approx(scores[i] / 2) if ranked_apart else None)
        assert isinstance(row["segmentation"]["counts"], str)
        np.testing.assert_array_equal(mask_math.decode([row["segmentation"]], masks.size)[0], dense[i])


def test_a_prediction_without_instances_has_no_rows():
    meta = ImageMeta(1, "", (4, 4), (4, 4))
    assert Prediction(meta, Categories.of(["a"])).to_coco() == []
    assert len(Prediction(meta, Categories.of(["a"]))) == 0


def test_instances_are_indexed_together():
    dense = np.eye(3, dtype=bool)[:, None, :].repeat(2, 1)
    found = Instances(
        np.arange(12.0).reshape(3, 4), np.arange(3), np.array([0.9, 0.8, 0.7]), Masks.from_dense(dense), np.arange(3.0)
    )
    part = found[np.array([True, False, True])]
    assert part.labels.tolist() == [0, 2]
    assert part.boxes[1].tolist() == [8, 9, 10, 11]
    assert part.masks is not None
    assert part.mask_scores is not None
    np.testing.assert_array_equal(part.masks.dense().numpy(), dense[[0, 2]])
    assert part.mask_scores.tolist() == [0, 2]
