"""COCO's panoptic results: written and read again, and what is wrong with them said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskkit.data import open_dataset
from maskkit.data.dataset import Dataset
from maskkit.errors import DataError
from maskkit.eval.panoptic.files import read_results, write_results, write_segments
from maskkit.prediction import Categories, ImageMeta, Panoptic, PanopticSegment, Prediction
from tests.data.written import write_panoptic

IDS = np.zeros((12, 16), np.int64)
IDS[:6], IDS[6:, 2:], IDS[4:9, 5:9] = 70000, 300, 7
SEGMENTS: list[dict[str, Any]] = [
    {"id": 7, "category_id": 3},
    {"id": 300, "category_id": 193},
    {"id": 70000, "category_id": 187},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, SEGMENTS)})


def predicted(data: Dataset) -> list[dict[str, Any]]:
    """Rows of a prediction whose segment 12 is a cat and whose segment 3 is grass."""
    ids = np.zeros((12, 16), np.int32)
    ids[:5], ids[7:] = 12, 3
    segments = [
        PanopticSegment(12, 0, 0.75, True),
        PanopticSegment(3, 2, 0.5, False),
    ]
    meta = ImageMeta(4, "", (12, 16), (12, 16))
    prediction = Prediction(meta, data.categories, panoptic=Panoptic(ids, segments))
    assert len(prediction) == 2
    return prediction.to_coco()


def test_results_are_written_and_read(file: Path, tmp_path: Path) -> None:
    data = open_dataset(file).as_panoptic()
    rows = predicted(data)
    assert [(r["category_id"], r["score"]) for r in rows] == [(3, 0.75), (193, 0.5)]
    out = tmp_path / "out" / "panoptic.json"
    write_segments(out, rows, data.coco_images(), data.categories)
    written = json.loads(out.read_text())["annotations"][0]
    assert written["file_name"] == "4.png"
    assert [s["isthing"] for s in written["segments_info"]] == [1, 0]
    assert sorted(p.name for p in out.parent.rglob("*")) == ["4.png", "panoptic", "panoptic.json"]

    again = read_results(out, data)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    plain = read_results(tmp_path / "rows.json", data)
    for row, one, other in zip(rows, again, plain, strict=True):
        assert row == one == other


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    names = Categories.of(["cat"])
    images = [{"id": i, "file_name": name, "height": 2, "width": 2} for i, name in ((1, "a/x.jpg"), (2, "b/X.png"))]
    write_segments(tmp_path / "p.json", [], images, names)
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["X_2.png", "x.png"]


def test_unusable_results_are_named(file: Path, tmp_path: Path) -> None:
    data = open_dataset(file).as_panoptic()
    out = tmp_path / "out" / "panoptic.json"
    write_segments(out, predicted(data), data.coco_images(), data.categories)
    content = json.loads(out.read_text())

    def refused(content: Any, message: str) -> None:
        out.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            read_results(out, data)

    (found,) = content["annotations"]
    refused({"annotations": []}, "no segments for image 4")
    refused({"annotations": [found | {"file_name": "9.png"}]}, "9.png of image 4 is missing")
    refused({"annotations": [found | {"segments_info": found["segments_info"][:1]}]}, "id 2 has no segment")
    refused({"annotations": [{"image_id": 4}]}, "has no 'file_name'")
    alien = [s | {"category_id": 5} for s in found["segments_info"]]
    refused({"annotations": [found | {"segments_info": alien}]}, "category_id 5 is not")
    refused(7, "list of rows")
    refused([{"image_id": 4}], "row 1 of 1: has no category_id and no segmentation")
    refused([predicted(data)[0] | {"image_id": 5}], "row 1 of 1: image_id 5 is not")


def test_a_folder_of_results_has_the_rows_too(file: Path, tmp_path: Path) -> None:
    data = open_dataset(file).as_panoptic()
    rows = predicted(data)
    write_results(tmp_path / "out", rows, data.coco_images(), data.categories)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == rows
    assert read_results(tmp_path / "out" / "panoptic.json", data) == rows


def test_an_image_has_one_entry(file: Path, tmp_path: Path) -> None:
    data = open_dataset(file).as_panoptic()
    out = tmp_path / "out" / "panoptic.json"
    write_segments(out, predicted(data), data.coco_images(), data.categories)
    content = json.loads(out.read_text())
    out.write_text(json.dumps(content | {"annotations": content["annotations"] * 2}))
    with pytest.raises(DataError, match=r"panoptic\.json: has 2 entries for image 4; keep one"):
        read_results(out, data)
