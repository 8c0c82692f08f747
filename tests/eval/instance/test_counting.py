"""hotcoco counts as pycocotools does, bit for bit; the fallback up to the last bits."""

import sys
from collections.abc import Callable

import numpy as np
import pytest

from maskkit.eval.instance import counting
from maskkit.eval.instance.metric import KINDS, evaluate
from tests.eval.cases import annotation, detection, drawn, numbers, official, rectangle, truth_of

LIBRARIES = {counting.hotcoco: 0, counting.faster_coco_eval: 1e-15}


def crowded() -> tuple[list, dict]:
    """More detections than any limit, with equal scores, on one object in three, and a crowd over all of them."""
    rng = np.random.default_rng(0)
    size = (64, 64)
    shapes = [rectangle(size, *rng.integers(0, 30, 2), *rng.integers(4, 30, 2)) for _ in range(130)]
    rows = [detection(1, 1, mask, round(float(rng.random()), 1)) for mask in shapes]
    objects = [annotation(1, 1, mask) for mask in shapes[::3]]
    crowd = annotation(1, 1, rectangle(size, 10, 10, 40, 40), crowd=True)
    return rows, truth_of({1: size, 2: size}, [*objects, crowd], {1: "a", 2: "never seen"})


@pytest.mark.parametrize(("build", "apart"), LIBRARIES.items(), ids=[build.__name__ for build in LIBRARIES])
@pytest.mark.parametrize("case", [*range(3), "crowded"])
def test_counts_are_those_of_pycocotools(
    build: Callable[[], counting.Library], apart: float, case: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, truth = drawn(case, images=12) if isinstance(case, int) else crowded()
    counted = {}

    def count(sides, kind, limits):
        counted[kind] = counting.count(sides, kind, limits)
        return counted[kind]

    monkeypatch.setattr(counting, "fastest", build)
    monkeypatch.setattr("maskkit.eval.instance.metric.count", count)
    result = evaluate(rows, truth, KINDS)
    for kind in KINDS:
        theirs = official(rows, truth, kind)
        np.testing.assert_allclose(counted[kind].precision, theirs.eval["precision"], rtol=0, atol=apart)
        np.testing.assert_allclose(counted[kind].recall, theirs.eval["recall"], rtol=0, atol=apart)
        summary = numbers((result.bbox if kind == "bbox" else result.segm) or {})
        np.testing.assert_allclose(summary, theirs.stats, rtol=0, atol=apart)


def test_the_fallback_counts_where_hotcoco_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counting.fastest().name == "hotcoco"
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert counting.fastest.__wrapped__().name == "faster-coco-eval"
