"""Matching, thresholds and confusion against cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskkit.eval.instance.match import (
    FALSE,
    IGNORED,
    Scene,
    Tally,
    best_threshold,
    confusion,
    match,
    match_classes,
    scenes,
    tally,
    threshold_curve,
    worst,
)
from maskkit.eval.instance.metric import Kind
from tests.eval.cases import annotation, detection, drawn, official, rectangle, truth_of


def scene(labels, found, iou, crowd=None, image_id=1) -> Scene:
    """A scene from class numbers, (class, score) pairs and a table of overlaps."""
    flags = np.zeros(len(labels), bool) if crowd is None else np.array(crowd, bool)
    table = np.array(iou, float).reshape(len(found), len(labels))
    return Scene(
        image_id,
        [],
        [],
        np.array(labels, int),
        flags,
        np.array([k for k, _ in found], int),
        np.array([s for _, s in found], float),
        table,
    )


@pytest.mark.parametrize(
    ("iou", "crowd", "expected"),
    [
        ([[0.9, 0.6]], [0, 0], [0]),  # the best
        ([[0.9, 0.6], [0.8, 0.55]], [0, 0], [0, 1]),  # the best that is free
        ([[0.9, 0.4], [0.8, 0.4]], [0, 0], [0, FALSE]),  # twice
        ([[0.5]], [0], [0]),  # 0.5 is enough
        ([[0.49]], [0], [FALSE]),
        ([[0.9], [0.9]], [1], [IGNORED, IGNORED]),  # a crowd holds many
        ([[0.6, 0.9]], [0, 1], [0]),  # an object goes before a crowd
        ([[0.4, 0.9]], [0, 1], [IGNORED]),
    ],
)
def test_match_by_hand(iou, crowd, expected):
    assert match(np.array(iou), np.array(crowd, bool)).tolist() == expected


def test_match_without_objects_or_detections():
    assert match(np.zeros((2, 0)), np.zeros(0, bool)).tolist() == [FALSE, FALSE]
    assert match(np.zeros((0, 2)), np.zeros(2, bool)).tolist() == []


# two cats and a dog: the first cat is found, then found again; the dog is taken for a cat; the second cat is missed
FARM = scene(
    [0, 0, 1],
    [(0, 0.9), (0, 0.8), (0, 0.6), (1, 0.2)],
    [[0.9, 0, 0], [0.7, 0, 0], [0, 0, 0.8], [0, 0, 0]],
)


def test_confusion_by_hand():
    expected = [
        [1, 0, 1],  # cats: one found, one missed
        [1, 0, 0],  # the dog was taken for a cat
        [1, 0, 0],  # the second detection of the first cat
    ]
    assert confusion([FARM], 2, 0.5).tolist() == expected
    assert confusion([FARM], 2, 0.95).tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]
    assert confusion([FARM, FARM], 2, 0.1).tolist() == [[2, 0, 2], [2, 0, 0], [2, 2, 0]]
    assert confusion([], 2, 0.5).sum() == 0


def test_confusion_leaves_crowds_out_for_their_own_class_alone():
    crowd = scene([0, 1], [(0, 0.9), (1, 0.8)], [[0.9, 0], [0.9, 0]], crowd=[1, 0])
    assert confusion([crowd], 2, 0.5).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_tally_wants_the_right_class():
    assert tally(FARM, 0.5) == Tally(hits=1, missed=2, false=2)
    assert tally(FARM, 0.95) == Tally(0, 3, 0)
    assert Tally(1, 2, 2).f1 == pytest.approx(2 / 6)
    assert Tally(0, 0, 0).f1 == 1


def test_threshold_by_hand():
    # hits 0.9, 0.7 and 0.7, false 0.8 and 0.3, of four objects
    case = scene(
        [0, 0, 0, 0],
        [(0, 0.9), (0, 0.8), (0, 0.7), (0, 0.7), (0, 0.3)],
        [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0.2]],
    )
    curve = threshold_curve([case])
    assert [t.score for t in curve] == [0.9, 0.8, 0.7, 0.3]  # equal scores are one threshold
    assert [t.f1 for t in curve] == pytest.approx([2 / 5, 2 / 6, 6 / 8, 6 / 9])
    best = best_threshold([case])
    assert best == pytest.approx((0.5, 0.75, 3 / 4, 3 / 4))  # halfway between 0.7 and 0.3
    assert tally(case, best.score).f1 == pytest.approx(best.f1)


def test_threshold_without_a_hit_or_an_object():
    assert best_threshold([]) == (0, 0, 0, 0)
    assert best_threshold([scene([], [(0, 0.9)], [])]) == (0, 0, 0, 0)
    assert best_threshold([scene([0], [], [])]) == (0, 0, 0, 0)


def test_worst_images_have_the_lowest_f1_then_the_most_mistakes():
    perfect = scene([0], [(0, 0.9)], [[1]], image_id=1)
    empty = scene([], [], [], image_id=2)
    one_missed = scene([0], [], [], image_id=3)
    two_missed = scene([0, 0], [], [], image_id=4)
    half = scene([0, 0], [(0, 0.9)], [[1, 0]], image_id=5)
    ranked = worst([perfect, empty, one_missed, two_missed, half], 0.5, 10)
    assert [s.image_id for s, _ in ranked] == [4, 3, 5]
    assert len(worst([one_missed, two_missed, half], 0.5, 2)) == 2


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scenes_rank_detections_and_measure_overlaps(kind: Kind):
    size = (40, 40)
    left, right = rectangle(size, 0, 0, 20, 40), rectangle(size, 20, 0, 20, 40)
    truth = truth_of(
        {2: size, 1: size},
        [annotation(2, 8, left), annotation(2, 5, right, crowd=True)],
        {8: "a", 5: "b"},
    )
    quarter, both = rectangle(size, 20, 0, 10, 40), rectangle(size, 0, 0, 40, 40)
    rows = [detection(2, 5, quarter, 0.4), detection(2, 8, both, 0.8)]
    nothing, full = scenes(rows, truth, kind)
    assert nothing.iou.shape == (0, 0)
    assert full.image_id == 2
    assert full.labels.tolist() == [1, 0]
    assert full.crowd.tolist() == [False, True]
    assert full.scores.tolist() == [0.8, 0.4]
    assert full.found_labels.tolist() == [1, 0]
    np.testing.assert_allclose(full.iou, [[0.5, 0.5], [0, 1]])  # with the crowd, the share that lies inside


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_hits_are_those_that_average_precision_counts(kind: Kind):
    rows, truth = drawn(3, images=12)
    seen = list(scenes(rows, truth, kind))
    theirs = official(rows, truth, kind)
    images = [e for e in theirs.evalImgs if e is not None and tuple(e["aRng"]) == (0, 1e10)]
    hits = sum(int(((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0]).sum()) for e in images)
    ignored = sum(int(e["dtIgnore"][0].sum()) for e in images)
    answers = np.concatenate([match_classes(s) for s in seen])
    assert hits > 10
    assert ignored > 0
    assert (answers >= 0).sum() == hits
    assert (answers == IGNORED).sum() == ignored
    assert sum(tally(s, 0).hits for s in seen) == hits


@given(st.lists(st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.5, 0.5, 0.8]), st.booleans()), max_size=5), max_size=4))
def test_the_best_threshold_is_the_best_by_both_readings_of_a_limit(images):
    seen = [
        scene(
            [0] * 3,
            [(0, s) for s, _ in sorted(found, reverse=True)],
            [[float(hit)] * 3 for _, hit in sorted(found, reverse=True)],
        )
        for found in images
    ]

    def f1(score: float) -> float:
        parts = [tally(one, score) for one in seen]
        hits, wrong = sum(p.hits for p in parts), sum(p.missed + p.false for p in parts)
        return 2 * hits / (2 * hits + wrong) if hits else 0.0

    best = best_threshold(seen)
    assert best.f1 == pytest.approx(max(map(f1, [0.2, 0.4, 0.5, 0.8])))
    assert best.f1 == pytest.approx(f1(best.score) if best.f1 else 0)
    assert best.f1 == 0 or all(s != best.score for one in seen for s in one.scores), "no score lies on it"
