"""Result rows: one check for all tasks, and classes matched by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskkit import zoo
from maskkit.data.shapes import shapes_dataset
from maskkit.errors import DataError
from maskkit.eval.rows import Known, read_json, rows_by_image, rows_in, rows_of, shared_classes, sound_rows, translated
from maskkit.eval.task import TASKS
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction

KNOWN = Known({1: (4, 6), 2: None}, (1, 7))
MASK = {"size": [4, 6], "counts": [20, 4]}
TEXT = {"size": [4, 6], "counts": "d04"}


def test_a_sound_row_is_one_that_json_holds() -> None:
    rows = [
        {"image_id": 1, "category_id": 7, "segmentation": MASK, "kept": "as it is"},
        {"image_id": 2.0, "category_id": 1, "bbox": (1, 2, 3, 4), "score": 1, "mask_score": None},
        {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "bbox": []},
    ]
    sound = sound_rows(rows, KNOWN)
    assert json.loads(json.dumps(sound)) == sound
    assert sound[0] == {"image_id": 1, "category_id": 7, "segmentation": TEXT, "kept": "as it is"}
    assert sound[1].get("bbox") == [1.0, 2.0, 3.0, 4.0]
    assert isinstance(sound[1]["image_id"], int)
    assert sound_rows(sound, KNOWN) == sound, "what is sound stays as it is"


@pytest.mark.parametrize(
    ("row", "need", "message"),
    [
        ("no row", (), "an object with image_id"),
        ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}, ("score",), "has no score"),
        ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}, ("segmentation",), "has no segmentation"),
        ({"image_id": 1, "category_id": 1}, ("segmentation",), "neither a bbox nor a segmentation"),
        ({"image_id": 3, "category_id": 1, "segmentation": MASK}, (), "image_id 3 is not"),
        ({"image_id": 1, "category_id": 2, "segmentation": MASK}, (), "category_id 2 is not"),
        ({"image_id": 2, "category_id": 1, "segmentation": MASK}, (), "no height and width"),
        ({"image_id": 1, "category_id": 1, "segmentation": {**MASK, "counts": [20, 5]}}, (), "add up to 25 pixels"),
    ],
)
def test_what_is_wrong_is_said(row: object, need: tuple[str, ...], message: str, tmp_path: Path) -> None:
    rows = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1, "segmentation": MASK}, row]
    with pytest.raises(DataError, match=rf"found\.json, row 2 of 2: .*{message}"):
        rows_in(rows, Path("found.json"), KNOWN, need)


def test_files_are_read_with_a_clear_word(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    with pytest.raises(DataError, match="there is no such file"):
        read_json(file)
    file.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_json(file)


def test_rows_are_grouped_by_known_images() -> None:
    data = shapes_dataset(2, size=(32, 32))
    rows = [{"image_id": 2, "category_id": 1, "segmentation": MASK}]
    assert rows_by_image(rows, data) == {1: [], 2: rows}
    with pytest.raises(DataError, match="row 2 of 2: image_id 9"):
        rows_by_image([*rows, {**rows[0], "image_id": 9}], data)


def test_rows_of_predictions_and_their_translation() -> None:
    objects = Instances(np.zeros((2, 4), np.float32), np.array([0, 1]), np.ones(2, np.float32), Masks.empty((4, 6)))
    objects.masks = Masks.from_dense(np.ones((2, 4, 6), bool))
    found = Prediction(ImageMeta(1, "", (4, 6), (4, 6)), Categories(("a", "b"), (5, 6)), objects)
    seen = []
    rows = rows_of([found, found], lambda i, prediction: seen.append((i, prediction is found)))
    assert seen == [(0, True), (1, True)]
    assert [r["category_id"] for r in rows] == [5, 6, 5, 6]
    assert [r["category_id"] for r in translated(rows, {6: 9})] == [9, 9]


def test_every_preset_learns_from_what_its_task_knows() -> None:
    for preset in zoo.presets():
        kind = zoo.model_class(preset.name)
        task = TASKS[kind.task_of(preset.model)]
        assert kind.supervision_of(preset.model) <= task.supervision, preset.name
        assert task.noun in ("objects", "regions", "segments")


def test_classes_are_matched_by_name():
    data = shapes_dataset(6, size=(64, 64))
    known = Categories(("Star ", "cube", "disc"), (50, 60, 70))
    ids, cut = shared_classes(known, data)
    assert cut.categories == Categories(("disc", "star"), (1, 4))
    assert ids == {50: 4, 70: 1}
    assert len(cut) == 6
    before = [data.categories.names[a.label] for r in data.records for a in r.annotations]
    after = [cut.categories.names[a.label] for r in cut.records for a in r.annotations]
    assert after == [name for name in before if name in ("disc", "star")]
    assert after


def test_names_are_matched_exactly_first_and_folded_only_where_that_is_one_class(caplog) -> None:
    data = shapes_dataset(1, size=(64, 64))

    def shared(theirs: list[str], ours: list[str]) -> dict[str, str]:
        known = replace(data, records=[], categories=Categories.of(theirs))
        model = Categories(tuple(ours), tuple(range(10, 10 + len(ours))))
        ids = shared_classes(model, known)[0]
        return {ours[a - 10]: theirs[b - 1] for a, b in ids.items()}

    assert shared(["A", "a"], ["a", "A"]) == {"A": "A", "a": "a"}
    assert shared(["A", "a"], ["a"]) == {"a": "a"}
    assert not caplog.records
    assert shared(["Car ", "dog"], ["car"]) == {"car": "Car "}
    assert "class 'Car ' is taken for the model's 'car'" in caplog.text
    with pytest.raises(DataError, match="shares no class"):
        shared(["Car", "CAR"], ["car"])


def test_no_shared_class_is_an_error():
    data = shapes_dataset(1, size=(64, 64))
    with pytest.raises(DataError, match="shares no class") as error:
        shared_classes(Categories.of(["cat", "dog"]), data)
    assert "cat, dog" in str(error.value)
    assert "disc" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [0.5]}, r"score is \[0.5\], not a finite number"),
        ({"score": {}}, "score is {}, not a finite number"),
        ({"score": "0.5"}, "score is '0.5', not a finite number"),
        ({"score": float("nan")}, "score is nan, not a finite number"),
        ({"score": True}, "score is True, not a finite number"),
        ({"bbox": 5}, "bbox is 5, not"),
        ({"bbox": {"x": 1, "y": 2, "w": 3, "h": 4}}, "bbox is {.*}, not"),
        ({"bbox": [1, 2, 3]}, "bbox is .1, 2, 3., not"),
        ({"bbox": [1, 2, None, 4]}, "bbox is None, not a finite number"),
    ],
)
def test_values_of_another_kind_are_said_in_our_words(change: dict, message: str) -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": np.float32(0.5)}
    assert sound_rows([row], KNOWN)[0].get("score") == 0.5
    with pytest.raises(DataError, match=f"row 1 of 1: {message}"):
        sound_rows([row | change], KNOWN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and more", "is a zip archive, not JSON; unpack it"),
        (b"\x1f\x8b\x08", "is packed by gzip, not JSON; unpack it"),
        (b'{"image_id": 1}\n{"image_id": 2}\n', "not JSON .*; make one list of its lines, as a COCO results file"),
        (b'{"annotations": []}', "is a list of rows, this is an object; write the list 'annotations'"),
        (b'{"images": [], "annotations": []}', "it looks like ground truth"),
        (b"7", "is a list of rows, this is a number$"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "found.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_in(read_json(file), file, KNOWN, ())


@pytest.mark.parametrize("corners", [True, False])
def test_corners_in_the_place_of_sizes_are_logged(caplog: pytest.LogCaptureFixture, corners: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(0, 60, (12, 2))).T, np.sort(rng.uniform(0, 40, (12, 2))).T
    boxes = np.stack([x[0], y[0], x[1], y[1]] if corners else [x[0], y[0], x[1] - x[0], y[1] - y[0]], 1).tolist()
    rows = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1} for box in boxes]
    rows_in(rows, Path("found.json"), Known({1: (40, 60)}, (1,)), ("score",))
    assert ("found.json: the boxes are all but surely x1, y1, x2, y2" in caplog.text) == corners


def test_names_in_two_forms_of_unicode_are_one_class(caplog: pytest.LogCaptureFixture) -> None:
    data = replace(shapes_dataset(1, size=(64, 64)), records=[], categories=Categories.of(["cafe\u0301"]))
    assert shared_classes(Categories.of(["caf\u00e9"]), data)[0] == {1: 1}
    assert "is taken for the model's" in caplog.text


def test_classes_that_the_model_lacks_are_said(caplog: pytest.LogCaptureFixture) -> None:
    data = shapes_dataset(6, size=(64, 64))
    shared_classes(data.categories, data)
    assert not caplog.records
    shared_classes(Categories.of(["disc", "star"]), data)
    assert "the model does not know ring, square, pair; only the other classes are measured" in caplog.text


def test_scores_of_another_range_are_kept_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": score} for score in (0, 1)]
    rows_in(rows, Path("found.json"), KNOWN, ("score",))
    assert not caplog.records
    assert rows_in([*rows, {**rows[0], "score": 57}], Path("found.json"), KNOWN, ("score",))[2].get("score") == 57
    assert "scores that are not between 0 and 1" in caplog.text
