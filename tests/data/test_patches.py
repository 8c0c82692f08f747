"""Patches against dense arithmetic: every method must give what the same change of the whole bitmaps gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as oracle

from maskkit.data.patches import Patches
from maskkit.geometry import rle as mask_math
from maskkit.geometry.masks import resample
from maskkit.targets import DenseMasks, RleMasks, TargetMasks

bitmaps = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12).flatmap(
    lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.booleans())
)
sides = st.integers(1, 20)


def patches(dense: np.ndarray) -> Patches:
    return Patches.of(RleMasks(dense.shape[1:], mask_math.encode(dense)))


def same(found: TargetMasks, dense: np.ndarray) -> None:
    assert found.size == dense.shape[1:]
    np.testing.assert_array_equal(found.dense().numpy(), dense)


@given(bitmaps)
def test_run_lengths_of_pycocotools_are_read(dense):
    rles: Any = oracle.encode(np.asfortranarray(dense.transpose(1, 2, 0).astype(np.uint8)))
    same(Patches.of(RleMasks(dense.shape[1:], rles)), dense)
    as_text = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
    same(Patches.of(RleMasks(dense.shape[1:], as_text)), dense)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1500, 1500)])
def test_long_runs_are_read(size):
    """Runs of more than 1024 pixels take three and more characters, and their differences are negative too."""
    dense = np.zeros((3, *size), bool)
    dense[0] = True
    dense[1, size[0] // 3 :, size[1] // 2 :] = True
    dense[2].flat[[0, 1, 700, 3999]] = True
    same(patches(dense), dense)


@given(bitmaps)
def test_dense_and_run_lengths_give_the_same_patches(dense):
    found, wanted = Patches.of(DenseMasks(dense)), DenseMasks(dense)
    same(found, dense)
    same(Patches.of(found), dense)
    for a, b in ((found.boxes(), wanted.boxes()), (found.areas(), wanted.areas())):
        assert torch.equal(a, b)
    assert found.rle() == wanted.rle()
    same(found.to("cpu"), dense)


@given(bitmaps, st.data())
def test_choosing(dense, data):
    found, n = patches(dense), len(dense)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    same(found[chosen], dense[chosen])
    same(found[torch.from_numpy(chosen)], dense[chosen])
    same(found[np.flatnonzero(chosen)], dense[chosen])
    same(found[1:], dense[1:])
    same(found[0], dense[:1])
    same(found.only(chosen), dense & chosen[:, None, None])
    same(found + found[:1], np.concatenate([dense, dense[:1]]))


@given(bitmaps, st.integers(-15, 15), st.integers(-15, 15), sides, sides)
def test_window(dense, x, y, height, width):
    around = np.pad(dense, ((0, 0), (40, 40), (40, 40)))
    same(patches(dense).window(x, y, (height, width)), around[:, 40 + y : 40 + y + height, 40 + x : 40 + x + width])


@given(bitmaps)
def test_mirror_union_cut(dense):
    found = patches(dense)
    same(found.mirror(1), dense[:, :, ::-1])
    same(found.mirror(0), dense[:, ::-1])
    np.testing.assert_array_equal(found.union(), dense.any(0))
    same(found.cut(dense[0]), dense & ~dense[0])


@settings(deadline=None)
@given(bitmaps, sides, sides)
def test_scale_is_bilinear_cut_at_a_half(dense, height, width):
    scaled = patches(dense).scale((height, width)).dense()
    value = torch.nn.functional.interpolate(torch.from_numpy(dense)[None].double(), (height, width), mode="bilinear")[0]
    clear = (value - 0.5).abs() > 1e-5  # at a tie the last bit decides
    assert torch.equal(scaled[clear], (value > 0.5)[clear])
    assert torch.equal(patches(dense).dense((height, width)), scaled)


def test_scale_of_solid_objects_is_the_rule_of_the_masks_to_the_bit():
    dense = np.zeros((2, 97, 130), bool)
    dense[0, 10:80, 5:90] = True
    dense[1, 50:97, 100:] = True
    for size in ((48, 65), (320, 200), (33, 131), (97, 130)):
        assert torch.equal(patches(dense).scale(size).dense(), resample(torch.from_numpy(dense), size))


def test_no_masks():
    nothing = Patches.of(RleMasks((4, 5), []))
    for masks in (nothing, nothing.scale((4, 5)), nothing.mirror(0), nothing.window(1, 1, (4, 5))):
        assert masks.dense().shape == (0, 4, 5)
        assert masks.boxes().shape == (0, 4)
        assert masks.areas().shape == (0,)
        assert masks.rle() == []
    assert not nothing.union().any()
    assert Patches.empty_of(2, (4, 5)).areas().tolist() == [0, 0]
