"""Formats of labelling tools: everything that is hard to hold goes into each of them and comes back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.data import find_splits, open_dataset
from maskkit.data.check import check
from maskkit.data.convert import convert
from maskkit.data.dataset import Dataset
from maskkit.data.records import box_of
from maskkit.geometry import rle as mask_math

from .written import SIZE, SQUARE, image_row, object_row, write_image, write_json

IDS = {"cvat": "whole", "labelstudio": "text", "via": "text", "datumaro": "text", "supervisely": "text"}
"""Which ids of images a format holds: whole numbers, or texts too."""
TOOLS = tuple(IDS)


def _mask(*rectangles: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = ()) -> dict:
    """The text of a mask of rectangles x1 y1 x2 y2."""
    mask = np.zeros(SIZE, bool)
    for value, boxes in ((True, rectangles), (False, holes)):
        for x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = value
    return mask_math.to_text(mask_math.encode(mask[None])[0])


ISLAND = np.zeros(SIZE, bool)
ISLAND[2:30, 2:40], ISLAND[6:26, 6:36], ISLAND[10:20, 10:30] = True, False, True
FOUR = [[x, y, x + 5.5, y, x + 5.5, y + 4.25, x + 1.0, y + 4.25] for x in (3, 40) for y in (3.5, 30)]
HARD = {
    "hole": {"segmentation": _mask((5, 5, 25, 25), holes=((10, 10, 20, 20),))},
    "island in a hole": {"segmentation": mask_math.to_text(mask_math.encode(ISLAND[None])[0])},
    "four parts": {"segmentation": _mask((0, 0, 3, 3), (57, 0, 60, 3), (0, 37, 3, 40), (57, 37, 60, 40))},
    "four polygons": {"segmentation": FOUR},
    "one pixel": {"segmentation": _mask((59, 39, 60, 40))},
    "whole image": {"segmentation": _mask((0, 0, 60, 40))},
    "polygon": {"segmentation": [[10.125, 3.3, 55.21, 3.3, 47.7, 19.03]]},
    "polygons that overlap": {"segmentation": [SQUARE, [20, 20, 40, 20, 40, 35, 20, 35]]},
    "overlap": {"segmentation": [SQUARE], "category_id": 7},
    "crowd": {"segmentation": _mask((30, 20, 50, 39), (1, 1, 2, 2)), "iscrowd": 1},
    "crowd of polygons": {"segmentation": [SQUARE, [40, 1, 50, 1, 50, 9]], "iscrowd": 1},
    "box only": {"segmentation": [], "bbox": [3.25, 4.5, 20.125, 9]},
    "crowd of a box": {"segmentation": [], "bbox": [0, 0, 60, 40], "iscrowd": 1},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits, ids of texts and of numbers, names beyond ASCII, an image that is turned, images without objects."""
    root = tmp_path_factory.mktemp("source")
    names = {"straße 猫.png": 7, "a/1.png": "0001", "b/1.png": "x y", "turned.jpg": 9, "empty.png": 10}
    for seed, name in enumerate(names):
        write_image(root / "images" / name, seed)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)).save(root / "images" / "turned.jpg", exif=exif)
    images = [image_row(key, file_name=name) for name, key in names.items()]
    rows = [
        object_row(number, key, bbox=None) | change
        for number, (key, change) in enumerate(
            [(7, c) for c in HARD.values()]
            + [("0001", HARD["hole"]), ("x y", HARD["polygon"]), (9, HARD["four parts"]), (9, HARD["polygon"])],
            1,
        )
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": 'Käse: <rot> & "weiß"'}, {"id": 8, "name": "nobody"}]
    write_json(root / "train.json", {"images": images, "annotations": rows, "categories": categories})
    write_image(root / "images" / "v.png", 11)
    val = {"images": [image_row(12, file_name="v.png")], "annotations": [object_row(77, 12)], "categories": categories}
    write_json(root / "val.json", val)
    return root


def _same(before: Dataset, after: Dataset, to: str) -> None:
    assert len(before) == len(after)
    found = {record.image_id: record for record in after.records}
    for old, same in zip(before.records, after.records, strict=True):
        new = found[old.image_id] if IDS[to] == "text" else same
        assert old.path.read_bytes() == new.path.read_bytes()
        assert old.size == new.size
        assert len(old.annotations) == len(new.annotations)
        if IDS[to] == "text" or isinstance(old.image_id, int):
            assert old.image_id == new.image_id
        for a, b in zip(old.annotations, new.annotations, strict=True):
            assert before.categories.names[a.label] == after.categories.names[b.label]
            assert a.crowd == b.crowd
            ours, theirs = a.rle(old.size), b.rle(new.size)
            if ours is None:
                assert theirs is None
                assert a.box == pytest.approx(b.box)
            else:
                assert theirs is not None
                assert mask_math.iou([ours], [theirs])[0, 0] == 1


@pytest.mark.parametrize("to", TOOLS)
def test_everything_hard_comes_back(source: Path, tmp_path: Path, to: str) -> None:
    counts = convert(source, tmp_path / to, to)  # type: ignore[arg-type]
    assert (counts["images"], counts["objects"], counts["problems"]) == (6, 18, 0)
    assert counts.get("ids of images that became others", 0) == (2 if IDS[to] == "whole" else 0)
    assert find_splits(tmp_path / to) == ["train", "val"]
    for split in ("train", "val"):
        before, after = open_dataset(source, split), open_dataset(tmp_path / to, split)
        assert after.format == to
        assert after.problems == []
        assert after.categories.names == before.categories.names
        _same(before, after, to)
    assert check(tmp_path / to, True).errors == []
    convert(tmp_path / to, tmp_path / "back", "coco")
    _same(open_dataset(source, "train"), open_dataset(tmp_path / "back", "train"), to)


@pytest.mark.parametrize("to", [to for to in TOOLS if to != "supervisely"])
def test_a_single_file_is_read_as_its_folder_is(source: Path, tmp_path: Path, to: str) -> None:
    convert(source / "val.json", tmp_path / "out", to)  # type: ignore[arg-type]
    assert find_splits(tmp_path / "out") == []
    (file,) = [
        p for p in (tmp_path / "out").rglob("*.*") if p.suffix in (".xml", ".json") and p.name != "label_config.xml"
    ]
    _same(open_dataset(source, "val"), open_dataset(file), to)
    _same(open_dataset(source, "val"), open_dataset(tmp_path / "out"), to)


def _boxes(dataset: Dataset) -> dict[bytes, list]:
    """Classes and boxes of the objects, by the bytes of the image."""
    names = dataset.categories.names
    return {
        r.path.read_bytes(): [(names[a.label], *np.round(box_of(a, r.size), 3).tolist()) for a in r.annotations]
        for r in dataset.records
    }


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_boxes_come_back_without_the_files_that_describe_the_layout(source: Path, tmp_path: Path, to: str) -> None:
    """The labels of VOC and YOLO as LabelImg and its like write them: beside the images, without lists or a yaml."""
    content = json.loads((source / "train.json").read_text())
    content["annotations"] = [a | {"segmentation": []} for a in content["annotations"] if not a["iscrowd"]]
    whole = {row["id"]: row["bbox"] for row in open_dataset(source, "train").coco()["annotations"]}
    for row in content["annotations"]:
        row["bbox"] = whole[row["id"]]
    before = open_dataset(write_json(source / "boxes.json", content))
    convert(source / "boxes.json", tmp_path / "out", to)  # type: ignore[arg-type]
    (source / "boxes.json").unlink()
    beside = tmp_path / "beside"
    for folder in [tmp_path / "out" / name for name in ("JPEGImages", "Annotations", "images/train", "labels/train")]:
        if folder.is_dir():
            shutil.copytree(folder, beside, dirs_exist_ok=True)
    if to == "yolo":
        (beside / "classes.txt").write_text("\n".join(before.categories.names), encoding="utf-8")
    after = open_dataset(beside)
    assert after.format == ("labelimg" if to == "voc" else "yolo")
    assert after.problems == []
    assert _boxes(after) == _boxes(before)
    assert check(beside, True).errors == []
