"""Boxes against torchvision, and codes against their inverses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision import ops

from maskkit.geometry import boxes

pixels = st.integers(0, 40)


@st.composite
def box_sets(draw: st.DrawFn, most: int = 12, side: int = 1) -> torch.Tensor:
    """(N, 4) boxes on whole pixels, sides of ``side`` pixels or more, many of them overlapping."""
    rows = draw(st.lists(st.tuples(pixels, pixels, st.integers(side, 25), st.integers(side, 25)), max_size=most))
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64).reshape(-1, 4)


@given(box_sets())
def test_forms_are_those_of_torchvision_and_inverse(found):
    centres = boxes.to_centres(found)
    assert_close(centres, ops.box_convert(found, "xyxy", "cxcywh"))
    assert_close(boxes.to_corners(centres), found)


@given(box_sets(side=0), box_sets(side=0))
def test_iou_and_area_are_those_of_torchvision(a, b):
    assert_close(boxes.area(a), ops.box_area(a))
    ours = boxes.iou(a, b)
    assert ours.shape == (len(a), len(b))
    assert_close(ours, ops.box_iou(a, b).nan_to_num(0))  # torchvision divides 0 by 0 for two empty boxes


@given(box_sets(), box_sets())
def test_leading_dimensions_are_independent(a, b):
    stacked = boxes.iou(torch.stack([a, a + 3]), torch.stack([b, b]))
    assert_close(stacked, torch.stack([boxes.iou(a, b), boxes.iou(a + 3, b)]))


def test_area_of_an_inverted_box_is_zero():
    assert boxes.area(torch.tensor([[5.0, 5, 2, 9], [5, 5, 2, 2]])).tolist() == [0, 0]


@given(st.data())
def test_decode_is_the_inverse_of_encode(data):
    found = data.draw(box_sets())
    anchors = boxes.to_centres(data.draw(st.permutations(found.tolist()).map(torch.tensor)).reshape(-1, 4).double())
    assert_close(boxes.decode(boxes.encode(found, anchors), anchors), found)


def test_code_is_in_tenths_of_the_anchor_and_fifths_of_the_log_size():
    anchor = torch.tensor([[10.0, 20, 4, 8]])
    moved = boxes.to_corners(torch.tensor([[12.0, 20, 4, 8 * torch.e]]))
    assert_close(boxes.encode(moved, anchor), torch.tensor([[5.0, 0, 0, 5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_boxes_are_fine_and_the_dtype_stays(dtype):
    none = torch.zeros(0, 4, dtype=dtype)
    assert boxes.iou(none, none).shape == (0, 0)
    assert boxes.encode(none, none).dtype == boxes.decode(none, none).dtype == dtype
