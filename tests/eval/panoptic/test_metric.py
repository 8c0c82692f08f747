"""Panoptic quality: worked by hand, as a plain loop over segments, and as torchmetrics computes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, Record
from maskkit.errors import DataError
from maskkit.eval.panoptic.metric import PanopticResult, evaluate
from maskkit.eval.panoptic.report import write_report
from maskkit.eval.task import TASKS
from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories
from tests.data.written import write_image

NAMES = Categories.of(["cat", "dog"], stuff=["sky"])
CAT, DOG, SKY = range(3)

Segments = list[tuple[int, bool]]
"""Class number and crowd flag of the segments 1, 2, ... of an image."""


def dataset(images: list[tuple[np.ndarray, Segments]], folder: Path = Path()) -> Dataset:
    records = []
    for number, (ids, segments) in enumerate(images, 1):
        masks = [mask_math.encode((ids == i)[None])[0] for i in range(1, len(segments) + 1)]
        numbered = enumerate(zip(segments, masks, strict=True))
        objects = [Annotation(i, label, None, rle, crowd) for i, ((label, crowd), rle) in numbered]
        records.append(Record(number, folder / f"{number}.png", ids.shape, objects))
    return Dataset(records, NAMES, Path("drawn"), "drawn")


def rows(images: list[tuple[np.ndarray, list[int]]]) -> list[dict[str, Any]]:
    """Found segments 1, 2, ... of the classes given."""
    return [
        {"image_id": number, "category_id": NAMES.ids[label], "segmentation": mask_math.encode((ids == i)[None])[0]}
        for number, (ids, labels) in enumerate(images, 1)
        for i, label in enumerate(labels, 1)
    ]


def measure(truth: np.ndarray, segments: Segments, found: np.ndarray, labels: list[int]) -> PanopticResult:
    return evaluate(rows([(found, labels)]), dataset([(truth, segments)]))


def line(*parts: tuple[int, int]) -> np.ndarray:
    """An image of one row: runs of a number."""
    return np.repeat([n for n, _ in parts], [length for _, length in parts])[None]


def counts(result: PanopticResult) -> dict[str, tuple[int, int, int]]:
    """Hits, false and missed ones of the classes that have any."""
    table = np.stack([result.hit, result.false, result.missed], 1)
    return {name: tuple(row) for name, row in zip(result.names, table.tolist(), strict=True) if any(row)}


def test_worked_by_hand() -> None:
    """Two cats of 10 pixels and a sky of 20: the first cat is found with 8 of its pixels, the second is taken for a
    dog, the sky with 18 and the rest of the first cat."""
    truth = line((1, 10), (2, 10), (3, 20))
    found = line((1, 8), (3, 2), (2, 10), (0, 2), (3, 18))
    result = measure(truth, [(CAT, False), (CAT, False), (SKY, False)], found, [CAT, DOG, SKY])
    assert counts(result) == {"cat": (1, 0, 1), "dog": (0, 1, 0), "sky": (1, 0, 0)}
    sky = 18 / 22
    expected = [[0.8 / 1.5, 0.8, 1 / 1.5], [0, 0, 0], [sky, sky, 1]]
    assert result.qualities == pytest.approx(np.array(expected))
    main = result.main
    assert main["PQ"] == pytest.approx((0.8 / 1.5 + sky) / 3)
    assert main["SQ_things"] == pytest.approx(0.4)
    assert main["RQ_stuff"] == pytest.approx(1)


def test_half_is_no_hit() -> None:
    half = measure(line((1, 10), (2, 5)), [(CAT, False), (SKY, False)], line((1, 5), (0, 10)), [CAT])
    assert counts(half) == {"cat": (0, 1, 1), "sky": (0, 0, 1)}
    more = measure(line((1, 10), (2, 5)), [(CAT, False), (SKY, False)], line((1, 6), (0, 9)), [CAT])
    assert counts(more) == {"cat": (1, 0, 0), "sky": (0, 0, 1)}


def test_void_is_taken_out_of_the_union() -> None:
    result = measure(line((1, 6), (0, 6)), [(CAT, False)], line((1, 12)), [CAT])
    assert counts(result) == {"cat": (1, 0, 0)}
    assert result.main["PQ"] == 1


@pytest.mark.parametrize(("void", "false"), [(5, 1), (6, 0)])
def test_what_lies_mostly_on_void_is_not_false(void: int, false: int) -> None:
    truth = line((1, 10 - void), (0, void), (1, 20))
    result = measure(truth, [(CAT, False)], line((1, 10), (0, 20)), [DOG])
    assert (result.false == [0, false, 0]).all()


def test_a_crowd_excuses_its_own_class_only() -> None:
    truth = line((1, 10), (2, 10))
    found = line((1, 7), (0, 3), (2, 7), (0, 3))
    result = measure(truth, [(CAT, True), (CAT, False)], found, [CAT, CAT])
    assert counts(result) == {"cat": (1, 0, 0)}
    other = measure(truth, [(CAT, True), (CAT, False)], found, [DOG, CAT])
    assert counts(other) == {"cat": (1, 0, 0), "dog": (0, 1, 0)}
    nothing = measure(truth, [(CAT, True), (CAT, False)], np.zeros((1, 20), int), [])
    assert counts(nothing) == {"cat": (0, 0, 1)}


def test_void_and_crowd_add_up() -> None:
    truth = line((1, 3), (0, 3), (2, 4))
    found = line((1, 10))
    assert counts(measure(truth, [(CAT, True), (SKY, False)], found, [CAT])) == {"sky": (0, 0, 1)}


def test_classes_that_do_not_occur_count_nowhere() -> None:
    result = measure(line((1, 4)), [(CAT, False)], line((1, 4)), [CAT])
    assert result.main == {name: 1.0 if "stuff" not in name else None for name in result.main}
    assert result.per_class["sky"]["PQ"] is None
    assert "n/a" in str([cell for column in result.table().columns for cell in column.cells])


def test_objects_that_overlap_are_painted_small_on_large() -> None:
    """Masks of an instances file: the hidden part of the larger one is not asked for."""
    large, small = (mask_math.encode(line(*runs).astype(bool)[None])[0] for runs in (((1, 10),), ((0, 6), (1, 4))))
    record = Record(1, Path("1.png"), (1, 10), [Annotation(1, CAT, None, small), Annotation(2, DOG, None, large)])
    truth = Dataset([record], NAMES, Path("drawn"), "drawn")
    assert evaluate(rows([(line((1, 6), (2, 4)), [DOG, CAT])]), truth).main["PQ"] == 1


def test_unusable_rows_and_data() -> None:
    truth = dataset([(line((1, 4)), [(CAT, False)])])
    good = rows([(line((1, 4)), [CAT])])
    with pytest.raises(DataError, match="claim the same pixel"):
        evaluate(good * 2, truth)
    with pytest.raises(DataError, match="image_id 9 is not in the ground truth"):
        evaluate([good[0] | {"image_id": 9}], truth)
    with pytest.raises(DataError, match="category_id 9 is not in the ground truth"):
        evaluate([good[0] | {"category_id": 9}], truth)
    boxes = Dataset([Record(1, Path("1.png"), (1, 4), [Annotation(1, 0, (0, 0, 2, 1))])], NAMES, Path("d"), "drawn")
    with pytest.raises(DataError, match="requires all masks"):
        evaluate([], boxes)


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, Segments, np.ndarray, list[int]]:
    """Truth and prediction of an image: random blocks, of which some keep their place and class in the prediction."""
    cells = rng.integers(0, 6, (6, 7))
    truth = np.kron(cells, np.ones((3, 3), int))
    found = np.where(rng.random(truth.shape) < rng.random() * 0.8, np.roll(truth, rng.integers(-2, 3), 1), truth)
    found[rng.random(truth.shape) < 0.05] = 6
    labels, crowd = rng.integers(0, 3, 5), rng.random(5) < 0.25
    guess = np.where(rng.random(6) < 0.7, np.append(labels, 0), rng.integers(0, 3, 6))
    return *compact(truth, list(zip(labels.tolist(), crowd.tolist(), strict=True))), *compact(found, guess.tolist())


def compact(ids: np.ndarray, labels: list[Any]) -> tuple[np.ndarray, list[Any]]:
    """Numbers 1, 2, ... for those that occur."""
    values, where = np.unique(np.append(0, ids), return_inverse=True)
    return where[1:].reshape(ids.shape), [labels[v - 1] for v in values[1:].tolist()]


def one_by_one(images: list[tuple[np.ndarray, Segments, np.ndarray, list[int]]]) -> dict[int, list[float]]:
    """The protocol of panopticapi, segment by segment: IoU, hits, false and missed ones of each class."""
    table: dict[int, list[float]] = {label: [0.0, 0, 0, 0] for label in range(3)}
    for truth, segments, found, labels in images:
        hit_truth, hit_found = set(), set()
        for t, (label, crowd) in enumerate(segments, 1):
            for f, guess in enumerate(labels, 1):
                both = ((truth == t) & (found == f)).sum()
                either = (((truth == t) | (found == f)) & ~((truth == 0) & (found == f))).sum()
                if label == guess and not crowd and both / either > 0.5:
                    table[label][0] += both / either
                    table[label][1] += 1
                    hit_truth.add(t)
                    hit_found.add(f)
        crowds = {}
        for t, (label, crowd) in enumerate(segments, 1):
            if crowd:
                crowds[label] = t
            elif t not in hit_truth:
                table[label][3] += 1
        for f, guess in enumerate(labels, 1):
            inside = found == f
            excused = (truth[inside] == 0).sum()
            if guess in crowds:
                excused += (truth[inside] == crowds[guess]).sum()
            if f not in hit_found and excused / inside.sum() <= 0.5:
                table[guess][2] += 1
    return table


def check_one_by_one(images: list[tuple[np.ndarray, Segments, np.ndarray, list[int]]]) -> PanopticResult:
    result = evaluate(rows([(f, g) for *_, f, g in images]), dataset([(t, s) for t, s, *_ in images]))
    expected = np.array(list(one_by_one(images).values()))
    assert result.iou == pytest.approx(expected[:, 0])
    assert np.array_equal(np.stack([result.hit, result.false, result.missed], 1), expected[:, 1:])
    return result


def test_equals_a_loop_over_the_segments() -> None:
    rng = np.random.default_rng(0)
    result = check_one_by_one([drawn(rng) for _ in range(40)])
    assert min(result.hit.min(), result.false.min(), result.missed.min()) > 5, "every rule was in use"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None, database=None)
def test_invariants(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, segments, found, labels = drawn(rng)
    result = check_one_by_one([(truth, segments, found, labels)])
    pq, sq, rq = result.qualities.T
    assert (pq <= 1).all()
    assert pq[pq >= 0] == pytest.approx((sq * rq)[pq >= 0]), "PQ = SQ RQ"
    assert ((sq == 0) | (sq > 0.5) | (sq == -1)).all()
    of_things = sum(not crowd for _, crowd in segments)
    assert result.hit.sum() + result.missed.sum() == of_things
    assert result.hit.sum() + result.false.sum() <= len(labels)
    mirrored = measure(truth[:, ::-1], segments, found[:, ::-1], labels)
    assert np.array_equal(mirrored.qualities, result.qualities)
    crowds = 1 + np.flatnonzero([crowd for _, crowd in segments])
    everything = compact(np.where(np.isin(truth, crowds), 0, truth), [label for label, _ in segments])
    perfect = measure(truth, segments, *everything)
    assert set(perfect.qualities.ravel().tolist()) <= {-1.0, 1.0}


def test_equals_torchmetrics() -> None:
    """Which knows no crowds, ignores what is predicted as void, and takes all of a stuff class as one segment."""
    torchmetrics = pytest.importorskip("torchmetrics.functional.detection")
    rng = np.random.default_rng(1)
    images, theirs = [], []
    void, nothing = 9, 3  # of the truth; of the prediction, a class of its own, for these pixels are wrong
    while len(images) < 12:
        truth, segments, found, labels = drawn(rng)
        segments = [(label, False) for label, _ in segments]
        if max([label for label, _ in segments].count(SKY), labels.count(SKY)) > 1:
            continue
        images.append((truth, segments, found, labels))
        pair = []
        for ids, classes, none in ((found, labels, nothing), (truth, [label for label, _ in segments], void)):
            of = np.array([none, *classes])[ids]
            pair.append(torch.from_numpy(np.stack([of, np.where(of == SKY, 0, ids)], -1)))  # (H, W, 2)
        theirs.append(pair)
    ours = evaluate(rows([(f, g) for *_, f, g in images]), dataset([(t, s) for t, s, *_ in images]))
    predictions, truths = (torch.stack(side) for side in zip(*theirs, strict=True))
    official = torchmetrics.panoptic_quality(
        predictions, truths, {CAT, DOG, nothing}, {SKY}, True, return_sq_and_rq=True, return_per_class=True
    )
    order = [0, 1, 3]  # things come first there, ``nothing`` is the third
    assert ours.qualities == pytest.approx(official.reshape(4, 3)[order].numpy(), abs=1e-6)


def test_the_task(tmp_path: Path) -> None:
    """Table, json and report of one result."""
    rng = np.random.default_rng(2)
    images = [drawn(rng) for _ in range(3)]
    for number in (1, 2, 3):
        write_image(tmp_path / f"{number}.png", number, images[0][0].shape)
    truth, found = dataset([(t, s) for t, s, *_ in images], tmp_path), rows([(f, g) for *_, f, g in images])
    result = TASKS["panoptic"].evaluate(found, truth)
    assert next(iter(result.metrics)) == "PQ"
    result.save(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["panoptic"] == result.main
    assert set(content["per_class"]) == set(NAMES.names)
    assert result.table().row_count == 3 + len(NAMES)
    write_report(tmp_path / "report.html", result, found, truth, "drawn", ["a note"])  # type: ignore[arg-type]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 3
    assert "a note" in page
