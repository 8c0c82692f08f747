"""Files as labelling tools write them, and what is wrong with some."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskkit.data import find_splits, open_dataset
from maskkit.data.convert.labelstudio import pack
from maskkit.data.formats.labelstudio import unpack
from maskkit.errors import DataError
from tests.data.formats.samples import SAMPLES, SIZE
from tests.data.written import areas, messages, outlines, pixels, spoil, write_image, write_json


def _edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    file.write_text(text)


def test_cvat(tmp_path: Path) -> None:
    SAMPLES["cvat"](tmp_path)
    dataset = open_dataset(tmp_path)
    assert [(r.image_id, r.path.parent.name) for r in dataset.records] == [(0, "train"), (1, "train"), (2, "val")]
    both, box, mask, ellipse = dataset.records[0].annotations
    assert len(outlines(both)) == 2  # shapes of one group
    assert box.segmentation is None
    assert mask.crowd
    # row by row in the box 4 wide and 3 high at (4, 5): two of background, three, one, six
    expected = np.zeros(SIZE, bool)
    expected[5:8, 4:8] = [[False, False, True, True], [True, False, True, True], [True] * 4]
    assert np.array_equal(pixels(mask, SIZE), expected)
    assert areas([ellipse]) == [pytest.approx(6 * np.pi, abs=3)]
    warnings = messages(dataset.problems, "warning")
    assert sum("turned by 10 degrees" in w for w in warnings) == 3
    assert "3 tags of whole images" in warnings[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('rle="2, 3, 1, 6"', 'rle="2, 3, 1, 7"'), "add up to 13 pixels, the box has 12"),
        (('rle="2, 3, 1, 6"', 'rle="-2, 3, 5, 6"'), "no whole numbers"),
        (('rle="2, 3, 1, 6"', 'rle="12"'), "covers no pixel"),
        (('left="4"', 'left="-90"'), "covers no pixel"),
        (('width="4"', 'width="4000"'), "the mask is 4000 x 3 pixels, the image 16 x 12"),
        (('<polygon label="cat" points="2,2', '<polygon label="" points="2,2'), "name its class"),
        (('points="2,2;', 'points="2;'), "x and one for y"),
        (('xtl="1"', 'xtl="one"'), "no number"),
        (('xtl="1"', ""), "has no xtl"),
        (("<ellipse", "<polyline"), "is a polyline, which is not a region"),
        (("<ellipse", "<hexagon"), "is a hexagon, which is not a region"),
    ],
)
def test_a_bad_shape_of_cvat_is_named_and_the_rest_is_read(tmp_path: Path, change: Any, reason: str) -> None:
    SAMPLES["cvat"](tmp_path)
    _edit(tmp_path / "annotations.xml", change)
    dataset = open_dataset(tmp_path)
    found = messages(dataset.problems, "error") + messages(dataset.problems, "warning")
    assert sum(reason in message for message in found) == 3
    assert all(message.startswith("image ") for message in messages(dataset.problems, "error"))
    assert all(len(r.annotations) >= 3 for r in dataset.records)


def test_cvat_for_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotations><version>1.1</version><track id='0' label='cat'/></annotations>")
    with pytest.raises(DataError, match=r"a\.xml: is CVAT for video"):
        open_dataset(tmp_path)


def test_tracks_of_cvat_beside_images_are_counted(tmp_path: Path) -> None:
    SAMPLES["cvat"](tmp_path)
    _edit(tmp_path / "annotations.xml", ("</annotations>", "<track id='0' label='cat'/></annotations>"))
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 3
    assert messages(dataset.problems, "error") == [": 1 track is left out; export it as CVAT for images 1.1"]


def test_an_unknown_subset_is_in_no_split(tmp_path: Path) -> None:
    SAMPLES["cvat"](tmp_path)
    _edit(tmp_path / "annotations.xml", ('name="b.jpg" subset="train"', 'name="b.jpg" subset="Default"'))
    (tmp_path / "images/Default").mkdir()
    (tmp_path / "images/train/b.jpg").rename(tmp_path / "images/Default/b.jpg")
    assert find_splits(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path, "train")
    assert [r.path.name for r in dataset.records] == ["a.jpg"]
    assert "1 images are in no split" in messages(dataset.problems, "warning")[0]
    assert len(open_dataset(tmp_path)) == 3


def test_labelstudio(tmp_path: Path) -> None:
    SAMPLES["labelstudio"](tmp_path)
    dataset = open_dataset(tmp_path)
    assert [r.path.name for r in dataset.records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert dataset.categories.names == ("dog", "cat")  # the order of the labelling interface
    polygon, brush, box, ellipse = dataset.records[0].annotations
    assert polygon.box == (1.6, 1.2, 9.6, 8.4)
    assert brush.crowd
    assert np.argwhere(pixels(brush, SIZE)).min(0).tolist() == [2, 3]
    assert box.segmentation is None
    assert areas([brush, ellipse]) == [18, pytest.approx(np.pi * 1.92 * 3.6, abs=4)]


def test_run_lengths_of_a_brush() -> None:
    """Five values in the words of the format, made by hand: 3 times 7, then 9 and 1 one by one."""
    text = f"{5:032b}" + f"{7:05b}" + "0010001101111111"
    text += f"100{2:03b}{7:08b}" + f"001{1:04b}{9:08b}{1:08b}"
    text += "0" * (-len(text) % 8)
    packed = np.packbits(np.array([int(bit) for bit in text], np.uint8))
    assert unpack(packed, 5) == [(0, 3, 7), (3, 4, 9), (4, 5, 1)]
    for part, reason in ((packed[:6], "end too early"), (packed, "are of 5 values")):
        with pytest.raises(ValueError, match=reason):
            unpack(part, 5 if part is not packed else 6)


def test_a_brush_begins_as_those_of_label_studio_do() -> None:
    """The first bytes of a published export, of an image of 3332 x 2527 pixels whose upper rows are empty.

    Source: https://huggingface.co/datasets/alkzar90/cell_benchmark
    """
    published = [2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240]
    assert pack(np.zeros((2527, 3332), bool))[: len(published)] == published


@pytest.mark.parametrize("seed", range(4))
def test_any_brush_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((40, 500)) < (0.5, 0.001, 0, 1)[seed]
    runs = unpack(np.array(pack(mask), np.uint8), 4 * mask.size)
    flat = np.zeros(4 * mask.size, np.uint8)
    for start, end, value in runs:
        flat[start:end] = value
    assert np.array_equal(flat.reshape(40, 500, 4)[..., 3] > 0, mask)


def test_tasks_without_an_annotation_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 1)
    write_image(tmp_path / "c.png", 2)
    region = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["cat"]}}
    tasks = [
        {"id": 1, "data": {"image": "s3://bucket/a.png"}, "annotations": [{"result": []}]},
        {"id": 2, "data": {"image": "b.png"}, "annotations": [{"result": [region], "was_cancelled": True}]},
        {
            "id": 3,
            "data": {"img": "http://host/c.png"},
            "annotations": [{"result": [region]}, {"result": [region] * 2}],
        },
    ]
    dataset = open_dataset(write_json(tmp_path / "export.json", tasks))
    assert [(r.image_id, len(r.annotations)) for r in dataset.records] == [(1, 0), (3, 1)]
    found = messages(dataset.problems, "warning")
    assert "has 2 annotations; the first is read" in found[0]
    assert "1 tasks have no annotation" in found[1]


def test_a_task_of_several_images_is_named(tmp_path: Path) -> None:
    """Which image a region is on is in the labelling interface alone, which need not be there."""
    SAMPLES["labelstudio"](tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    content[0]["annotations"][0]["result"][0]["to_name"] = None
    assert len(open_dataset(write_json(tmp_path / "val.json", content)).records) == 1
    content[0]["annotations"][0]["result"][1]["to_name"] = "other"
    write_json(tmp_path / "val.json", content)
    dataset = open_dataset(tmp_path)
    assert [r.path.name for r in dataset.records] == ["a.jpg", "b.jpg"]
    (message,) = messages(dataset.problems, "error")
    assert "has regions of several images (image, other)" in message


def test_via(tmp_path: Path) -> None:
    SAMPLES["via"](tmp_path)
    dataset = open_dataset(tmp_path, "train")
    assert dataset.categories.names == ("dog", "cat")  # the order of the project
    both, box, circle, ellipse = dataset.records[0].annotations
    assert len(outlines(both)) == 2
    assert (box.box, box.crowd) == ((1, 1.5, 5, 6.5), True)
    assert areas([circle, ellipse]) == [pytest.approx(9 * np.pi, abs=4), pytest.approx(6 * np.pi, abs=4)]


def test_via_of_other_versions(tmp_path: Path) -> None:
    SAMPLES["via_of_version_3"](tmp_path / "3")
    third = open_dataset(tmp_path / "3")
    assert third.categories.names == ("cat", "dog")
    assert [len(r.annotations) for r in third.records] == [4, 4]
    shape = {"name": "polygon", "all_points_x": [2, 9, 9], "all_points_y": [2, 2, 8]}
    region = {"shape_attributes": shape, "region_attributes": {}}
    write_image(tmp_path / "1" / "train" / "a.png")
    row = {"fileref": "", "size": 9, "filename": "a.png", "regions": {"0": region}, "file_attributes": {}}
    write_json(tmp_path / "1" / "train" / "via_region_data.json", {"a.png9": row})
    first = open_dataset(tmp_path / "1", "train")
    assert (first.categories.names, areas(first.records[0].annotations)) == (("object",), [pytest.approx(21, abs=2)])


def test_shapes_of_via_by_points_on_their_border(tmp_path: Path) -> None:
    SAMPLES["via_of_version_3"](tmp_path)
    content = json.loads((tmp_path / "project.json").read_text())
    content["attribute"]["1"]["type"] = 2  # boxes to tick
    for name, xy in (
        ("1_0", [8, 5, 1, 9, 3, 4, 8, 2, 2]),
        ("1_1", [9, 4, 6, 8, 2, 12, 6]),
        ("1_2", [9, 1, 1, 2, 2, 3, 3]),
    ):
        content["metadata"][name] |= {"xy": xy, "av": {"1": "1,0"}}
    write_json(tmp_path / "project.json", content)
    dataset = open_dataset(tmp_path)
    assert dataset.categories.names == ("cat", "dog")
    box, circle, _ = dataset.records[0].annotations
    assert (box.label, box.box, box.segmentation) == (1, (2, 1, 9, 8), None)
    assert circle.box == pytest.approx((4, 2, 12, 10))
    assert "are on one line" in messages(dataset.problems, "error")[0]
    assert sum("has several classes ticked" in message for message in messages(dataset.problems, "warning")) == 3


def test_datumaro(tmp_path: Path) -> None:
    SAMPLES["datumaro"](tmp_path)
    dataset = open_dataset(tmp_path, "train")
    assert [r.image_id for r in dataset.records] == ["a", "b"]
    polygon, box, mask, ellipse = dataset.records[0].annotations  # a box of a group with a mask is no other object
    assert (box.box, box.segmentation) == ((1, 1.5, 5, 6.5), None)
    assert areas([polygon, mask]) == [42, 7]
    assert ellipse.label == 1


def test_a_group_of_datumaro_is_of_one_class(tmp_path: Path) -> None:
    """CVAT's groups join what belongs together, as a rider and a horse."""
    SAMPLES["datumaro"](tmp_path)
    file = tmp_path / "annotations/val.json"
    file.write_text(json.dumps(spoil(json.loads(file.read_text()), ("items", 0, "annotations", 1, "label_id"), 1)))
    boxes = [a.box for a in open_dataset(tmp_path, "val").records[0].annotations if a.segmentation is None]
    assert boxes == [(2, 2, 9, 8), (1, 1.5, 5, 6.5)]


TURNED = {
    "coco": ("val.json", '"segmentation": [[2, 2, 9, 2, 9, 8, 2, 8]]', '"attributes": {"rotation": 90.0}'),
    "datumaro": (
        "annotations/val.json",
        '"group": 1, "bbox": [2, 2, 7, 6]',
        '"group": 0, "bbox": [2, 2, 7, 6], "attributes": {"rotation": 90}',
    ),
    "voc": (
        "Annotations/d.xml",
        "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>",
        "<xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox><attributes><attribute><name>rotation</name>"
        "<value>90.0</value></attribute></attributes>",
    ),
}
"""Where CVAT says by how much a box of 7 x 6 pixels at (2, 2) is turned about its centre."""


@pytest.mark.parametrize("name", TURNED)
def test_boxes_that_cvat_turns_in_other_formats(tmp_path: Path, name: str) -> None:
    SAMPLES[name](tmp_path)
    file, *change = TURNED[name]
    _edit(tmp_path / file, (change[0], change[1]))
    dataset = open_dataset(tmp_path, "val")
    assert any(a.box == pytest.approx((2.5, 1.5, 8.5, 8.5)) for a in dataset.records[0].annotations)
    assert sum("is a box turned by 90 degrees" in m for m in messages(dataset.problems, "warning")) == 1


def test_supervisely(tmp_path: Path) -> None:
    SAMPLES["supervisely"](tmp_path)
    dataset = open_dataset(tmp_path)
    assert [(r.image_id, r.path.name) for r in dataset.records] == [("a", "a.jpg"), ("b", "b.jpg"), ("c", "c.jpg")]
    polygon, bitmap, box = dataset.records[0].annotations
    assert areas([polygon, bitmap, box]) == [70 - 12, 20, None]
    assert (box.box, box.crowd) == ((1, 2, 5, 6), True)
    write_image(tmp_path / "train" / "img" / "new.png", 3, SIZE)
    assert "1 images have no json" in messages(open_dataset(tmp_path).problems, "warning")[0]


@pytest.mark.parametrize(
    ("name", "file", "place", "value", "reason"),
    [
        ("labelstudio", "val.json", (0, "annotations", 0, "result", 1, "value", "rle"), [0, 0, 3, 0], "too early"),
        ("labelstudio", "val.json", (0, "annotations", 0, "result", 0, "image_rotation"), 90, "turned image"),
        (
            "labelstudio",
            "val.json",
            (0, "annotations", 0, "result", 0, "value", "points"),
            [[1]],
            "not a list of [x, y]",
        ),
        ("labelstudio", "val.json", (0, "annotations", 0, "result", 0, "type"), "keypointlabels", "is a keypoint"),
        ("labelstudio", "val.json", (0, "annotations", 0, "result", 0, "type"), "cuboid", "is a cuboid"),
        ("labelstudio", "val.json", (0, "annotations", 0, "result", 0, "type"), ["x"], "is a ['x'], which is not read"),
        ("via", "val/via.json", ("_via_img_metadata", "c.jpg77", "regions", 3, "shape_attributes", "r"), 0, "radii 0"),
        ("via", "val/via.json", ("_via_img_metadata", "c.jpg77", "regions", 3), 7, "without shape_attributes"),
        ("datumaro", "annotations/val.json", ("items", 0, "annotations", 2, "type"), "tripod", "is a tripod"),
        ("datumaro", "annotations/val.json", ("items", 0, "annotations", 2, "label_id"), 9, "one of the 2 classes"),
        ("datumaro", "annotations/val.json", ("items", 0, "annotations", 2, "bbox"), [1], "has 1 numbers, not four"),
        ("supervisely", "val/ann/c.jpg.json", ("objects", 1, "bitmap", "data"), "eJw=", "not a PNG in zlib and base64"),
        ("supervisely", "val/ann/c.jpg.json", ("objects", 1, "geometryType"), "point", "is a point"),
    ],
)
def test_a_bad_shape_is_named_and_the_rest_is_read(
    tmp_path: Path, name: str, file: str, place: tuple[Any, ...], value: Any, reason: str
) -> None:
    SAMPLES[name](tmp_path)
    before = [len(r.annotations) for r in open_dataset(tmp_path).records]
    path = tmp_path / file
    path.write_text(json.dumps(spoil(json.loads(path.read_text()), place, value)))
    dataset = open_dataset(tmp_path)
    (message,) = messages(dataset.problems, "error")
    assert reason in message
    assert [len(r.annotations) for r in dataset.records] == [*before[:-1], before[-1] - 1]


def test_several_ticked_classes_of_via_are_said(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    shape = {"name": "rect", "x": 2, "y": 2, "width": 9, "height": 9}
    ticked = {"class": {"cat": True, "dog": True, "cow": False}}
    region = {"shape_attributes": shape, "region_attributes": ticked}
    row = {"filename": "a.png", "size": 9, "regions": [region], "file_attributes": {}}
    dataset = open_dataset(write_json(tmp_path / "via.json", {"a.png9": row}))
    assert (dataset.categories.names, len(dataset.records[0].annotations)) == (("cat",), 1)
    assert "region 1: has several classes ticked" in messages(dataset.problems, "warning")[0]


def test_a_class_that_meta_does_not_list_is_named(tmp_path: Path) -> None:
    SAMPLES["supervisely"](tmp_path)
    _edit(tmp_path / "val/ann/c.jpg.json", ('"classTitle": "cat"', '"classTitle": "cow"'))
    found = messages(open_dataset(tmp_path, "val").problems, "error")
    assert found
    assert all("the class 'cow' is not listed" in message for message in found)


def test_ids_that_are_there_twice_are_said(tmp_path: Path) -> None:
    SAMPLES["cvat"](tmp_path)
    _edit(tmp_path / "annotations.xml", ('<image id="1"', '<image id="0"'))
    dataset = open_dataset(tmp_path)
    assert [r.image_id for r in dataset.records] == [1, 2, 3]
    assert any("several images have one id" in message for message in messages(dataset.problems, "warning"))


def test_labels_of_whole_images_are_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    region = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["cat"]}}
    result = [region, {"type": "choices", "value": {"choices": ["sharp"]}}, {"type": "textarea", "value": {}}]
    tasks = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": result}]}]
    dataset = open_dataset(write_json(tmp_path / "export.json", tasks))
    assert len(dataset.records[0].annotations) == 1
    assert messages(dataset.problems, "warning") == [
        ": 1 labels of whole images are left out; masks and boxes are read"
    ]


@pytest.mark.parametrize(
    ("name", "file", "place", "message"),
    [
        ("supervisely", "val/ann/c.jpg.json", ("tags", 0, "name"), "1 tag of whole images left out"),
        ("labelme", "a.json", ("flags",), "1 image with flags of the whole image"),
    ],
)
def test_tags_of_whole_images_are_counted(
    tmp_path: Path, name: str, file: str, place: tuple[Any, ...], message: str
) -> None:
    SAMPLES[name](tmp_path)
    content = {"flags": {}} | json.loads((tmp_path / file).read_text())
    write_json(tmp_path / file, spoil(content, place, {"night": True} if place == ("flags",) else "night"))
    assert message in " ".join(messages(open_dataset(tmp_path).problems, "warning"))


def test_an_address_with_a_key_is_that_of_a_file(tmp_path: Path) -> None:
    SAMPLES["labelstudio"](tmp_path)
    _edit(tmp_path / "val.json", ("0a1b2c3d-c.jpg", "0a1b2c3d-c.jpg?X-Amz-Signature=1a%2Fb"))
    assert [r.path.name for r in open_dataset(tmp_path, "val").records] == ["c.jpg"]


def test_cvat_in_utf_16(tmp_path: Path) -> None:
    SAMPLES["cvat"](tmp_path)
    before = open_dataset(tmp_path)
    file = tmp_path / "annotations.xml"
    file.write_bytes(file.read_text().replace("utf-8", "utf-16").encode("utf-16"))
    assert open_dataset(tmp_path).coco() == before.coco()
    assert open_dataset(file).format == "cvat"


def test_regions_of_no_file_of_via_are_said(tmp_path: Path) -> None:
    SAMPLES["via_of_version_3"](tmp_path)
    content = json.loads((tmp_path / "project.json").read_text())
    content["view"]["1"]["fid_list"] = ["77"]
    write_json(tmp_path / "project.json", content)
    dataset = open_dataset(tmp_path)
    assert [len(r.annotations) for r in dataset.records] == [0, 4]
    assert messages(dataset.problems, "error") == ["file 77: has 4 regions and is not in the project; save it again"]


@pytest.mark.parametrize(("name", "file"), [("labelstudio", "val.json"), ("datumaro", "annotations/val.json")])
def test_a_split_that_is_something_else_does_not_vanish(tmp_path: Path, name: str, file: str) -> None:
    SAMPLES[name](tmp_path)
    write_json(tmp_path / file, {"something": "else"})
    assert find_splits(tmp_path) == ["train", "val"]
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2
    assert any(problem.level == "error" and problem.file.endswith(file) for problem in dataset.problems)
