"""Formats that are known and not read."""

import json
from pathlib import Path

import pytest

from maskkit.data import open_dataset
from maskkit.errors import DataError
from tests.data.written import write_image

FILES = {
    "a.xml": ("<annotation><object/></annotation>", "Pascal VOC file of one image"),
    "min.json": ([{"image": "a.png", "annotator": 1, "label": []}], "JSON-MIN"),
    "a.png.json": ({"description": "", "size": {"height": 1, "width": 1}, "objects": []}, "Supervisely"),
    "gt.json": ({"imgHeight": 1, "imgWidth": 1, "objects": []}, "Cityscapes"),
    "old.json": ([{"ID": "x", "Labeled Data": "a.png", "Label": {}}], "Labelbox"),
    "new.ndjson": ({"data_row": {"id": "x"}, "projects": {}}, "Labelbox"),
    "results.json": ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "COCO results"),
    "frames.json": ([{"name": "a.png", "labels": []}], "Scalabel"),
    "shape.json": ({"shapes": [], "imagePath": "a.png"}, "give the folder"),
    "train.tfrecord": ("x", "TFRecord"),
    "train.tfrecord-00000-of-00002": ("x", "TFRecord"),
    "P0001.txt": ("imagesource:x\n1 1 9 1 9 9 1 9 plane 0\n", "DOTA"),
    "samples.json": ({"samples": [{"filepath": "data/a.png"}]}, "FiftyOne"),
    "000001.txt": ("Car 0.00 0 -1.57 1 2 9 9 1.5 1.6 3.7 1.8 1.5 9.9 -1.57\n", "KITTI"),
    "data.zip": ("x", "unpack it"),
    "v7.json": ({"version": "2.0", "item": {"name": "a.png"}, "annotations": []}, "Darwin"),
    "output.manifest": ({"source-ref": "s3://bucket/a.png"}, "Ground Truth"),
    "gt.txt": ("1,1,10,10,5,5,1,1,1\n2,1,11,10,5,5,1,1,1\n", "MOT"),
    "_classes.csv": ("Pixel Value, Class\n0, background\n1, cat\n", "Roboflow"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_answered_by_what_it_looks_like(tmp_path: Path, name: str) -> None:
    content, answer = FILES[name]
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    write_image(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        open_dataset(file)
    assert f"{name}: this is " in str(caught.value)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)
    if name not in ("a.xml", "shape.json", "a.png.json"):  # a folder of these is read, or no layout by itself
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            open_dataset(tmp_path)


def test_folders(tmp_path: Path) -> None:
    for sub in ("gtCoarse/train", "leftImg8bit/train"):
        (tmp_path / "city" / sub).mkdir(parents=True)
    with pytest.raises(DataError, match="this is Cityscapes"):
        open_dataset(tmp_path / "city")


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "7", "null", '"a"', "[[]]", "[7]", "\xff", '{"a": {"b": 1}}'])
@pytest.mark.parametrize("name", ["a.json", "a.xml", "a.ndjson", "a.txt", "a.tfrecord"])
def test_what_is_not_known_is_the_ordinary_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError):
            open_dataset(path)
