"""Polygons against pycocotools."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as official

from maskkit.geometry import polygons, rle

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))


@given(st.data(), sizes)
def test_polygons_are_rasterised_as_pycocotools_does(data, size):
    height, width = size
    x = st.floats(-3, width + 3, allow_nan=False).map(lambda v: round(v, 2))
    y = st.floats(-3, height + 3, allow_nan=False).map(lambda v: round(v, 2))
    points = st.lists(st.tuples(x, y), min_size=3, max_size=8)
    outlines = [[v for p in part for v in p] for part in data.draw(st.lists(points, min_size=1, max_size=3))]
    theirs = official.merge(official.frPyObjects(outlines, height, width))
    assert polygons.to_rle(outlines, size) == theirs


def test_no_polygon_is_an_empty_mask():
    assert polygons.to_rle([], (4, 5)) == rle.empty((4, 5))
    assert rle.area([rle.empty((4, 5))]).tolist() == [0]


@pytest.mark.parametrize(
    "polygon",
    [[1, 1, 4, 4], [0, 0, 3, 0, 3, 3, 1], [0, 0, 3, math.nan, 3, 3], [0, 0, math.inf, 0, 3, 3], [0, 0, 1e12, 0, 3, 3]],
    ids=["two points", "half a point", "nan", "inf", "far away"],
)
def test_polygons_that_the_rasteriser_would_take_wrong_or_hang_on_are_refused(polygon):
    with pytest.raises(ValueError, match="a polygon"):
        polygons.to_rle([[0, 0, 3, 0, 3, 3], polygon], (8, 8))
