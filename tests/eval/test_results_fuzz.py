"""Results files of any content are rows or one clear error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, Record
from maskkit.errors import DataError
from maskkit.eval.task import TASKS
from maskkit.prediction import Categories
from tests.data.written import JSON, places, spoil

SQUARE = [5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]
ROWS: list[dict[str, Any]] = [
    {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [5, 5, 20, 20], "segmentation": [SQUARE]},
    {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [48, 64], "counts": [10, 20, 3042]}},
]
NUMBERS = st.sampled_from([2**31, 2**63, 2**64, 2**70, 10**309, 10**400, -(2**70), 1e308, float("inf"), float("nan")])


def data() -> Dataset:
    objects = [Annotation(1, 0, (5, 5, 25, 25), [SQUARE])]
    return Dataset([Record(1, Path("1.png"), (48, 64), objects)], Categories.of(["bolt"]), Path("truth.json"), "test")


def measured(file: Path, name: str) -> None:
    """Read and measure a file. Raises `DataError` alone."""
    task, truth = TASKS[name], data()
    task.evaluate(task.read_results(file, truth), truth)


@given(drawn=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_one_value_is_a_results_file_is_measured_or_refused(tmp_path: Path, drawn: st.DataObject) -> None:
    place = drawn.draw(st.sampled_from(places(ROWS)))
    (tmp_path / "results.json").write_text(json.dumps(spoil(ROWS, place, drawn.draw(NUMBERS | JSON))))
    for name in ("instance", "panoptic"):
        message = ""
        try:
            measured(tmp_path / "results.json", name)
        except DataError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 600


@pytest.mark.parametrize("depth", [200, 900, 5000, 100_000])
@pytest.mark.parametrize("start", ["", '[{"image_id": 1, "category_id": 1, "score": 1, "segmentation": '])
def test_deep_files_are_refused(tmp_path: Path, depth: int, start: str) -> None:
    end = "}]" if start else ""
    (tmp_path / "results.json").write_text(start + "[" * depth + "]" * depth + end)
    for name in ("instance", "panoptic"):
        with pytest.raises(DataError) as caught:
            measured(tmp_path / "results.json", name)
        assert str(caught.value).startswith(str(tmp_path / "results.json"))
        assert len(str(caught.value)) < 600
