"""Ground truth is measured as the file has it: through the reader, with the numbers of pycocotools."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskkit import cli
from maskkit.data import open_dataset, open_truth
from maskkit.eval.instance.metric import Kind, evaluate
from maskkit.eval.task import TASKS
from tests.eval.cases import numbers, official, text_rle

HEIGHT, WIDTH = 48, 64
COORDINATES = st.integers(-40, 90) | st.sampled_from([0, 10, 10.5, 0.1, 48, 64])
SIDES = st.integers(-2, 60) | st.sampled_from([0, 10, 0.3, 100, 1000])
BOXES = st.tuples(COORDINATES, COORDINATES, SIDES, SIDES).map(list)
POINTS = st.lists(COORDINATES, min_size=6, max_size=10)
MASKS = st.integers(0, 2**20).map(
    lambda seed: text_rle(np.kron(np.random.default_rng(seed).random((6, 8)) < 0.4, np.ones((8, 8), bool)))
)
SHAPES = st.lists(POINTS | BOXES.map(lambda b: outline(*b)), min_size=1, max_size=2) | MASKS
NEVER_EMPTY = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}


def outline(x: float, y: float, width: float, height: float) -> list[float]:
    """A box as a polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


@st.composite
def files(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Result rows and ground truth, whose objects may lie anywhere and be degenerate in every way."""
    annotations = [
        {
            "id": n,
            "image_id": draw(st.integers(1, 2)),
            "category_id": draw(st.integers(1, 2)),
            "bbox": draw(BOXES),
            "segmentation": draw(SHAPES),
            "area": draw(st.integers(-5, 12000) | st.just(0)),
            "iscrowd": draw(st.sampled_from([0, 0, 0, 1])),
        }
        for n in range(1, draw(st.integers(1, 6)) + 1)
    ]
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        copied = draw(st.sampled_from(annotations))
        row = {
            "image_id": copied["image_id"],
            "category_id": copied["category_id"],
            "bbox": draw(st.just(copied["bbox"]) | BOXES),
            "segmentation": draw(MASKS),
            "score": draw(st.sampled_from([0.1, 0.5, 0.5, 0.9])),
        }
        if isinstance(copied["segmentation"], dict) and draw(st.booleans()):
            row["segmentation"] = copied["segmentation"]
        rows.append(row)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2)],
    }
    return rows, truth


@given(files())
@settings(max_examples=60)
def test_equals_pycocotools_whatever_the_objects_are(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[list[dict[str, Any]], dict[str, Any]]
) -> None:
    rows, truth = file
    folder = tmp_path_factory.getbasetemp()
    (folder / "truth.json").write_text(json.dumps(truth))
    data = open_truth(folder / "truth.json")
    assert not data.problems or all(p.level == "warning" for p in data.problems)
    kinds: tuple[Kind, ...] = ("bbox", "segm")
    found = evaluate(rows, data.truth(), kinds=kinds)
    for kind, mine in zip(kinds, (found.bbox, found.segm), strict=True):
        assert mine is not None
        assert numbers(mine) == pytest.approx(official(rows, truth, kind).stats.tolist(), abs=1e-12), kind


def test_training_has_what_it_can_use_and_the_measure_everything(tmp_path: Path) -> None:
    for i in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{i}.png")
    rows: list[dict[str, Any]] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [-30, -30, 100, 100], "area": 10000},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5, 5, 0, 9], "area": 0},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": [[40, 5, 40, 5, 40, 5]], "bbox": [40, 5, 2, 2]},
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [0.1, 0.2, 0.3, 5], "area": -1},
        {"id": 5, "image_id": 2, "category_id": 1, "bbox": [float("nan"), 0, 5, 5]},
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "bolt"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path / "truth.json")
    assert [a["bbox"] for a in data.coco()["annotations"]] == [[0, 0, WIDTH, HEIGHT], [0.1, 0.2, 0.3, 5]]
    truth = [{k: v for k, v in a.items() if k != "iscrowd"} for a in data.truth()["annotations"]]
    assert truth == rows[:4]
    assert [(p.level, p.measured) for p in data.problems if p.level == "error"] == [
        ("error", True),
        ("error", True),
        ("error", False),
    ]
    # also of a part of the classes, under other numbers
    assert len(data.only([0]).truth()["annotations"]) == len(data.as_one_class().truth()["annotations"]) == 4
    assert data.only([]).truth()["annotations"] == []
    again = open_truth(tmp_path / "truth.json")
    assert [p.record for p in again.problems if p.level == "error"] == ["annotation 5 of image 2"]


def write(folder: Path, truth: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """The command that measures ``rows``."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(rows))
    data, results = str(folder / "truth.json"), str(folder / "results.json")
    return ["eval", "--predictions", results, "--data", data, "--out", str(folder / "out")]


def test_results_are_measured_without_any_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square = outline(5, 5, 20, 20)
    truth = {
        "images": [{"id": 1, "file_name": "nowhere/a.png", "height": HEIGHT, "width": WIDTH}, {"id": 2}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "segmentation": [square]},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400},
        ],
        "categories": [{"id": 1, "name": "bolt"}],
    }
    rows = [{"image_id": i, "category_id": 1, "score": 0.9, "bbox": [5, 5, 20, 20]} for i in (1, 2)]
    assert cli.main(write(tmp_path, truth, rows)) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["bbox"]["AP"] == pytest.approx(1)
    assert (tmp_path / "out" / "report.html").is_file()
    assert not capsys.readouterr().err
    # masks must have a size, of the image or of the file
    rows = [row | {"segmentation": [square]} for row in rows]
    assert cli.main(write(tmp_path, truth, rows)) == 1
    assert "row 2 of 2: its image has no height and width" in capsys.readouterr().err


def test_every_task_measures_without_images(tmp_path: Path) -> None:
    square = outline(5, 5, 20, 20)
    truth = {
        "images": [{"id": 1, "file_name": "nowhere/a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square]}],
        "categories": [{"id": 1, "name": "bolt"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    data = open_truth(tmp_path / "truth.json")
    rows = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": [square]}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    for task in TASKS.values():
        seen = task.view(data)
        assert task.evaluate(task.read_results(tmp_path / "results.json", seen), seen).main, task.name


def test_the_report_shows_no_image_from_outside(tmp_path: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "a\0b", "deep/here.png", "there.png"]
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "there.png")
    images = [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "bolt"}]}
    (folder / "truth.json").write_text(json.dumps(content))
    records = open_truth(folder / "truth.json").records
    assert [r.path.is_file() for r in records] == [False, False, False, False, True]
    assert all(r.path.is_relative_to(folder) for r in records)
    assert records[3].path == folder / "deep" / "here.png"
