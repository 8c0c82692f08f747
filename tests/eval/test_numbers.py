"""Metrics as numbers and as text: one unit, and nothing that was not measured is shown as a number."""

import json
from pathlib import Path

import numpy as np
import pytest

from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE, LabelFile
from maskkit.data.records import Record
from maskkit.eval.numbers import known, mean, rank, shown
from maskkit.eval.task import TASKS
from maskkit.prediction import Categories


def test_shares_have_three_digits_and_what_is_missing_has_none() -> None:
    assert [shown(v) for v in (0.8534, 1, 0, None, -1, float("nan"))] == [
        "0.853",
        "1.000",
        "0.000",
        "n/a",
        "n/a",
        "n/a",
    ]
    assert (known(-1.0), known(0.0)) == (None, 0.0)
    assert mean(np.array([-1.0, 0.5, 1.0])) == 0.75
    assert mean(np.array([-1.0])) is None
    assert sorted([0.5, None, 0.0], key=rank) == [None, 0.0, 0.5]


@pytest.mark.parametrize("name", ["instance", "detection", "proposals", "panoptic"])
def test_nothing_to_measure_is_null_in_files_and_not_a_number_in_tables(name: str, tmp_path: Path) -> None:
    data = Dataset([Record(1, tmp_path / "1.png", (8, 8), [])], Categories.of(["cat"]), tmp_path, "test")
    check(TASKS[name].evaluate([], data), tmp_path)


def test_the_same_of_label_maps(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8), IGNORE, np.uint8)).save(tmp_path / "map.png")
    source = LabelFile(tmp_path / "map.png", {0: 0, IGNORE: IGNORE})
    record = Record(1, tmp_path / "1.png", (8, 8), [], source)
    check(TASKS["semantic"].evaluate([], Dataset([record], Categories.of(["cat"]), tmp_path, "test")), tmp_path)


def check(result, folder: Path) -> None:
    """Nothing was measured, and nothing says -1."""
    assert set(result.metrics.values()) == {None}
    result.save(folder / "metrics.json")
    text = (folder / "metrics.json").read_text()
    assert "-1" not in text
    assert "null" in text
    assert json.loads(text) == json.loads(json.dumps(result.to_json()))
    cells = [str(cell) for column in result.table().columns for cell in column.cells]
    assert "n/a" in cells
    assert not any("-1" in cell for cell in cells)
