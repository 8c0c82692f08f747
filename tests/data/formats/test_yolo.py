import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.formats.yolo import _object
from maskkit.errors import DataError
from tests.data.written import SIZE, SQUARE, areas, messages, write_image

POLYGON = " ".join(str(v / SIZE[1 - i % 2]) for i, v in enumerate(SQUARE))


def write_yolo(root: Path, lines: str, **changes) -> Path:
    """Images a and b for training (``lines`` belong to a), c for validation."""
    for name, split in (("b", "train"), ("a", "train"), ("c", "val")):
        write_image(root / "images" / split / f"{name}.png", ord(name))
    labels = root / "labels" / "train" / "a.txt"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(lines)
    content = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]} | changes
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root


def test_boxes_and_polygons(tmp_path):
    dataset = open_dataset(write_yolo(tmp_path, f"0 0.5 0.25 0.5 0.5\n\n1 {POLYGON}\n"), "train")
    assert (dataset.format, dataset.categories.names, dataset.categories.ids) == ("yolo", ("cat", "dog"), (0, 1))
    assert [(r.image_id, r.path.name, r.size) for r in dataset.records] == [(1, "a.png", SIZE), (2, "b.png", SIZE)]
    box, polygon = dataset.records[0].annotations
    assert (box.label, box.box, box.segmentation) == (0, (15, 0, 45, 20), None)
    assert (polygon.label, polygon.box, polygon.id) == (1, (10, 10, 30, 30), 2)
    assert areas([box, polygon]) == [None, 400]
    assert messages(dataset.problems, "error") == []
    assert "1 of 2 images have no .txt" in messages(dataset.problems, "warning")[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of the 2"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("0 0.5 0.5 0.1", "4 values"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 values"),
        ("0 0.5 0.5 0 0.1", "0 wide"),
        ("0 0.5 0.5 -0.1 0.1", "-6 wide"),
        ("0 0.5 nan 0.1 0.1", "no numbers"),
        ("0 0.5 0.5 0.1 cat", "is no number"),
        ("0 0.5 0.5 0.1 0_1", "underscore"),
        ("0 10 10 30 10 30 30", "not a fraction of the image"),
        ("0 1.1 0.1 1.2 0.1 1.2 0.3", "outside"),
    ],
)
def test_a_bad_line_is_left_out_and_named(tmp_path, line, reason):
    dataset = open_dataset(write_yolo(tmp_path, f"{line}\n1 {POLYGON}\n"), "train")
    (message,) = messages(dataset.problems, "error")
    assert message.startswith("line 1: ")
    assert reason in message
    assert [a.label for a in dataset.records[0].annotations] == [1]


def test_a_broken_image_is_left_out(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}")
    (tmp_path / "images/train/b.png").write_text("no image")
    dataset = open_dataset(tmp_path, "train")
    assert [r.path.name for r in dataset.records] == ["a.png"]
    assert "not an image" in messages(dataset.problems, "error")[0]


def test_splits(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}")
    assert find_splits(tmp_path) == find_splits(tmp_path / "data.yaml") == ["train", "val"]
    train, val = open_splits(tmp_path / "data.yaml")
    assert [len(train), len(val), len(open_dataset(tmp_path))] == [2, 1, 3]


def test_names_as_numbered_entries_and_a_root_of_another_machine(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}", names={1: "dog", 0: "cat"}, path="/somewhere/else")
    assert open_dataset(tmp_path, "train").categories.names == ("cat", "dog")


def test_roboflow_layout(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / split / "images" / "a.png")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text(f"0 {POLYGON}")
    content = {"train": "../train/images", "val": "../valid/images", "nc": 1, "names": ["cat"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    train, val = open_splits(tmp_path)
    assert [len(d.records[0].annotations) for d in (train, val)] == [1, 1]
    assert train.problems == val.problems == []


def test_list_of_images(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}", train="train.txt")
    (tmp_path / "train.txt").write_text("./images/train/a.png\nimages/train/nowhere.png\n")
    dataset = open_dataset(tmp_path, "train")
    assert [r.path.name for r in dataset.records] == ["a.png"]
    assert dataset.problems[0].record == "images/train/nowhere.png"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": {0: "cat", 2: "dog"}}, "without a gap"),
        ({"names": []}, "lists no class"),
        ({"train": "nowhere"}, "train points to nowhere"),
        ({"names": {0: "cat", "x": "dog"}}, "without a gap"),
        ({"train": "images/train/a.png"}, "neither a folder nor a list"),
    ],
)
def test_an_unusable_yaml_is_one_clear_error(tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason):
        open_dataset(write_yolo(tmp_path, "", **changes), "train")


def test_broken_yaml(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [cat")
    with pytest.raises(DataError, match="yaml"):
        open_dataset(tmp_path)


def test_labels_beside_the_images(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}")
    (tmp_path / "images/train/b.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5")
    assert [len(r.annotations) for r in open_dataset(tmp_path, "train").records] == [1, 2]


def test_another_yaml_file_does_no_harm(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}")
    (tmp_path / "data.yaml").rename(tmp_path / "pets.yaml")
    (tmp_path / "broken.yaml").write_text("[")
    assert len(open_dataset(tmp_path, "train")) == 2


@given(st.text(alphabet="0123456789.-+einfa \t", max_size=60).filter(str.strip))
def test_no_line_does_more_than_raise_value_error(line):
    try:
        found = _object(line, SIZE, 3, lambda text: None)
    except ValueError:
        return
    assert found.box is not None
    assert found.box[2] > found.box[0]
    assert 0 <= found.label < 3


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_costs_no_object(tmp_path, end):
    write_yolo(tmp_path, "")
    labels = tmp_path / "labels/train/a.txt"
    labels.write_bytes(b"\xef\xbb\xbf" + end.join(["0 0.5 0.5 0.5 0.5", f"1 {POLYGON}"]).encode())
    yaml = tmp_path / "data.yaml"
    yaml.write_bytes(b"\xef\xbb\xbf" + yaml.read_bytes())
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.records[0].annotations) == 2
    assert not [p for p in dataset.problems if p.level == "error"]


def test_names_are_what_is_written(tmp_path):
    write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5")
    for names in ("[no, 1.0, 007]", "{0: no, 1: 1.0, 2: 007}"):
        (tmp_path / "data.yaml").write_text(f"names: {names}\ntrain: images/train\nval:\ntest: null\n")
        dataset = open_dataset(tmp_path)
        assert dataset.categories.names == ("no", "1.0", "007")
        assert find_splits(tmp_path) == ["train"]


def test_aliases_do_not_fill_the_memory(tmp_path):
    write_yolo(tmp_path, "")
    rows = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    rows += [f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise("abcdefghi")]
    (tmp_path / "data.yaml").write_text("\n".join([*rows, "train: images/train", "names: *i"]))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"data\.yaml: has more than"):
        open_dataset(tmp_path / "data.yaml")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["names: [[a]]", "names: ['']", "names: [a]\ntrain: {a: b}", "names: [a]\npath: [[b]]"]
)
def test_values_of_another_kind_are_one_clear_error(tmp_path, text):
    write_yolo(tmp_path, "")
    (tmp_path / "data.yaml").write_text(f"train: images/train\n{text}" if "train" not in text else text)
    with pytest.raises(DataError, match=r"data\.yaml: (class 0 of names|train is neither|path is neither)"):
        open_dataset(tmp_path)


def test_oriented_boxes_are_said(tmp_path):
    # ten rectangles, turned by 30 degrees in pixels, and the same ones upright
    for angle, warned in ((30, 1), (0, 0)):
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        corners = np.array([[-8, -4], [8, -4], [8, 4], [-8, 4]]) @ [[cos, sin], [-sin, cos]]
        lines = [
            f"0 {' '.join(map(str, ((corners + np.array([20 + i, 20])) / SIZE[::-1]).ravel()))}" for i in range(10)
        ]
        write_yolo(tmp_path / str(angle), "\n".join(lines))
        dataset = open_dataset(tmp_path / str(angle), "train")
        assert sum("oriented boxes" in p.message for p in dataset.problems) == warned


def test_a_line_of_a_pose_is_a_box_and_keypoints(tmp_path):
    """Which would be a polygon of five points otherwise."""
    write_yolo(tmp_path, "1 0.5 0.25 0.5 0.5 0.3 0.1 0.4 0.2 0.5 0.3\n0 0.5 0.5 0.1 0.1 0.5 0.5\n", kpt_shape=[3, 2])
    dataset = open_dataset(tmp_path, "train")
    (found,) = dataset.records[0].annotations
    assert (found.label, found.box, found.segmentation) == (1, (15, 0, 45, 20), None)
    assert "keypoints, which are not read" in messages(dataset.problems, "warning")[0]
    assert "line 2: 7 values; a box has 5, and by kpt_shape its keypoints 6" in messages(dataset.problems, "error")
    with pytest.raises(DataError, match="kpt_shape is not"):
        open_dataset(write_yolo(tmp_path, "", kpt_shape=[17]), "train")


def test_as_many_classes_as_it_says(tmp_path):
    write_yolo(tmp_path, f"1 {POLYGON}", nc=2)
    assert len(open_dataset(tmp_path, "train")) == 2
    with pytest.raises(DataError, match="nc is 3, but names lists 2 classes"):
        open_dataset(write_yolo(tmp_path, "", nc=3), "train")


@pytest.mark.parametrize(
    "line",
    [
        "images/train/a.png",
        "./images/train/a.png",
        "images\\train\\a.png",
        "C:\\data\\pets\\images\\train\\a.png",
        "/content/pets/images/train/a.png",
        "data/images/train/a.png",  # CVAT's Ultralytics YOLO
    ],
)
def test_a_list_of_another_machine(tmp_path, line):
    write_yolo(tmp_path, f"1 {POLYGON}", train="lists\\train.txt", path="D:\\pets")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text(f"{line}\n{line}\n")
    dataset = open_dataset(tmp_path, "train")
    assert [(r.path.name, len(r.annotations)) for r in dataset.records] == [("a.png", 1)]
    assert dataset.problems == []


def test_an_image_whose_labels_cannot_be_read_is_none_without_objects(tmp_path):
    write_yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels/train/b.txt").write_bytes("0 0.5 0.5 0.5 0.5\n".encode("utf-16-le"))
    dataset = open_dataset(tmp_path, "train")
    assert [r.path.name for r in dataset.records] == ["a.png"]
    assert "is not a text file; check the path; its image is left out" in messages(dataset.problems, "error")[0]
