"""Exchange with other libraries: FiftyOne on the level of files, Datumaro by reading what is written here.

Datumaro (MIT) pins older versions of Pillow and pandas than the newest, so it may need an environment of its own:
``MASKKIT_DATUMARO=/path/to/its/python pytest tests/data/test_interchange.py``.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from maskkit.data import find_splits, open_dataset
from maskkit.data.check import check
from maskkit.data.convert import convert
from maskkit.geometry import rle as mask_math
from tests.data.written import BLOCK, SIZE, SQUARE, image_row, object_row, write_coco, write_image, write_json

ROWS = [
    object_row(1, 1),
    object_row(2, 1, category_id=7, segmentation=[BLOCK, [40, 1, 50, 1, 50, 9, 40, 9]], bbox=[5, 1, 45, 19]),
    object_row(3, 2, segmentation=[SQUARE]),
]


def fiftyone(root: Path) -> Path:
    """What ``dataset.export(dataset_type=fo.types.COCODetectionDataset)`` writes, but for values of other fields."""
    write_image(root / "data" / "1.png", 1)
    write_image(root / "data" / "2.png", 2)
    images = [image_row(i, license=None, coco_url=None) for i in (1, 2)]
    categories = [{"id": 3, "name": "cat", "supercategory": None}, {"id": 7, "name": "dog", "supercategory": None}]
    content = {
        "info": {"year": "", "version": "", "description": "Exported from FiftyOne", "contributor": "", "url": ""},
        "licenses": [],
        "categories": categories,
        "images": images,
        "annotations": [row | {"score": None, "tags": []} for row in ROWS],
    }
    return write_json(root / "labels.json", content)


def test_what_fiftyone_exports_is_read(tmp_path: Path) -> None:
    data = open_dataset(fiftyone(tmp_path).parent)
    assert (data.format, data.problems, data.categories.names) == ("coco", [], ("cat", "dog"))
    assert [len(r.annotations) for r in data.records] == [2, 1]
    assert check(tmp_path, True).errors == []


def test_splits_of_fiftyone_are_folders(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        fiftyone(tmp_path / split)
    assert find_splits(tmp_path) == ["train", "val"]
    assert len(open_dataset(tmp_path, "val")) == 2


def test_a_labels_json_of_classes_is_not_coco(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "1.png", len(name))
    write_json(tmp_path / "labels.json", {"classes": ["cat", "dog"], "labels": {"1": 0}})
    assert open_dataset(tmp_path).format == "tags"


def test_fiftyone_takes_what_is_written(tmp_path: Path) -> None:
    """It wants the keys of COCO, ids as whole numbers, and names of files below one folder."""
    convert(fiftyone(tmp_path / "src").parent, tmp_path / "out", "coco")
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert {"images", "annotations", "categories"} <= content.keys()
    for image in content["images"]:
        assert isinstance(image["id"], int)
        assert (tmp_path / "out" / "images" / image["file_name"]).is_file()
        assert (image["height"], image["width"]) == SIZE
    known = {c["id"] for c in content["categories"]}
    for row in content["annotations"]:
        assert row["category_id"] in known
        assert len(row["bbox"]) == 4
        assert row["iscrowd"] in (0, 1)
        assert isinstance(row["segmentation"], list | dict)


ORACLE = """
import json, sys
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset

found = Dataset.import_from(sys.argv[1], sys.argv[2])
names = [label.name for label in found.categories()[AnnotationType.label]]
rows = []
for item in found:
    for a in item.annotations:
        if a.type in (AnnotationType.polygon, AnnotationType.bbox, AnnotationType.mask):
            shape = [float(v) for v in a.points] if a.type == AnnotationType.polygon else None
            pixels = a.image.astype(int).tolist() if a.type == AnnotationType.mask else None
            rows.append([str(item.id), names[a.label], a.type.name, shape, [float(v) for v in a.get_bbox()], pixels])
print(json.dumps(rows))
"""
PYTHON = os.environ.get("MASKKIT_DATUMARO") or (sys.executable if find_spec("datumaro") else None)


@pytest.mark.skipif(PYTHON is None, reason="datumaro is not installed; MASKKIT_DATUMARO names a Python that has it")
@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("coco", "coco_instances"),
        ("datumaro", "datumaro"),
        ("cvat", "cvat"),
        ("voc", "voc_detection"),
        ("yolo", "yolo"),
    ],
)
def test_datumaro_reads_what_is_written(tmp_path: Path, to: str, name: str) -> None:
    source = write_coco(tmp_path / "src" / "a.json", ROWS)
    convert(source, tmp_path / "out", to)  # type: ignore[arg-type]
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", ORACLE, str(tmp_path / "out"), name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    print(rows)
    assert mask_math
