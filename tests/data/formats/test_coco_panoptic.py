"""COCO's panoptic format: read as objects, as things alone, as label maps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskkit.cli import main
from maskkit.data import open_dataset
from maskkit.data.check import check
from maskkit.data.label_map import IGNORE
from maskkit.errors import DataError
from maskkit.infer.samples import save_samples
from maskkit.prediction import Categories
from maskkit.zoo.class_names import COCO_PANOPTIC
from tests.data.written import SIZE, messages, panoptic_categories, write_panoptic

IDS = np.zeros((12, 16), np.int64)
IDS[:6] = 70000  # sky
IDS[6:, 2:] = 300  # grass
IDS[4:9, 5:9] = 7  # a cat
IDS[8:11, 12:] = 8  # cats
SEGMENTS: list[dict[str, Any]] = [
    {"id": 7, "category_id": 3, "bbox": [5, 4, 4, 5]},
    {"id": 8, "category_id": 3, "iscrowd": 1},
    {"id": 300, "category_id": 193},
    {"id": 70000, "category_id": 187},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, SEGMENTS)})


def test_segments_are_objects(file: Path) -> None:
    data = open_dataset(file)
    assert data.categories == panoptic_categories()
    assert not data.problems
    assert data.records[0].path.parent.name == "images", "not the ids, which are called 4.png too"
    target = data.as_panoptic().load(0)[1]
    assert target.labels.tolist() == [0, 0, 2, 1]
    assert target.crowd.tolist() == [False, True, False, False]
    assert target.has_mask.all()
    assert target.semantic is None
    assert target.masks is not None
    for mask, value in zip(target.masks.dense().numpy(), (7, 8, 300, 70000), strict=True):
        assert np.array_equal(mask, value == IDS)
    assert target.boxes.tolist() == target.masks.boxes().tolist()
    assert [a.area for a in data.records[0].annotations] == [(s["id"] == IDS).sum() for s in SEGMENTS]


def test_the_same_file_as_things_and_as_a_label_map(file: Path) -> None:
    data = open_dataset(file)
    things = data.as_instances()
    assert things.categories == Categories(("cat",), (3,))
    assert things.load(0)[1].labels.tolist() == [0, 0]
    assert [row["iscrowd"] for row in things.coco()["annotations"]] == [0, 1]
    labels = data.as_semantic().load(0)[1].semantic
    assert labels is not None
    expected = np.select([IDS == 7, IDS == 300, IDS == 70000], [0, 2, 1], IGNORE)
    assert np.array_equal(labels.numpy(), expected)


def test_instances_without_stuff_are_left_as_they_are(file: Path) -> None:
    things = open_dataset(file).as_instances()
    assert things.as_instances() is things


def test_stuff_survives_a_conversion(file: Path, tmp_path: Path) -> None:
    assert main(["convert", str(file), str(tmp_path / "coco"), "--to", "coco"]) == 0
    again = open_dataset(tmp_path / "coco")
    assert again.categories == panoptic_categories()
    target = again.as_panoptic().load(0)[1]
    assert target.masks is not None
    assert np.array_equal(target.masks.dense()[3].numpy(), IDS == 70000)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (SEGMENTS[:3], "70000 has no segment in the json"),
        ([*SEGMENTS, {"id": 9, "category_id": 3}], "9 is a segment of the json without a pixel"),
    ],
)
def test_the_doctor_compares_json_and_ids(tmp_path: Path, segments: list[dict[str, Any]], message: str) -> None:
    file = write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, segments)})
    data = open_dataset(file).as_panoptic()
    with pytest.raises(DataError, match=message):
        data.load(0)
    assert len(check(file).errors) == 1


def test_samples_show_segments(file: Path, tmp_path: Path) -> None:
    (sample,) = save_samples(open_dataset(file), tmp_path / "samples")
    with Image.open(sample) as image:
        assert image.size == (16, 12)


def test_a_bad_box_is_replaced_by_that_of_the_mask(tmp_path: Path) -> None:
    segments = [SEGMENTS[0] | {"bbox": [5, 4, 0, 5]}, *SEGMENTS[1:]]
    data = open_dataset(write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, segments)}))
    assert data.load(0)[1].boxes[0].tolist() == [5, 4, 9, 9]
    assert "the box of the mask is taken" in data.problems[0].message


def test_bad_records_are_left_out_and_named(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path / "panoptic_val.json", dict.fromkeys(range(1, 6), (IDS, SEGMENTS)))
    content = json.loads(file.read_text())
    content["images"][0]["height"] = "tall"
    content["images"][1]["file_name"] = "gone.jpg"
    content["annotations"][2]["file_name"] = "gone.png"
    del content["annotations"][3]["segments_info"][0]["category_id"]
    content["annotations"][4]["segments_info"][0]["category_id"] = 5
    content["images"].append({"id": 6, "file_name": "1.png", "height": 12, "width": 16})
    file.write_text(json.dumps(content))
    data = open_dataset(file)
    assert [r.image_id for r in data.records] == [5]
    assert [a.label for a in data.records[0].annotations] == [0, 2, 1]
    said = "\n".join(map(str, data.problems))
    for text in (
        "no valid image size",
        "image cannot be",
        "gone.png cannot",
        "no 'category_id'",
        "class 5",
        "no annotation",
    ):
        assert said.count(text) == 1, text
    content["categories"] = [{"id": 1}]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="panoptic format"):
        open_dataset(file)


@pytest.mark.parametrize(("one", "other"), [(4, 4), (4, "4"), ("x", "x")])
def test_images_of_one_id_are_not_merged(tmp_path: Path, one: object, other: object) -> None:
    file = write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, SEGMENTS), 5: (IDS, SEGMENTS)})
    content = json.loads(file.read_text(encoding="utf-8"))
    for rows, key in ((content["images"], "id"), (content["annotations"], "image_id")):
        for row, value in zip(rows, (one, other), strict=True):
            row[key] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    data = open_dataset(file)
    assert [r.path.stem for r in data.records] == ["4"]
    twice, problem = data.problems
    assert "image 4 has two annotations" in str(twice) or "image x has two annotations" in str(twice)
    assert "image 5" in str(problem)
    assert "another image has the id" in str(problem)


def test_a_folder_of_panoptic_files(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_panoptic(tmp_path / f"panoptic_{split}2017.json", {1: (IDS, SEGMENTS)})
    assert len(open_dataset(tmp_path)) == 2
    assert open_dataset(tmp_path, "val").source.name == "panoptic_val2017.json"


def test_label_maps_alone_are_no_panoptic_data(file: Path) -> None:
    with pytest.raises(DataError, match="without objects"):
        open_dataset(file).as_semantic().as_panoptic()


def test_numbers_of_classes_name_cocos_panoptic_ones() -> None:
    assert len(set(COCO_PANOPTIC.names)) == 133
    assert sum(COCO_PANOPTIC.things) == 80


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([{"id": "sky", "category_id": 187}], "the id 'sky' is not a whole number"),
        ([{"id": "7_0", "category_id": 187}], "the id '7_0' is not a whole number"),
        ([{"id": 0, "category_id": 187}], "the segment id 0 is not between 1 and 16777215"),
        ([{"id": 2**70, "category_id": 187}], "is not between"),
        ([{"id": 7, "category_id": 187}, {"id": "7", "category_id": 3}], "the segment id 7 is used twice"),
    ],
)
def test_ids_of_segments_that_no_pixel_can_have(tmp_path: Path, segments: list[Any], message: str) -> None:
    data = open_dataset(write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, segments), 5: (IDS, SEGMENTS)}))
    assert [r.image_id for r in data.records] == [5]
    assert [message in p.message for p in data.problems] == [True]


def test_ids_as_text(tmp_path: Path) -> None:
    texts = [segment | {"id": str(segment["id"])} for segment in SEGMENTS]
    file = write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, texts), 5: (IDS, texts)})
    content = json.loads(file.read_text())
    for one, other in (("12_3", "1_23"), ("0001", 1)):
        for rows, key in ((content["images"], "id"), (content["annotations"], "image_id")):
            rows[0][key], rows[1][key] = one, other
        file.write_text(json.dumps(content))
        data = open_dataset(file)
        assert [(r.image_id, len(r.annotations)) for r in data.records] == [(one, 4), (other, 4)]
        assert len(data.as_panoptic().load(0)[1]) == len(SEGMENTS)


def test_a_second_annotation_of_an_image_is_named(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, SEGMENTS)})
    content = json.loads(file.read_text())
    content["annotations"].append(content["annotations"][0] | {"segments_info": []})
    file.write_text(json.dumps(content))
    data = open_dataset(file)
    assert len(data.records[0].annotations) == 4
    assert ["image 4 has two" in p.message for p in data.problems] == [True]


def test_an_annotation_of_no_image_is_named(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path / "panoptic_val.json", {4: (IDS, SEGMENTS)})
    content = json.loads(file.read_text())
    content["annotations"].append(content["annotations"][0] | {"image_id": 5})
    file.write_text(json.dumps(content))
    data = open_dataset(file)
    assert len(data) == 1
    (message,) = messages(data.problems, "error")
    assert message.startswith("annotation of image 5: the file has no such image")


def test_flags_as_text(tmp_path):
    ids = np.ones(SIZE, np.int64)
    ids[:9] = 2
    segments = [{"id": 1, "category_id": 187, "iscrowd": "0"}, {"id": 2, "category_id": 3, "iscrowd": "1"}]
    file = write_panoptic(tmp_path / "panoptic_val.json", {1: (ids, segments)})
    content = json.loads(file.read_text())
    content["categories"] = [c | {"isthing": str(c["isthing"])} for c in content["categories"]]
    file.write_text(json.dumps(content))
    dataset = open_dataset(file)
    assert dataset.categories == panoptic_categories()
    assert [a.crowd for a in dataset.records[0].annotations] == [False, True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": []}, ": lists no image"),
        ({"segments_info": {}}, "segments_info is an object; it is a list of segments"),
    ],
)
def test_lists_that_are_none(tmp_path, change, reason):
    file = write_panoptic(tmp_path / "panoptic_val.json", {1: (np.ones(SIZE, np.int64), [{"id": 1, "category_id": 3}])})
    content = json.loads(file.read_text())
    (content if "images" in change else content["annotations"][0]).update(change)
    file.write_text(json.dumps(content))
    dataset = open_dataset(file)
    assert len(dataset) == 0
    assert reason in messages(dataset.problems, "error")[0]
