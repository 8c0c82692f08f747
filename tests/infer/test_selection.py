"""Which objects are kept: classes, number, overlaps across classes."""

import numpy as np
import pytest

from maskkit.errors import MaskkitError
from maskkit.infer.selection import Selection
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction
from tests.small import objects

FRUIT = Categories.of(["date", "fig", "hazelnut"])


def crate(masked: bool = True) -> Prediction:
    """One fruit found as three classes, and another one beside it."""
    boxes = np.array([[10, 10, 50, 50], [11, 10, 51, 50], [10, 12, 50, 52], [60, 10, 90, 50]], np.float32)
    dense = np.zeros((4, 60, 100), bool)
    for mask, (x1, y1, x2, y2) in zip(dense, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    found = Instances(boxes, np.array([0, 1, 2, 1]), np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    found.masks = Masks.from_dense(dense) if masked else None
    return Prediction(ImageMeta(1, "", (60, 100), (60, 100)), FRUIT, found)


@pytest.mark.parametrize("masked", [True, False])
def test_one_thing_that_is_found_as_several_classes_is_kept_once(masked):
    kept = objects(Selection(max_overlap=0.7)(crate(masked)))
    assert kept.labels.tolist() == [0, 1]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6])
    assert kept.masks is None or len(kept.masks) == 2


def test_overlaps_are_those_of_the_masks_where_there_are_some():
    prediction = crate()
    halves = np.zeros((4, 60, 100), bool)
    halves[0, 10:30, 10:50], halves[1, 30:50, 10:50], halves[2, 50:52, 10:50], halves[3, 10:50, 60:90] = (True,) * 4
    objects(prediction).masks = Masks.from_dense(halves)
    assert len(objects(Selection(max_overlap=0.5)(prediction))) == 4


def test_classes_and_number():
    assert objects(Selection(("fig",))(crate())).labels.tolist() == [1, 1]
    assert objects(Selection(max_objects=1)(crate())).labels.tolist() == [0]
    assert objects(Selection(("fig", "date"), 2, 0.7)(crate())).labels.tolist() == [0, 1]
    assert objects(Selection()(crate())).labels.tolist() == [0, 1, 2, 1]
    assert len(objects(Selection(("hazelnut",), 5)(Selection(("fig",))(crate())))) == 0


def test_segments_of_other_classes_are_no_segment():
    ids = np.array([[1, 1, 2], [0, 2, 2]], np.int32)
    segments = [PanopticSegment(1, 0, 0.9, True), PanopticSegment(2, 1, 0.8, True)]
    whole = Prediction(ImageMeta(1, "", (2, 3), (2, 3)), FRUIT, panoptic=Panoptic(ids, segments))
    kept = Selection(("fig",))(whole).panoptic
    assert kept is not None
    assert kept.segments == segments[1:]
    assert kept.ids.tolist() == [[0, 0, 2], [0, 2, 2]]


def test_what_the_model_cannot_do_is_said():
    with pytest.raises(MaskkitError, match="--classes figg: the model has no such class; it has fig"):
        Selection(("figg",)).check(FRUIT, "instance")
    with pytest.raises(MaskkitError, match="--classes chooses objects"):
        Selection(("fig",)).check(FRUIT, "semantic")
    for chosen, name in ((Selection(max_objects=3), "--max-objects"), (Selection(max_overlap=0.5), "--max-overlap")):
        with pytest.raises(MaskkitError, match=name):
            chosen.check(FRUIT, "panoptic")
        chosen.check(FRUIT, "instance")
