"""Predictions in the types of other libraries."""

import sys

import numpy as np
import pytest

from maskkit.errors import MaskkitError
from maskkit.prediction import ImageMeta, Prediction
from tests.infer.test_draw import NAMES, scene
from tests.small import masks, objects


def test_supervision_gets_everything():
    prediction = scene((20, 30), [[2, 3, 12, 13], [15, 5, 29, 18]])
    objects(prediction).track_ids = np.array([7, 3])
    detections = prediction.to_supervision()
    np.testing.assert_array_equal(np.asarray(detections.tracker_id), [7, 3])
    np.testing.assert_array_equal(detections.xyxy, objects(prediction).boxes)
    np.testing.assert_array_equal(np.asarray(detections.mask), masks(prediction).dense())
    np.testing.assert_array_equal(np.asarray(detections.confidence), objects(prediction).scores)
    np.testing.assert_array_equal(np.asarray(detections.class_id), [0, 1])
    np.testing.assert_array_equal(np.asarray(detections.data["class_name"]), ["disc", "ring"])


def test_supervision_of_nothing():
    assert len(scene((20, 30), []).to_supervision()) == 0
    assert len(Prediction(ImageMeta(1, "", (5, 5), (5, 5)), NAMES).to_supervision()) == 0


def test_supervision_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MaskkitError, match=r"pip install 'maskkit\[interop\]'"):
        scene((20, 30), [[2, 3, 12, 13]]).to_supervision()
