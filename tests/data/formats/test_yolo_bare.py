"""YOLO labels without a yaml file."""

import shutil
from pathlib import Path

import pytest

from maskkit.data import find_splits, open_dataset
from maskkit.data.convert import convert
from maskkit.errors import DataError
from tests.data.written import BLOCK, messages, object_row, write_coco, write_image

LINES = "1 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.5 0.5\n"  # of an image 60 wide and 40 high
BOXES = [(1, (15, 10, 45, 30)), (0, (0, 0, 30, 20))]


def place(root: Path, image: str, text: str, lines: str = LINES) -> None:
    write_image(root / image, len(image))
    (root / text).parent.mkdir(parents=True, exist_ok=True)
    (root / text).write_text(lines)


def found(path: Path, split: str | None = None) -> dict[str, list]:
    data = open_dataset(path, split)
    assert data.format == "yolo"
    assert messages(data.problems, "error") == []
    return {r.path.name: [(a.label, a.box) for a in r.annotations] for r in data.records}


@pytest.mark.parametrize(
    ("images", "texts", "names"),
    [
        ("{}", "{}", "classes.txt"),  # LabelImg
        ("images/{}", "labels/{}", "classes.txt"),
        ("images/{}", "labels/{}", "labels/classes.txt"),
        ("images/{}", "labels/{}", "obj.names"),
    ],
)
def test_layouts_without_splits(tmp_path: Path, images: str, texts: str, names: str) -> None:
    place(tmp_path, images.format("straße 猫.png"), texts.format("straße 猫.txt"))
    place(tmp_path, images.format("b.png"), texts.format("b.txt"), "")
    (tmp_path / names).write_text("cat\ndog\n")
    assert found(tmp_path) == {"straße 猫.png": BOXES, "b.png": []}
    assert open_dataset(tmp_path).categories.names == ("cat", "dog")
    assert open_dataset(tmp_path).categories.ids == (0, 1)
    assert find_splits(tmp_path) == []


@pytest.mark.parametrize(
    ("images", "texts", "names"),
    [
        ("images/{}", "labels/{}", "classes.txt"),
        ("{}/images", "{}/labels", "classes.txt"),
        ("{}", "{}", "train/_darknet.labels"),  # Roboflow's Darknet
        ("obj_{}_data", "obj_{}_data", "obj.names"),  # CVAT's YOLO 1.1
    ],
)
def test_layouts_with_splits(tmp_path: Path, images: str, texts: str, names: str) -> None:
    for split, word in (("train", "a"), ("valid", "b")):
        place(tmp_path, f"{images.format(split)}/{word}.png", f"{texts.format(split)}/{word}.txt")
    (tmp_path / names).write_text("cat\ndog\n")
    assert find_splits(tmp_path) == ["train", "val"]
    assert found(tmp_path, "train") == {"a.png": BOXES}
    assert found(tmp_path, "val") == {"b.png": BOXES}
    assert len(found(tmp_path)) == 2


def test_classes_without_names_are_called_by_their_numbers(tmp_path: Path) -> None:
    place(tmp_path, "a.png", "a.txt", "3 0.5 0.5 0.5 0.5\n")
    data = open_dataset(tmp_path)
    assert data.categories.names == ("0", "1", "2", "3")
    assert "no classes.txt names the classes" in messages(data.problems, "warning")[0]
    (tmp_path / "classes.txt").write_text("cat\n")
    (error,) = messages(open_dataset(tmp_path).problems, "error")
    assert "class 3 is not one of the 1" in error


def test_other_texts_are_no_labels(tmp_path: Path) -> None:
    place(tmp_path, "a.png", "a.txt", "100 200 300 400 500\n")
    with pytest.raises(DataError, match="no data set is recognised"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("a photograph of a cat on a mat\n")
    with pytest.raises(DataError, match="no data set is recognised"):
        open_dataset(tmp_path)


def test_the_yaml_file_is_not_needed(tmp_path: Path) -> None:
    """The same polygons and boxes as with it."""
    rows = [object_row(1), object_row(2, 1, category_id=7, segmentation=[BLOCK]), object_row(3, 2, segmentation=[])]
    convert(write_coco(tmp_path / "src" / "a.json", rows), tmp_path / "yolo", "yolo")
    before = open_dataset(tmp_path / "yolo")
    shutil.copytree(tmp_path / "yolo", tmp_path / "bare", ignore=shutil.ignore_patterns("*.yaml"))
    (tmp_path / "bare" / "classes.txt").write_text("cat\ndog\n")
    after = open_dataset(tmp_path / "bare")
    assert before.coco()["annotations"] == after.coco()["annotations"]
    assert before.categories == after.categories


def test_the_number_of_a_line_is_that_of_its_class(tmp_path: Path) -> None:
    place(tmp_path, "a.png", "a.txt", "1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n\n")
    assert open_dataset(tmp_path).categories.names == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 2 is empty"):
        open_dataset(tmp_path)


def test_a_split_whose_labels_are_broken_does_not_vanish(tmp_path: Path) -> None:
    place(tmp_path, "images/train/a.png", "labels/train/a.txt", "0 0.5 0.5 0.5 0.5\n")
    place(tmp_path, "images/val/b.png", "labels/val/b.txt", "0 0.5 x 0.5 0.5\n0 0.5 0.5 0.5 0.5\n")
    assert find_splits(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path, "val")
    assert len(dataset.records[0].annotations) == 1
    assert "line 1: the line has a value that is no number: 'x'" in messages(dataset.problems, "error")
