"""Average precision against pycocotools, and what happens to rows that are no good."""

import copy
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from maskkit.errors import DataError
from maskkit.eval.instance.files import read_results
from maskkit.eval.instance.metric import KINDS, evaluate
from maskkit.eval.numbers import rank
from tests.eval.cases import annotation, detection, drawn, official, rectangle, text_rle, truth_of
from tests.eval.cases import numbers as plain

ONE = pytest.approx(1, abs=1e-15)
"""pycocotools adds an epsilon to the number of detections."""
STANDARD = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def assert_official(rows: list[dict[str, Any]], truth: dict[str, Any]) -> None:
    before = copy.deepcopy((rows, truth))
    result = evaluate(rows, truth, KINDS)
    assert (rows, truth) == before
    for kind in KINDS:
        numbers = result.bbox if kind == "bbox" else result.segm
        theirs = official(rows, truth, kind)
        assert numbers is not None
        assert list(numbers) == STANDARD
        np.testing.assert_array_equal(plain(numbers), theirs.stats)
        np.testing.assert_array_equal(result.precision[kind], theirs.eval["precision"][..., 0, -1])
        np.testing.assert_array_equal(result.recall[kind], theirs.eval["recall"][..., 0, -1])


@pytest.mark.parametrize("seed", range(4))
def test_drawn_images_have_the_numbers_of_pycocotools(seed):
    rows, truth = drawn(seed)
    assert_official(rows, truth)
    result = evaluate(rows, truth)
    assert result.segm is not None
    assert 0.1 < rank(result.segm["AP"]) < 0.9


def test_rows_without_boxes_have_the_numbers_of_pycocotools():
    rows, truth = drawn(5)
    assert_official([{k: v for k, v in row.items() if k != "bbox"} for row in rows], truth)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Few small images with many coincidences: equal masks, equal scores, crowds, empty masks, boxes of size 0."""
    side = draw(st.sampled_from([8, 40, 120]))
    size = (side, side)
    coordinate = st.integers(0, 3).map(lambda v: v * side // 4)
    shapes = draw(st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4))
    masks = [rectangle(size, *shape) for shape in shapes]
    images = draw(st.integers(1, 3))
    where = st.tuples(st.integers(1, images), st.integers(1, 3), st.integers(0, len(masks) - 1))
    annotations = [
        annotation(i, label, masks[m], crowd)
        for (i, label, m), crowd in draw(st.lists(st.tuples(where, st.sampled_from([False, False, True])), max_size=8))
        if masks[m].any()
    ]
    scores = st.sampled_from([0.0, 0.3, 0.3 + 1e-12, 0.9, 1.0])
    rows = [
        detection(i, label, masks[m], score)
        for (i, label, m), score in draw(st.lists(st.tuples(where, scores), max_size=12))
    ]
    truth = truth_of(dict.fromkeys(range(1, images + 1), size), annotations, {1: "a", 2: "b", 3: "never seen"})
    return rows, truth


@settings(max_examples=60)
@given(cases())
def test_made_cases_have_the_numbers_of_pycocotools(case):
    assert_official(*case)


def test_more_than_a_hundred_detections_in_a_image():
    rng = np.random.default_rng(0)
    size = (64, 64)
    shapes = [rectangle(size, *rng.integers(0, 30, 2), *rng.integers(4, 30, 2)) for _ in range(130)]
    rows = [detection(1, 1, mask, round(float(rng.random()), 1)) for mask in shapes]  # ties across the limit
    truth = truth_of({1: size}, [annotation(1, 1, mask) for mask in shapes[::3]], {1: "a"})
    assert_official(rows, truth)
    few = evaluate(rows, truth, max_dets=(1, 5))
    assert list(few.main)[6:8] == ["AR1", "AR5"]
    assert rank(few.main["AR5"]) <= 5 / len(shapes[::3])


def test_nothing_found_is_zero_and_nothing_to_find_is_none():
    _, truth = drawn(0)
    assert_official([], truth)
    assert evaluate([], truth).main["AP"] == 0
    nothing = {**truth, "annotations": []}
    rows, _ = drawn(0)
    assert_official(rows, nothing)
    result = evaluate([], nothing)
    assert set(result.main.values()) == {None}
    assert {c["segm_AP"] for c in result.per_class.values()} == {None}


def square(x: int) -> np.ndarray:
    return rectangle((40, 40), x, 5, 10, 10)


def test_classes_are_measured_one_by_one():
    truth = truth_of(
        {1: (40, 40)},
        [annotation(1, 5, square(0)), annotation(1, 9, square(20)), annotation(1, 9, square(0), crowd=True)],
        {9: "dog", 5: "cat", 6: "dog"},
    )
    result = evaluate([detection(1, 5, square(0), 0.9), detection(1, 6, square(20), 0.9)], truth)
    assert {name: c["objects"] for name, c in result.per_class.items()} == {"cat": 1, "dog (6)": 0, "dog (9)": 1}
    assert {name: c["bbox_AP"] for name, c in result.per_class.items()} == {"cat": ONE, "dog (6)": None, "dog (9)": 0}
    assert result.per_class["cat"]["segm_AP50"] == ONE
    assert result.main["AP"] == pytest.approx(0.5)


def test_mask_scores_rank_masks_alone():
    truth = truth_of({1: (40, 40)}, [annotation(1, 1, square(0))], {1: "a"})
    rows = [detection(1, 1, square(0), 0.9), detection(1, 1, square(25), 0.8)]
    rows[0]["mask_score"], rows[1]["mask_score"] = 0.1, 0.7
    result = evaluate(rows, truth)
    assert result.bbox is not None
    assert result.segm is not None
    assert result.bbox["AP"] == ONE
    assert result.segm["AP"] == pytest.approx(0.5)  # the wrong mask comes first


def test_incomplete_ground_truth_is_completed():
    rows, truth = drawn(1)
    expected = evaluate(rows, truth).to_json()
    bare = copy.deepcopy(truth)
    for number, record in enumerate(bare["annotations"]):
        record["id"] = number  # from 0, which pycocotools takes for unmatched
        del record["bbox"], record["area"]
        if not record["iscrowd"]:
            del record["iscrowd"]
    assert evaluate(rows, bare).to_json() == expected


def test_polygons_and_plain_counts_are_masks_too():
    polygon = [5, 5, 5, 15, 15, 15, 15, 5]
    mask = rectangle((40, 40), 5, 5, 10, 10)
    record = annotation(1, 1, mask)
    flat = mask.flatten(order="F")
    counts = np.diff(np.array([0, *np.flatnonzero(np.diff(flat, prepend=False)), flat.size])).tolist()
    truth = truth_of({1: (40, 40)}, [{**record, "segmentation": [polygon]}], {1: "a"})
    for shape in ([polygon], {"size": [40, 40], "counts": counts}, text_rle(mask)):
        row = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": shape}
        assert evaluate([row], truth).main["AP"] == ONE


def test_objects_without_a_mask_are_ignored_among_masks():
    known, unknown = annotation(1, 1, square(0)), annotation(1, 1, square(20))
    del unknown["segmentation"]
    truth = truth_of({1: (40, 40)}, [unknown, known], {1: "a"})
    rows = [detection(1, 1, square(20), 0.9), detection(1, 1, square(0), 0.5)]
    result = evaluate(rows, truth)
    assert result.segm is not None
    assert result.segm["AP"] == ONE  # what lies in the box of the unknown one is not false
    assert evaluate(rows[1:], truth).main["AR1"] == ONE  # and it is not missed
    assert result.bbox is not None
    assert result.bbox["AR1"] == 0.5


def test_boxes_alone_are_measured_as_boxes():
    truth = truth_of({1: (40, 40)}, [annotation(1, 1, square(0))], {1: "a"})
    row = detection(1, 1, square(0), 0.5)
    del row["segmentation"]
    result = evaluate([row], truth)
    assert result.segm is None
    assert result.kind == "bbox"
    assert result.main["AP"] == ONE
    with pytest.raises(DataError, match="row 1 of 1: has no segmentation"):
        evaluate([row], truth, ["segm"])
    boxes_only = copy.deepcopy(truth)
    del boxes_only["annotations"][0]["segmentation"]
    assert evaluate([detection(1, 1, square(0), 0.5)], boxes_only).segm is None
    with pytest.raises(DataError, match="boxes only"):
        evaluate([detection(1, 1, square(0), 0.5)], boxes_only, ["segm"])


def test_the_result_can_be_shown_and_kept(tmp_path):
    rows, truth = drawn(2)
    result = evaluate(rows, truth)
    result.save(tmp_path / "metrics.json")
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept == result.to_json()
    assert kept["segm"]["AP"] == result.main["AP"]
    console = Console(width=80, file=io.StringIO())
    console.print(result.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{result.main['AP']:.3f}" in shown
    assert "…" not in shown
    assert all(name in shown for name in STANDARD)


TRUTH = truth_of({1: (40, 40), 2: (20, 30)}, [annotation(1, 1, square(0))], {1: "a"})
GOOD = detection(1, 1, square(0), 0.5)
BAD_ROWS = {
    "image_id 77 is not in the ground truth": {**GOOD, "image_id": 77},
    "category_id 4 is not in the ground truth": {**GOOD, "category_id": 4},
    "has no score": {k: v for k, v in GOOD.items() if k != "score"},
    "has no image_id and no category_id": {"score": 1, "bbox": [0, 0, 1, 1]},
    "neither a bbox nor a segmentation": {"image_id": 1, "category_id": 1, "score": 0.5},
    "score is nan": {**GOOD, "score": float("nan")},
    "score is '0.9'": {**GOOD, "score": "0.9"},
    "bbox is \\[1, 2, 3\\]": {**GOOD, "bbox": [1, 2, 3]},
    "bbox is inf": {**GOOD, "bbox": [1, 2, float("inf"), 3]},
    "size \\[40, 40\\], the image \\[20, 30\\]": {**GOOD, "image_id": 2},
    "run lengths add up": {**GOOD, "segmentation": {"size": [40, 40], "counts": "05"}},
    "compressed run lengths": {**GOOD, "segmentation": {"size": [40, 40], "counts": "not counts!"}},
    "a polygon": {**GOOD, "segmentation": [[1, 1, 5, 5]]},
    "neither a list of polygons": {**GOOD, "segmentation": {"counts": "05"}},
    "an object with image_id": ["not", "a", "row"],
}


@pytest.mark.parametrize(("message", "row"), BAD_ROWS.items(), ids=[m[:24] for m in BAD_ROWS])
def test_bad_rows_are_named(message, row, tmp_path):
    with pytest.raises(DataError, match=f"predictions, row 2 of 2: .*{message}"):
        evaluate([GOOD, row], TRUTH)
    path = tmp_path / "found.json"
    path.write_text(json.dumps([GOOD, row]))
    with pytest.raises(DataError, match=f"found.json, row 2 of 2: .*{message}"):
        read_results(path, TRUTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"{}", "a list of rows"), (b"7", "a list of rows")],
)
def test_files_that_are_no_results_are_named(content, message, tmp_path):
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"found.json: .*{message}"):
        read_results(path, TRUTH)


def test_ground_truth_is_not_taken_for_results(tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(TRUTH))
    with pytest.raises(DataError, match="looks like ground truth"):
        read_results(path, TRUTH)
    with pytest.raises(DataError, match=r"gone\.json: there is no such file"):
        read_results(tmp_path / "gone.json", TRUTH)


def test_results_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "found.json"
    for rows in ([], [GOOD]):
        path.write_text(json.dumps(rows))
        assert read_results(path, TRUTH) == rows


def test_ground_truth_without_categories_or_with_unknown_images_is_refused():
    with pytest.raises(DataError, match="no categories"):
        evaluate([], {**TRUTH, "categories": []})
    stray = copy.deepcopy(TRUTH)
    stray["annotations"][0]["image_id"] = 99
    with pytest.raises(DataError, match="ground truth, annotation 1: image_id 99"):
        evaluate([], stray)


@pytest.mark.parametrize(
    ("images", "classes"),
    [
        ((1790000000000000001, 1790000000000000002), (1, 2)),
        ((1, 2), (2**53 + 1, 2**53 + 2)),
        ((-1, -2), (1, 2)),
        ((2**70, 2**70 + 1), (-(2**70), 5)),
    ],
)
def test_ids_of_any_size_stay_apart(images: tuple[int, int], classes: tuple[int, int]) -> None:
    """faster-coco-eval keeps ids as doubles: beyond 2^53 images and classes were mixed up."""
    box = [2.0, 5.0, 15.0, 20.0]
    truth = {
        "images": [{"id": i, "height": 48, "width": 64} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in classes],
        "annotations": [{"id": 1, "image_id": images[0], "category_id": classes[0], "bbox": box}],
    }

    def ap(image: int, category: int) -> float:
        row = {"image_id": image, "category_id": category, "bbox": box, "score": 0.9}
        found = evaluate([row], truth)
        assert found.bbox is not None
        return rank(found.bbox["AP"])

    assert ap(images[0], classes[0]) == ONE
    assert ap(images[1], classes[0]) == 0
    assert ap(images[0], classes[1]) == 0


def test_a_row_without_a_mask_among_others_is_named_with_its_file(tmp_path):
    shape = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
    truth = {
        "images": [{"id": 1, "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "segmentation": shape}],
    }
    boxed = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.5}
    path = tmp_path / "found.json"
    for rows in ([boxed, boxed], [boxed | {"segmentation": shape}] * 2):
        path.write_text(json.dumps(rows))
        assert len(read_results(path, truth)) == 2
    path.write_text(json.dumps([boxed | {"segmentation": shape}, boxed]))
    with pytest.raises(DataError, match=r"found\.json, row 2 of 2: has no segmentation, as others have"):
        read_results(path, truth)
    del truth["annotations"][0]["segmentation"]
    assert len(read_results(path, truth)) == 2, "boxes alone are measured"
