"""What comes out of a model: masks, geometry, and the way back to the user's file."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskkit.errors import MaskkitError
from maskkit.geometry import rle as mask_math
from maskkit.prediction import (
    Categories,
    Category,
    ImageMeta,
    Instances,
    Masks,
    Panoptic,
    PanopticSegment,
    Prediction,
)

stacks = arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)), elements=st.booleans())


def both(dense: np.ndarray) -> list[Masks]:
    """The same masks from dense ones and from run lengths."""
    return [Masks.from_dense(dense), Masks((dense.shape[1], dense.shape[2]), mask_math.encode(dense))]


@st.composite
def indices(draw: st.DrawFn, n: int):
    """Anything that chooses among n things."""
    positions = st.lists(st.integers(-n, n - 1), max_size=6) if n else st.just([])
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    chosen = draw(
        st.one_of(
            positions,
            positions.map(lambda v: np.array(v, np.int64)),
            flags.map(lambda v: np.array(v, bool)),
            st.slices(n),
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
        np.testing.assert_array_equal(chosen.dense(), expected)


@given(stacks, st.sampled_from([int, np.int64]))
def test_one_index_gives_masks_of_length_one(dense, kind):
    assume(len(dense))
    for masks in both(dense):
        np.testing.assert_array_equal(masks[kind(len(dense) - 1)].dense(), dense[-1:])


def test_indices_that_do_not_fit_are_refused():
    for masks in both(np.ones((2, 3, 3), bool)):
        with pytest.raises(IndexError):
            masks[2]
        with pytest.raises(IndexError):
            masks[np.array([True])]


@given(stacks)
def test_masks_say_what_the_dense_ones_say(dense):
    for masks in both(dense):
        assert len(masks) == len(dense)
        assert isinstance(masks.dense(), np.ndarray)
        np.testing.assert_array_equal(masks.dense(), dense)
        assert masks.rle() == mask_math.encode(dense)
        np.testing.assert_array_equal(masks.boxes(), mask_math.boxes(mask_math.encode(dense)))
        np.testing.assert_array_equal(masks.areas(), dense.sum((1, 2)))
    np.testing.assert_array_equal(Masks.from_dense(dense * np.float32(0.25)).dense(), dense)


def test_dense_masks_have_three_axes():
    with pytest.raises(ValueError, match="shape"):
        Masks.from_dense(np.zeros((4, 3), bool))
    assert len(Masks.empty((3, 4))) == 0
    assert Masks.empty((3, 4)).dense().shape == (0, 3, 4)


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
    assert Categories(("cat", "cat", "dog"), (3, 8, 9)).titles == ("cat (3)", "cat (8)", "dog")
    assert Categories.of(["a", "b"]).ids == (1, 2)
    assert categories.things == (True, True)
    assert categories[0] == ("cat", 17, True)
    assert categories[1].name == "dog"
    mixed = Categories.of(["cat"], stuff=["sky"])
    assert mixed == Categories(("cat", "sky"), (1, 2), (True, False))
    assert mixed.subset([1]) == Categories(("sky",), (2,), (False,))
    assert mixed.subset([1, 0]) == Categories(("sky", "cat"), (2, 1), (False, True))
    assert mixed[1] == Category("sky", 2, thing=False)
    assert list(categories) == [Category("cat", 17, thing=True), Category("dog", 18, thing=True)]
    assert [row.get("isthing") for c in (categories, mixed) for row in c.to_coco()] == [None, None, 1, 0]
    with pytest.raises(ValueError, match="one flag per id"):
        Categories(("cat", "dog"), (1, 2), (True,))


@given(stacks, st.booleans())
def test_result_rows_carry_the_ids_of_the_file_and_the_masks(dense, ranked_apart):
    n = len(dense)
    scores = np.linspace(0.9, 0.5, n, dtype=np.float32)
    masks = both(dense)[1]
    found = Instances(masks.boxes(), np.arange(n) % 2, scores, masks, scores / 2 if ranked_apart else None)
    meta = ImageMeta(42, "a.jpg", masks.size, masks.size)
    prediction = Prediction(meta, Categories(("cat", "dog"), (17, 18)), found)
    rows = list(prediction)
    assert len(rows) == len(prediction) == n
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


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_a_label_map_has_a_row_for_each_class_that_occurs(labels):
    categories = Categories.of("abcd")
    prediction = Prediction(ImageMeta(1, "", labels.shape, labels.shape), categories, semantic=labels)
    rows = prediction.to_coco()
    assert len(prediction) == len(rows) == len(list(prediction)) == len(set(labels.flatten().tolist()))
    for row in rows:
        mask = mask_math.decode([row["segmentation"]], labels.shape)[0]
        np.testing.assert_array_equal(mask, labels == categories.index(row["category_id"]))


def test_a_panoptic_image_has_a_row_for_each_segment():
    ids = np.zeros((4, 6), np.int32)
    ids[:2, :3], ids[3] = 5, 2
    segments = [PanopticSegment(5, 0, 0.75, thing=True), PanopticSegment(2, 1, 0.5, thing=False)]
    panoptic = Panoptic(ids, segments)
    prediction = Prediction(ImageMeta(9, "", (4, 6), (4, 6)), Categories.of(["cat"], stuff=["sky"]), panoptic=panoptic)
    rows = prediction.to_coco()
    assert len(prediction) == len(panoptic) == len(rows) == 2
    for row, segment in zip(rows, segments, strict=True):
        assert (row["image_id"], row["category_id"], row["score"]) == (9, segment.label + 1, segment.score)
        np.testing.assert_array_equal(mask_math.decode([row["segmentation"]], (4, 6))[0], ids == segment.id)


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
    np.testing.assert_array_equal(part.masks.dense(), dense[[0, 2]])
    assert part.mask_scores.tolist() == [0, 2]


def scenes() -> dict[str, Prediction]:
    """One image with two objects, as each kind of prediction."""
    names, meta = Categories(("cat", "dog", "sky"), (1, 2, 3)), ImageMeta(7, "photo.jpg", (4, 6), (4, 6))
    dense = np.zeros((2, 4, 6), bool)
    dense[0, :2, :3], dense[1, 2:, 3:] = True, True
    boxes = np.array([[0, 0, 3, 2], [3, 2, 6, 4]], np.float32)
    found = Instances(boxes, np.array([0, 1]), np.array([0.9, 0.8], np.float32), Masks.from_dense(dense))
    semantic = np.full((4, 6), 2, np.uint8)
    semantic[dense[0]], semantic[dense[1]] = 0, 1
    segments = [PanopticSegment(3, 0, 0.9, True), PanopticSegment(5, 1, 0.8, True)]
    ids = 3 * dense[0].astype(np.int32) + 5 * dense[1].astype(np.int32)
    return {
        "objects": Prediction(meta, names, found),
        "label map": Prediction(meta, names, semantic=semantic),
        "segments": Prediction(meta, names, panoptic=Panoptic(ids, segments)),
        "boxes": Prediction(meta, names, Instances(boxes, np.array([0, 1]), np.array([0.9, 0.8], np.float32))),
    }


@pytest.mark.parametrize("kind", ["objects", "label map", "segments"])
def test_masks_as_an_array_are_those_of_the_rows(kind):
    prediction = scenes()[kind]
    assert prediction.masks.dtype == bool
    assert prediction.masks.shape == (len(prediction), 4, 6)
    rows = [mask_math.to_text(r) for r in mask_math.encode(prediction.masks)]
    assert rows == [row["segmentation"] for row in prediction.to_coco()]


def test_a_model_of_boxes_has_no_masks():
    with pytest.raises(MaskkitError, match="boxes without masks"):
        _ = scenes()["boxes"].masks


def test_texts_of_predictions_are_short():
    texts = {kind: repr(prediction) for kind, prediction in scenes().items()}
    assert texts["objects"] == "Prediction('photo.jpg', 6 x 4 pixels, 2 objects: cat 0.90, dog 0.80)"
    assert texts["segments"].endswith("2 segments: cat 0.90, dog 0.80)")
    assert texts["label map"].endswith("3 classes: cat, dog, sky)")
    empty = Prediction(ImageMeta(4, "", (4, 6), (4, 6)), Categories(("cat",), (1,)), scenes()["boxes"].instances[:0])  # type: ignore[index]
    assert repr(empty) == "Prediction(image 4, 6 x 4 pixels, 0 objects)"
