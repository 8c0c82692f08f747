"""Mutated results files of every task end in metrics or in one error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maskkit.data import open_dataset
from maskkit.eval.task import TASKS
from maskkit.geometry import rle
from tests.data.formats import samples
from tests.fuzz import outcomes
from tests.thorough import of

MANY = of(2000)
SIZE = samples.SIZE


def _row(image: int, category: int, counts: list[int]) -> dict:
    text = rle.to_text(rle.from_counts(counts, SIZE))
    return {
        "image_id": image,
        "category_id": category,
        "score": 0.5,
        "bbox": [2.0, 2, 7, 6],
        "segmentation": dict(text),
    }


def objects(data: Path, results: Path) -> None:
    samples.coco(data)
    rows = [_row(1, 3, [5, 7, 180]), _row(2, 7, [50, 17, 125]), _row(1, 7, [50, 17, 125])]
    rows[1]["segmentation"], rows[2]["segmentation"] = [samples.POLYGON], {"size": [12, 16], "counts": [5, 7, 180]}
    results.write_text(json.dumps(rows))


def regions(data: Path, results: Path) -> None:
    samples.coco(data)
    results.write_text(json.dumps([_row(1, 3, [5, 7, 180]), _row(2, 7, [50, 17, 125]), _row(2, 3, [0, 50, 142])]))


def segments(data: Path, results: Path) -> None:
    samples.coco_panoptic(data)
    shutil.copytree(data / "panoptic_train", results.with_suffix(""))
    content = json.loads((data / "panoptic_train.json").read_text())
    results.write_text(json.dumps({"annotations": content["annotations"]}))


KINDS: dict[str, Callable[[Path, Path], None]] = {"instance": objects, "semantic": regions, "panoptic": segments}


def measure(task: str, data: Path, results: Path) -> object:
    chosen = TASKS[task]
    dataset = chosen.view(open_dataset(data, "train"))
    return chosen.evaluate(chosen.read_results(results, dataset), dataset).main


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("count", [100, pytest.param(MANY, marks=pytest.mark.slow)])
def test_mutated_results(task: str, count: int, tmp_path: Path) -> None:
    folder, data = tmp_path / "results", tmp_path / "data"
    folder.mkdir()
    KINDS[task](data, folder / "results.json")
    assert measure(task, data, folder / "results.json")
    refused, broken = outcomes(folder, lambda: measure(task, data, folder / "results.json"), range(count))
    assert not broken, "\n".join([f"{len(broken)} of {count}", *broken[:20]])
    assert 0 < refused < count
