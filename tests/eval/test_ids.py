"""The ids of the user's file: any whole number and any text, through reading, measuring and every results file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskkit import cli
from maskkit.data import open_dataset
from maskkit.data.ids import key
from maskkit.errors import DataError
from maskkit.eval.rows import shorten
from maskkit.eval.task import TASKS
from maskkit.eval.truth_ids import TruthIds
from maskkit.prediction import Categories
from tests.small import save_small

SQUARE = [2, 5, 17, 5, 17, 25, 2, 25]
OTHER = [40, 20, 55, 20, 55, 40, 40, 40]
IDS = st.integers() | st.integers(2**53 - 2, 2**53 + 2) | st.integers(2**64 - 1, 2**64 + 1) | st.text(max_size=8)


def write_truth(folder: Path, ids: list[Any], classes: list[int]) -> Path:
    """Two images; each has an object of another place and class."""
    for i in range(2):
        Image.new("RGB", (64, 48), (90, 60 + i, 20)).save(folder / f"p{i}.png")
    truth = {
        "images": [{"id": key, "file_name": f"p{i}.png", "width": 64, "height": 48} for i, key in enumerate(ids)],
        "annotations": [
            {"id": i, "image_id": ids[i], "category_id": classes[i], "segmentation": [shape], "iscrowd": 0}
            for i, shape in enumerate((SQUARE, OTHER))
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in sorted(classes)],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder / "truth.json"


def results(ids: list[Any], classes: list[int]) -> list[dict[str, Any]]:
    """The objects of `write_truth` in ``ids`` and ``classes``."""
    return [
        {"image_id": ids[i], "category_id": classes[i], "segmentation": [shape], "score": 0.9}
        for i, shape in enumerate((SQUARE, OTHER))
    ]


@given(
    ids=st.lists(IDS, min_size=2, max_size=2, unique_by=key),
    classes=st.lists(st.integers() | st.integers(2**53 - 1, 2**53 + 1), min_size=2, max_size=2, unique=True),
)
@settings(max_examples=12)
def test_any_ids_are_measured_as_they_are(tmp_path_factory, ids: list[Any], classes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    data = open_dataset(write_truth(folder, ids, classes))
    assert not data.problems
    assert [r.image_id for r in data.records] == ids
    for task in (TASKS["instance"], TASKS["semantic"], TASKS["panoptic"]):
        seen = task.view(data)
        # with the background that label maps have
        for right, written in ((1.0, results(ids, classes)), (0.0, results(ids[::-1], classes))):
            (folder / "results.json").write_text(json.dumps(written))
            rows = task.read_results(folder / "results.json", seen)
            assert [r["image_id"] for r in rows] == [r["image_id"] for r in written]
            task.write_results(folder / "out", rows, seen.coco_images(), seen.categories)
            back = json.loads((folder / "out" / "predictions.json").read_text())
            assert [(r["image_id"], r["category_id"]) for r in back] == [
                (r["image_id"], r["category_id"]) for r in rows
            ]
            named = json.loads((folder / "out" / "categories.json").read_text())
            assert {c["id"]: c["name"] for c in named}.items() >= {c: f"class {c}" for c in classes}.items()
            first = next(iter(task.evaluate(rows, seen).main.values()))
            assert first == pytest.approx(right) or task.name == "semantic"
            if task.name == "panoptic":
                assert [
                    a["image_id"] for a in json.loads((folder / "out/panoptic.json").read_text())["annotations"]
                ] == ids


def test_numbers_and_texts_of_one_number_are_one_id(tmp_path: Path) -> None:
    data = open_dataset(write_truth(tmp_path, ["7", "007"], [1, 2]))
    (tmp_path / "results.json").write_text(json.dumps(results([7, "007"], [1, 2])))
    rows = TASKS["instance"].read_results(tmp_path / "results.json", data)
    assert [r["image_id"] for r in rows] == ["7", "007"]
    assert TASKS["instance"].evaluate(rows, data).main["AP"] == pytest.approx(1)
    (tmp_path / "results.json").write_text(json.dumps(results([7, "0007"], [1, 2])))
    with pytest.raises(
        DataError, match=r"row 2 of 2: image_id '0007' is not in the ground truth, which has '7', '007'"
    ):
        TASKS["instance"].read_results(tmp_path / "results.json", data)


def test_long_values_are_cut_in_messages() -> None:
    assert len(shorten(["x" * 5000] * 5000)) < 300


def test_predict_takes_the_ids_of_a_ground_truth(tmp_path: Path, capsys) -> None:
    truth = write_truth(tmp_path, ["fr/a", 2**60], [5, 3])
    content = json.loads(truth.read_text())
    content["categories"] = [{"id": 5, "name": "disc"}, {"id": 3, "name": "other"}]
    truth.write_text(json.dumps(content))
    model, out = save_small(tmp_path / "small.safetensors"), tmp_path / "out"
    command = ["predict", tmp_path / "p1.png", tmp_path / "p0.png", "--model", model, "--out", out, "--score", "0"]
    assert cli.main([*map(str, command), "--data", str(truth)]) == 0
    assert [i["id"] for i in json.loads((out / "images.json").read_text())] == [2**60, "fr/a"]
    assert json.loads((out / "categories.json").read_text()) == [{"id": 5, "name": "disc"}]
    rows = json.loads((out / "predictions.json").read_text())
    assert {r["category_id"] for r in rows} == {5}
    assert {r["image_id"] for r in rows} == {2**60, "fr/a"}
    left_out = re.search(r"(\d+) objects of classes that the data lack", capsys.readouterr().out)
    assert left_out is not None
    measured = ["eval", "--predictions", out / "predictions.json", "--data", truth, "--out", tmp_path / "measured"]
    assert cli.main([*map(str, measured)]) == 0
    # without it: numbers of the command line, ids of the model
    assert cli.main([*map(str, command)]) == 0
    assert [i["id"] for i in json.loads((out / "images.json").read_text())] == [1, 2]
    assert json.loads((out / "categories.json").read_text())[1] == {"id": 8, "name": "ring"}


def test_images_that_the_ground_truth_lacks(tmp_path: Path) -> None:
    data = open_dataset(write_truth(tmp_path, ["a", "b"], [1, 2]))
    classes = Categories.of(["class 1"])
    with pytest.raises(DataError, match=r"truth\.json: has no image called .*q.png; predict images of these data"):
        TruthIds.of(data, [tmp_path / "q.png"], classes)
    elsewhere = TruthIds.of(data, [Path("/elsewhere/p1.png")], classes)
    assert dict(elsewhere.images) == {"/elsewhere/p1.png": "b"}
    with pytest.raises(DataError, match="are both image b there"):
        TruthIds.of(data, [Path("/elsewhere/p1.png"), tmp_path / "p1.png"], classes)


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / folder / "1.png" for folder in ("x", "y")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file)
    images = [
        {"id": f"i{n}", "file_name": f"{f.parent.name}/1.png", "width": 8, "height": 8} for n, f in enumerate(files)
    ]
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    data, classes = open_dataset(tmp_path / "truth.json"), Categories.of(["disc"])
    assert list(TruthIds.of(data, files[::-1], classes).images.values()) == ["i1", "i0"]
    assert list(TruthIds.of(data, [Path("/copy/y/1.png")], classes).images.values()) == ["i1"]
    with pytest.raises(DataError, match=r"has 2 images called 1\.png; give /copy/1\.png with its folder"):
        TruthIds.of(data, [Path("/copy/1.png")], classes)
