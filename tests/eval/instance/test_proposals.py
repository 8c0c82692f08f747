"""Class-agnostic proposals: every object is of one class, and recall is measured at 10, 100 and 1000."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskkit.data.shapes import shapes_dataset
from maskkit.eval.instance.metric import evaluate
from maskkit.eval.numbers import rank
from maskkit.eval.task import TASKS
from tests.eval.cases import detection


def test_every_object_is_of_one_class() -> None:
    data = shapes_dataset(3, seed=5, size=(64, 64), objects=(3, 5))
    seen = TASKS["proposals"].view(data)
    assert seen.categories.names == ("object",)
    assert {a.label for r in seen.records for a in r.annotations} == {0}
    assert sum(len(r.annotations) for r in seen.records) == sum(len(r.annotations) for r in data.records)
    assert len({a.label for r in data.records for a in r.annotations}) > 1, "the data themselves stay what they are"
    assert set(seen.load(0)[1].labels.tolist()) == {0}


def test_recall_is_that_of_pycocotools() -> None:
    """Many proposals, best first as drawn, most of them pieces of objects."""
    data = TASKS["proposals"].view(shapes_dataset(3, seed=7, size=(96, 96), objects=(6, 9)))
    truth = data.coco()
    rng, rows = np.random.default_rng(0), []
    for i, record in enumerate(data.records):
        masks = data.load(i)[1].masks
        assert masks is not None
        dense = masks.dense().numpy()
        for _ in range(400):
            mask = dense[rng.integers(len(dense))].copy()
            mask[: rng.integers(0, 60)] = False
            mask[:, : rng.integers(0, 60)] = False
            if mask.any():
                rows.append(detection(record.image_id, 1, mask, float(rng.random())))
    result = TASKS["proposals"].evaluate(rows, data)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth  # type: ignore[assignment]
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(rows), "segm")  # type: ignore[arg-type]
        judge.params.maxDets = [10, 100, 1000]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = ("AR10", "AR100", "AR1000")
    assert [result.main[n] for n in names] == pytest.approx(judge.stats[6:9].tolist(), abs=1e-9)
    few, some, many = (rank(result.main[n]) for n in names)
    assert few < some < many, "the limits matter here"
    precision = judge.eval["precision"][..., 0, -1]
    assert result.main["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    assert next(iter(result.metrics)) == "AR100"
    assert evaluate(rows, truth).main["AR100"] == result.main["AR100"]
