"""Polygons with few corners: the IoU that is asked for, holes and parts, no more corners than needed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskkit.data.convert.outlines import trace
from maskkit.data.convert.simplify import simplified
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle

SIZE = (90, 120)
Y, X = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
DISC = np.hypot(X - 60, Y - 45) < 40


def kept(mask: np.ndarray, least_iou: float) -> tuple[float, list[np.ndarray]]:
    """The IoU of the polygons with the mask, and the polygons."""
    (rle,) = mask_math.encode(mask[None])
    polygons = simplified(rle, least_iou)
    size = (mask.shape[0], mask.shape[1])
    return mask_math.iou([to_rle([p.tolist() for p in polygons], size)], [rle])[0, 0], polygons


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), blur=st.floats(0.5, 6), least=st.sampled_from([0.5, 0.8, 0.95, 0.99, 1.0]))
def test_the_iou_is_kept(seed: int, blur: float, least: float) -> None:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((40, 50)), blur)
    mask = noise > np.quantile(noise, rng.uniform(0.3, 0.99))
    iou, _ = kept(mask, least)
    assert iou >= least


def test_a_disc_needs_few_corners() -> None:
    iou, (polygon,) = kept(DISC, 0.95)
    assert iou >= 0.95
    assert len(polygon) / 2 <= 16 < len(trace(DISC)[0]) / 8
    assert len(kept(DISC, 0.8)[1][0]) < len(polygon)


def test_holes_islands_and_parts_are_kept() -> None:
    ring = DISC & (np.hypot(X - 60, Y - 45) > 20)
    island = ring | (np.hypot(X - 60, Y - 45) < 10)
    parts = island.copy()
    parts[2:12, 2:12] = True
    for mask, count in ((ring, 1), (island, 2), (parts, 3)):
        iou, polygons = kept(mask, 0.95)
        assert iou >= 0.95
        assert len(polygons) == count
        covered = mask_math.decode([to_rle([p.tolist() for p in polygons], SIZE)], SIZE)[0]
        assert not covered[45, 45]  # in the hole
        assert covered[45, 60] == mask[45, 60]


def test_specks_go_and_the_largest_part_stays() -> None:
    specks = DISC.copy()
    specks[5, 5] = specks[80, 110] = True
    assert len(kept(specks, 0.95)[1]) == 1
    one = np.zeros(SIZE, bool)
    one[7, 9] = True
    assert kept(one, 0.5)[0] >= 0.5


@pytest.mark.parametrize("least", [0.5, 1.0])
def test_an_empty_mask_has_no_polygon(least: float) -> None:
    assert simplified(mask_math.empty(SIZE), least) == []


def test_a_mask_far_from_the_corner_lies_where_it_was() -> None:
    mask = np.zeros((300, 400), bool)
    mask[200:260, 300:380] = True
    (polygon,) = kept(mask, 0.9)[1]
    assert polygon.reshape(-1, 2).min(0).tolist() == [300, 200]
    assert polygon.reshape(-1, 2).max(0).tolist() == [380, 260]
    assert len(polygon) in (6, 8)
