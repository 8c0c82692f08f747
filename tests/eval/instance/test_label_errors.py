"""Likely errors of labels: one of each kind planted, and none where labels and detections agree."""

import csv
from pathlib import Path

import numpy as np
import pytest

from maskkit.eval.instance.label_errors import Suspect, in_turns, suspects, table, write_suspects
from tests.eval.cases import annotation, detection, rectangle, truth_of

SIZE = (100, 100)
NAMES = {1: "cat", 2: "dog"}
PLACES = [(x, y) for x in (5, 35, 65) for y in (5, 35, 65)]


def scene(image: int, shift: int = 0):
    """Nine objects of an image, and detections of them that are ``shift`` pixels off."""
    masks = [rectangle(SIZE, x, y, 20, 20) for x, y in PLACES]
    found = [rectangle(SIZE, x + shift, y, 20, 20) for x, y in PLACES]
    labels = [annotation(image, 1 + i % 2, mask) for i, mask in enumerate(masks)]
    rows = [detection(image, 1 + i % 2, mask, 0.9 - 0.01 * i) for i, mask in enumerate(found)]
    return labels, rows


def test_labels_that_agree_are_not_suspect() -> None:
    labels, rows = scene(1, 1)
    assert suspects(rows, truth_of({1: SIZE}, labels, NAMES)) == []
    assert suspects([], truth_of({1: SIZE}, [], NAMES)) == []
    assert suspects([], truth_of({1: SIZE}, labels, NAMES)) == []
    crowd = annotation(1, 1, np.ones(SIZE, bool), crowd=True)
    assert suspects(rows, truth_of({1: SIZE}, [crowd], NAMES)) == []  # anything may be inside


def test_labels_of_classes_that_the_model_does_not_know_are_not_suspect() -> None:
    mask = rectangle(SIZE, 5, 5, 20, 20)
    truth = truth_of({1: SIZE}, [annotation(1, 3, mask)], {**NAMES, 3: "rabbit"})
    rows = [detection(1, 1, mask, 0.9)]  # the rabbit looks like a cat to a model of cats and dogs
    assert [s.kind for s in suspects(rows, truth)] == ["wrong class"]
    assert suspects(rows, truth, known=NAMES) == []


@pytest.mark.parametrize("boxes", [False, True])
def test_each_kind_is_found(boxes: bool) -> None:
    labels, rows = [], []
    for image in (1, 2):
        some, found = scene(image, 1)
        labels += some
        rows += found
    del labels[12]  # image 2, the fourth object
    labels[0] = annotation(1, 2, rectangle(SIZE, *PLACES[0], 20, 20))  # a cat that is called a dog
    labels[5] = annotation(1, 2, rectangle(SIZE, PLACES[5][0] + 8, PLACES[5][1], 20, 20))
    twice = detection(2, 2, rectangle(SIZE, PLACES[3][0] + 1, PLACES[3][1], 20, 20), 0.3)
    truth = truth_of({1: SIZE, 2: SIZE}, labels, NAMES)
    if boxes:
        rows = [{k: v for k, v in row.items() if k != "segmentation"} for row in rows]
    found = in_turns(suspects([*rows, twice] if not boxes else rows, truth), lambda s: s)
    first = {s.kind: s for s in found[:3]}
    missed, wrong, loose = first["missed object"], first["wrong class"], first["loose mask"]
    assert missed[2:7] == (2, None, "", "dog", (PLACES[3][0] + 1, PLACES[3][1], 20, 20))
    assert missed.suspicion == pytest.approx(0.87)
    assert sum(s.kind == "missed object" for s in found) == 1  # the weaker one at the same place is the same object
    assert wrong[2:6] == (1, truth["annotations"][0]["id"], "dog", "cat")
    assert wrong.suspicion == pytest.approx(0.9)
    assert loose[2:6] == (1, truth["annotations"][5]["id"], "dog", "dog")
    assert 0 < loose.suspicion < 0.5
    assert len(found) == 3


def test_the_kinds_take_turns_and_are_written(tmp_path: Path) -> None:
    box = (1.0, 2.0, 3.5, 4.0)
    made = [Suspect("loose mask", v, 1, 7, "cat", "cat", box) for v in (0.1, 0.3, 0.2)]
    made += [Suspect("missed object", 0.9, "a,b", None, "", "dog", box)]
    ranked = in_turns(made, lambda s: s)
    assert [(s.kind, s.suspicion) for s in ranked] == [
        ("missed object", 0.9),
        ("loose mask", 0.3),
        ("loose mask", 0.2),
        ("loose mask", 0.1),
    ]
    write_suspects(tmp_path / "found.csv", [("train", Path("a,b.jpg"), s) for s in ranked])
    rows = list(csv.reader((tmp_path / "found.csv").open(newline="")))
    assert rows[1] == ["missed object", "0.900", "train", "a,b.jpg", "", "", "dog", "1.0", "2.0", "3.5", "4.0"]
    assert table([("train", Path("a.jpg"), s) for s in ranked]).row_count == 4
