"""The painter: which pixels change, and into what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from maskkit.geometry import paint


def test_a_tint_is_a_blend_and_only_of_pixels_with_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    numbers = np.random.default_rng(1).integers(-1, 4, (7, 5))
    colours = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint8)
    before = image.copy()
    tinted = paint.tint(image, numbers, colours, 0.25)
    assert np.array_equal(image, before)
    kept = (numbers < 0) | (numbers > 2)
    assert np.array_equal(tinted[kept], image[kept])
    expected = 0.75 * image[~kept] + 0.25 * colours[numbers[~kept]]
    assert np.abs(tinted[~kept] - expected).max() <= 1
    monkeypatch.setattr(paint, "STRIP", 3)
    assert np.array_equal(paint.tint(image, numbers, colours, 0.25), tinted)


def test_later_masks_lie_on_top_and_may_be_empty() -> None:
    masks = [(np.ones((3, 4), bool), 1, 2), (np.zeros((0, 0), bool), 0, 0), (np.eye(2, dtype=bool), 0, 5)]
    colours = np.array([[100, 0, 0], [0, 100, 0], [0, 0, 100]], np.uint8)
    image = np.full((4, 8, 3), 20, np.uint8)
    expected = image.copy()
    expected[1:4, 2:6] = [60, 10, 10]
    expected[0, 5] = expected[1, 6] = [10, 10, 60]
    painted = paint.paint_objects(image, iter(masks), colours, 0.5, contour=0)
    assert np.array_equal(np.asarray(painted), expected)
    assert (image == 20).all()


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(1, 4), st.booleans())
def test_a_contour_is_what_lies_near_another_pixel_and_not_along_the_edge(mask, width, margin) -> None:
    size = tuple(np.add(mask.shape, 6 if margin else 0).tolist())
    top, left = (3, 3) if margin else (0, 0)
    whole = np.zeros(size, bool)
    whole[top:, left:][: mask.shape[0], : mask.shape[1]] = mask
    painted = paint.paint_objects(
        np.zeros((*size, 3), np.uint8), [(mask, top, left)], np.full((1, 3), 200, np.uint8), 0.5, width
    )
    assert np.array_equal(np.asarray(painted)[..., 0] == 200, paint.borders(whole.astype(int), width) & whole)
    assert np.array_equal(np.asarray(painted)[..., 0] > 0, whole)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_borders_lie_on_both_sides_and_not_at_the_edge_of_the_image(radius: int) -> None:
    numbers = np.zeros((20, 30), np.int64)
    numbers[:, 12:] = 5
    expected = np.zeros((20, 30), bool)
    expected[:, 12 - radius : 12 + radius] = True
    assert np.array_equal(paint.borders(numbers, radius), expected)
    assert np.array_equal(paint.borders(numbers.T, radius), expected.T)


def test_classes_are_tinted_and_unknown_pixels_are_not() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:], labels[:4] = 1, 255
    tinted = paint.paint_classes(grey, labels, 3)
    assert (tinted[:4] == 128).all()
    assert len(np.unique(tinted[4:].reshape(-1, 3), axis=0)) == 2


def test_an_image_without_segments_stays_as_it_is() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    assert np.array_equal(paint.paint_segments(image, np.zeros((60, 80), np.int64), [], 3), image)


def test_colours_differ() -> None:
    assert len(np.unique(paint.class_colours(254), axis=0)) > 200
    assert paint.class_colours(0).shape == (0, 3)
