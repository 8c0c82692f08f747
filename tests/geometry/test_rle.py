"""Run lengths against pycocotools, torchvision, and their own inverses."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as official
from torchvision.ops import masks_to_boxes

from maskkit.geometry import rle as masks

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))


@st.composite
def dense_masks(draw: st.DrawFn, least: int = 0, size: tuple[int, int] | None = None) -> np.ndarray:
    """(N, H, W): noise, empty, full and boxed masks."""
    shape = (draw(st.integers(least, 5)), *(size or draw(sizes)))
    noise = draw(arrays(bool, shape, elements=st.booleans()))
    for mask in noise:
        kind = draw(st.sampled_from(["noise", "empty", "full", "box"]))
        if kind != "noise":
            mask[...] = kind == "full"
        if kind == "box":
            y, x = draw(st.integers(0, shape[1] - 1)), draw(st.integers(0, shape[2] - 1))
            mask[y : y + 1 + draw(st.integers(0, 9)), x : x + 1 + draw(st.integers(0, 9))] = True
    return noise


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    size = draw(sizes)
    a, b = draw(dense_masks(size=size)), draw(dense_masks(size=size))
    return a, b, draw(st.lists(st.booleans(), min_size=len(b), max_size=len(b)))


@given(dense_masks())
def test_run_lengths_come_back_as_the_same_masks(dense):
    rles = masks.encode(dense)
    assert len(rles) == len(dense)
    back = masks.decode(rles, dense.shape[1:])
    assert back.dtype == bool
    np.testing.assert_array_equal(back, dense)


@given(dense_masks(least=1))
def test_run_lengths_are_those_of_pycocotools(dense):
    theirs = official.encode(np.asfortranarray(dense.transpose(1, 2, 0).astype(np.uint8)))
    assert masks.encode(dense) == theirs


@given(dense_masks())
def test_area_counts_pixels(dense):
    np.testing.assert_array_equal(masks.area(masks.encode(dense)), dense.sum((1, 2)))


@given(dense_masks())
def test_uncompressed_counts_make_the_same_record(dense):
    for mask, rle in zip(dense, masks.encode(dense), strict=True):
        flat = mask.flatten(order="F")
        starts = np.flatnonzero(np.diff(flat, prepend=False))
        counts = np.diff(np.array([0, *starts, flat.size])).tolist()
        assert masks.from_counts(counts, mask.shape) == rle


@given(mask_pairs())
def test_iou_is_that_of_pycocotools_with_crowds(pair):
    a, b, crowd = pair
    ours = masks.iou(masks.encode(a), masks.encode(b), crowd)
    assert ours.shape == (len(a), len(b))
    if len(a) and len(b):
        theirs = official.iou(masks.encode(a), masks.encode(b), [int(c) for c in crowd])  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours, theirs)


@given(mask_pairs())
def test_iou_is_that_of_its_definition(pair):
    a, b, _ = pair
    shared = (a[:, None] & b[None]).sum((2, 3))
    union = (a[:, None] | b[None]).sum((2, 3))
    np.testing.assert_allclose(masks.iou(masks.encode(a), masks.encode(b)), shared / union.clip(min=1), atol=1e-12)


@given(dense_masks())
def test_boxes_are_edges_one_beyond_the_last_pixel(dense):
    full = dense.any((1, 2))
    expected = np.zeros((len(dense), 4))
    if full.any():
        expected[full] = masks_to_boxes(torch.from_numpy(dense[full])).numpy() + np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(masks.boxes(masks.encode(dense)), expected)


@given(dense_masks())
def test_a_region_holds_all_of_a_mask_and_no_more(dense):
    for mask, rle in zip(dense, masks.encode(dense), strict=True):
        region, top, left = masks.decode_region(rle)
        again = np.zeros_like(mask)
        again[top : top + region.shape[0], left : left + region.shape[1]] = region
        np.testing.assert_array_equal(again, mask)
        x1, y1, x2, y2 = masks.boxes([rle])[0].astype(int).tolist()
        assert (left, top, *region.shape[::-1]) == (x1, y1, x2 - x1, y2 - y1)


@given(st.lists(dense_masks(least=1), min_size=1, max_size=4), st.binary(max_size=12), st.integers(0, 3))
def test_texts_that_surely_fill_an_image_do(dense, broken, place):
    """All that encoders write is found to fill its image; of other texts only what does."""
    counts = [masks.encode(mask[:1])[0]["counts"] for mask in dense]
    pixels = np.array([mask[0].size for mask in dense])
    assert masks.surely_fill(counts, pixels).all()
    assert not masks.surely_fill(counts, pixels + 1).any()
    place %= len(counts)
    counts[place] = broken
    if masks.surely_fill(counts, pixels)[place]:
        runs = masks.run_lengths(broken)
        assert runs.min() >= 0
        assert runs.sum() == pixels[place]


def test_no_text_fills_no_image():
    assert masks.surely_fill([], np.zeros(0, np.int64)).tolist() == []
    assert masks.surely_fill([b"", b"54"], np.array([9, 9])).tolist() == [False, True]
    assert masks.surely_fill([b"54"] * 1000, np.full(1000, 9)).all()
