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
kinds = (AnnotationType.polygon, AnnotationType.mask)
rows = [
    [str(item.id), names[a.label], a.type.name, [float(v) for v in a.get_bbox()], float(a.get_area())]
    for item in found
    for a in item.annotations
    if a.type in kinds
]
print(json.dumps(rows))
"""
PYTHON = os.environ.get("MASKKIT_DATUMARO") or (sys.executable if find_spec("datumaro") else None)
COCO = {"coco": "annotations.json", "coco-panoptic": "panoptic.json"}
"""Datumaro looks for these in ``annotations/``, with the word ``default`` in their names."""
POLYGONS = [  # image, class, box x y w h, area
    ["1", "cat", "polygon", [10, 10, 20, 20], 400],
    ["1", "dog", "polygon", [5, 5, 10, 15], 150],
    ["1", "dog", "polygon", [40, 1, 10, 8], 80],
    ["2", "cat", "polygon", [10, 10, 20, 20], 400],
]
SEGMENTS = [  # the dog is in front of the cat
    ["1", "cat", "mask", [10, 10, 20, 20], 350],
    ["1", "dog", "mask", [5, 1, 45, 19], 230],
    ["2", "cat", "mask", [10, 10, 20, 20], 400],
]


@pytest.mark.skipif(PYTHON is None, reason="datumaro is not installed; MASKKIT_DATUMARO names a Python that has it")
@pytest.mark.parametrize(
    ("to", "name", "expected"),
    [
        ("coco", "coco_instances", POLYGONS),
        ("datumaro", "datumaro", POLYGONS),
        ("cvat", "cvat", POLYGONS),
        ("coco-panoptic", "coco_panoptic", SEGMENTS),
    ],
)
def test_datumaro_reads_what_is_written(tmp_path: Path, to: str, name: str, expected: list) -> None:
    out = tmp_path / "out"
    convert(write_coco(tmp_path / "src" / "a.json", ROWS), out, to)  # type: ignore[arg-type]
    if to in COCO:
        word = name.removeprefix("coco_")
        (out / "annotations").mkdir()
        (out / COCO[to]).rename(out / "annotations" / f"{word}_default.json")
        if (out / word).is_dir():
            (out / word).rename(out / "annotations" / f"{word}_default")
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", ORACLE, str(out), name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == expected
