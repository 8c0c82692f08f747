import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.errors import DataError
from tests.data.written import JSON, SIZE, areas, messages, pixels, places, spoil, write_image, write_json

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
BLOCK = [[40, 5], [50, 5], [50, 20], [40, 20]]


def shape(label: Any = "cat", points: Any = SQUARE, kind: str = "polygon", group: int | None = None, **flags) -> dict:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": flags}


def write_labelme(folder: Path, name: str, *shapes: Any, **changes) -> Path:
    write_image(folder / f"{name}.png", sum(map(ord, name)))
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": f"{name}.png", "imageData": None}
    return write_json(folder / f"{name}.json", content | {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | changes)


def test_shapes(tmp_path):
    write_labelme(
        tmp_path,
        "a",
        shape("dog"),
        shape("cat", [[5, 30], [15, 20]], "rectangle"),
        shape("cat", [[30, 20], [40, 20]], "circle"),
        shape("dog", SQUARE, group=3),
        shape("dog", BLOCK, group=3),
        shape("cat", [[5, 30], [15, 20]], "rectangle", box_only=True),
        shape("cat", SQUARE, crowd=True),
    )
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.categories.names, dataset.categories.ids) == ("labelme", ("cat", "dog"), (1, 2))
    assert dataset.problems == []
    found = dataset.records[0].annotations
    assert [a.label for a in found] == [1, 0, 0, 1, 0, 0]
    assert [a.id for a in found] == [1, 2, 3, 4, 5, 6]
    found_areas = areas(found)
    assert found_areas[0] == 400
    assert found_areas[1] == 100
    assert found_areas[2] == pytest.approx(math.pi * 100, rel=0.02)
    assert found_areas[3] == 400 + 150
    assert found_areas[4] is None
    assert found[3].box == (10, 5, 50, 30)
    assert found[4].box == (5, 20, 15, 30)
    assert [a.crowd for a in found] == [False] * 5 + [True]


def test_one_group_number_of_two_labels_is_two_objects(tmp_path):
    write_labelme(tmp_path, "a", shape("cat", SQUARE, group=1), shape("dog", BLOCK, group=1))
    assert len(open_dataset(tmp_path).records[0].annotations) == 2


def test_splits_share_their_classes(tmp_path):
    write_labelme(tmp_path / "train", "a", shape("dog"))
    write_labelme(tmp_path / "val", "b", shape("ant"))
    write_labelme(tmp_path / "val", "c")
    assert find_splits(tmp_path) == ["train", "val"]
    train, val = open_splits(tmp_path)
    assert train.categories == val.categories
    assert train.categories.names == ("ant", "dog")
    assert [len(train), len(val), len(open_dataset(tmp_path))] == [1, 2, 3]
    with pytest.raises(DataError, match="no test split"):
        open_dataset(tmp_path, "test")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (shape("cat", [[1, 1], [5, 5]]), "2 points"),
        (shape("cat", [[1, 1], [5, 5]], "line"), "a line of 2 points is not a region"),
        (shape("cat", [[1, 1]], "point"), "not a region"),
        (shape("cat", [[1, 1]], "circle"), "not a region"),
        (shape("cat", [[1, 1], [float("nan"), 5], [9, 9]]), "no numbers"),
        (shape("cat", [[70, 1], [80, 1], [75, 9]]), "outside"),
        (shape("cat", [1, 2, 3]), "shape 1"),
        (shape(""), "no label"),
        ("text", "no label"),
    ],
)
def test_a_bad_shape_is_left_out_and_named(tmp_path, bad, reason):
    write_labelme(tmp_path, "a", bad, shape("dog"))
    dataset = open_dataset(tmp_path)
    (message,) = messages(dataset.problems, "error")
    assert message.startswith("shape 1: ")
    assert reason in message
    assert len(dataset.records[0].annotations) == 1


def test_files_that_cannot_be_used(tmp_path):
    write_labelme(tmp_path, "a", shape())
    write_labelme(tmp_path, "b", shape(), imagePath="..\\images\\b.png")  # beside the json all the same
    write_labelme(tmp_path, "c", shape(), imageHeight=None)
    write_labelme(tmp_path, "d", shape())
    (tmp_path / "d.png").unlink()
    (tmp_path / "e.json").write_text("{")
    write_json(tmp_path / "f.json", {"no": "shapes"})
    write_image(tmp_path / "g.png")
    dataset = open_dataset(tmp_path)
    assert [(r.path.name, r.size) for r in dataset.records] == [(f"{n}.png", SIZE) for n in "abc"]
    errors = {Path(p.file).name: p.message for p in dataset.problems if p.level == "error"}
    assert errors.keys() == {"d.json", "e.json", "f.json"}
    assert "'d.png' does not exist" in errors["d.json"]
    assert "1 images have no json" in messages(dataset.problems, "warning")[0]


def test_nothing_that_is_known(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    for part in (str(tmp_path), "COCO: annotations.json", "YOLO: data.yaml", "Pascal VOC: ", "LabelMe: "):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"neither a COCO .json nor"):
        open_dataset(tmp_path / "a.png")


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_one_value_is_reading_gives_a_data_set_or_a_clear_error(tmp_path, data):
    file = write_labelme(tmp_path, "a", shape(), shape("dog", [[5, 30], [15, 20]], "rectangle", 3, box_only=True))
    write_labelme(tmp_path, "b")
    content = json.loads(file.read_text())
    write_json(file, spoil(content, data.draw(st.sampled_from(places(content))), data.draw(JSON)))
    dataset = open_dataset(tmp_path)
    assert len(dataset) + len(messages(dataset.problems, "error")) >= 2
    json.dumps(dataset.coco())


def mask_shape(pixels: np.ndarray, left: int, top: int, label: str = "cat", group: Any = None) -> dict:
    """As LabelMe writes a mask of pixels: a PNG of its box, whose last row and column are included."""
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).save(out, "PNG")
    corners = [[left, top], [left + pixels.shape[1] - 1, top + pixels.shape[0] - 1]]
    text = base64.b64encode(out.getvalue()).decode()
    return shape(label, corners, "mask", group) | {"mask": text}


def test_masks_of_pixels(tmp_path):
    drawn = np.random.default_rng(0).random((12, 17)) < 0.5
    parts = [mask_shape(drawn, 30, 20, "dog", 1), shape("dog", BLOCK, group=1)]
    write_labelme(tmp_path, "a", mask_shape(drawn, 5, 7), *parts)
    dataset = open_dataset(tmp_path)
    assert dataset.problems == []
    cat, dog = dataset.records[0].annotations
    expected = np.zeros(SIZE, bool)
    expected[7:19, 5:22] = drawn
    assert np.array_equal(pixels(cat), expected)
    assert int(pixels(dog).sum()) == drawn.sum() + 150


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": None}, "not a PNG"),
        ({"mask": "!!"}, "not a PNG"),
        ({"mask": base64.b64encode(b"cat").decode()}, "not a PNG"),
        ({"mask": 7}, "not a PNG"),
        ({"points": []}, "two corners"),
        ({"points": [[1e99, 0], [1, 1]]}, "two corners"),
        ({"points": [[500, 500], [501, 501]]}, "covers no pixel"),
        ({"points": [["a", 0], [1, 1]]}, "no number: 'a'"),
        ({"points": [[0, 0, 0], [1, 1]]}, r"list of \[x, y\]"),
    ],
)
def test_masks_that_cannot_be_read(tmp_path, change, reason):
    write_labelme(tmp_path, "a", mask_shape(np.ones((4, 4), bool), 5, 5) | change, shape("dog"))
    dataset = open_dataset(tmp_path)
    assert len(dataset.records[0].annotations) == 1
    (message,) = messages(dataset.problems, "error")
    assert re.search(reason, message), message


@pytest.mark.parametrize(("left", "top"), [(-3, -2), (55, 35), (-3, 36)])
def test_a_mask_over_the_border_is_cut(tmp_path, left, top):
    write_labelme(tmp_path, "a", mask_shape(np.ones((8, 8), bool), left, top))
    dataset = open_dataset(tmp_path)
    expected = np.zeros((60, 80), bool)
    expected[top + 10 : top + 18, left + 10 : left + 18] = True
    assert np.array_equal(pixels(dataset.records[0].annotations[0]), expected[10:50, 10:70])
    assert "crosses the border" in messages(dataset.problems, "warning")[0]


def test_an_empty_group_is_none(tmp_path):
    write_labelme(tmp_path, "a", shape("cat") | {"group_id": ""}, shape("cat", BLOCK) | {"group_id": ""})
    assert len(open_dataset(tmp_path).records[0].annotations) == 2


@pytest.mark.parametrize("name", ["test", "train", "val", "annotations", "result"])
def test_an_image_may_be_called_as_a_split(tmp_path, name):
    write_labelme(tmp_path, "car", shape("cat"))
    write_labelme(tmp_path, name, shape("cat"))
    dataset = open_dataset(tmp_path)
    assert (dataset.format, len(dataset)) == ("labelme", 2)


def test_what_lies_beside_the_splits_is_said(tmp_path):
    for folder, name in (("train", "a"), ("val", "b"), (".", "c")):
        write_labelme(tmp_path / folder, name, shape())
    assert len(open_dataset(tmp_path)) == 3
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset) == 1
    assert "1 images are in no split" in messages(dataset.problems, "warning")[0]
