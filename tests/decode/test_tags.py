"""Label maps from the maps of a model of image tags."""

import numpy as np
import pytest

from maskkit.decode import TaggedLabelMap, from_dict, to_dict
from maskkit.decode.outputs import TagMaps
from maskkit.decode.tags import rival_scores
from maskkit.prediction import Categories, ImageMeta

META = ImageMeta(1, "", (4, 4), (4, 4))
NAMES = Categories.of(["background", "cat", "dog"])


def maps() -> np.ndarray:
    """A cat that is faint throughout, and best on the left; a dog that is strong in one cell."""
    found = np.zeros((2, 4, 4), np.float32)
    found[0] = 0.01
    found[0, :, :2] = 0.1
    found[1, 0, 3] = 8
    return found


def test_each_class_is_measured_by_its_own_highest_cell() -> None:
    labels = TaggedLabelMap(0.5)(TagMaps(maps(), np.ones(2, np.float32)), META, NAMES).semantic
    assert labels is not None
    assert labels.tolist() == [[1, 1, 0, 2]] + [[1, 1, 0, 0]] * 3


def test_a_class_that_is_not_present_is_nowhere() -> None:
    for present in (np.array([0.0, 1.0], np.float32), np.array([False, True])):
        labels = TaggedLabelMap(0.5)(TagMaps(maps(), present), META, NAMES).semantic
        assert labels is not None
        assert set(np.unique(labels)) == {0, 2}


def test_the_threshold_is_the_score_of_the_background() -> None:
    scores = rival_scores(maps(), np.array([True, True]), 0.2)
    assert scores.dtype == np.float32
    assert (scores[0] == np.float32(0.2)).all()
    assert scores[1:].max((1, 2)) == pytest.approx([1, 1], abs=1e-3)
    low, high = (TaggedLabelMap(t)(TagMaps(maps(), np.ones(2)), META, NAMES).semantic for t in (0.05, 0.95))
    assert low is not None
    assert high is not None
    assert (low > 0).sum() > (high > 0).sum()


def test_it_travels_in_files() -> None:
    assert from_dict(to_dict(TaggedLabelMap(0.3))) == TaggedLabelMap(0.3)
