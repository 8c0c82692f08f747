"""xml beside the images: LabelImg's and Roboflow's Pascal VOC."""

import shutil
from pathlib import Path

import pytest

from maskkit.data import find_splits, open_dataset
from maskkit.data.convert import convert
from maskkit.data.formats import labelimg
from maskkit.errors import DataError
from tests.data.written import messages, object_row, write_coco, write_image


def xml(*objects: tuple[str, int, int, int, int], name: str = "a.png", size: tuple[int, int] = (60, 40)) -> str:
    parts = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    about = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>\n<folder>x</folder><filename>{name}</filename>{about}{parts}</annotation>"


def test_boxes_count_from_one_and_classes_are_of_all_files(tmp_path: Path) -> None:
    for name in ("straße 猫.png", "b.png", "c.png", "unlabelled.png"):
        write_image(tmp_path / name)
    (tmp_path / "straße 猫.xml").write_text(xml(("dog", 6, 7, 25, 30), ("cat", 1, 1, 60, 40)), encoding="utf-8")
    (tmp_path / "b.xml").write_text(xml())
    (tmp_path / "other.xml").write_text(xml(("dog", 60, 40, 60, 40), name="c.png"))
    data = open_dataset(tmp_path)
    assert (data.format, data.categories.names, find_splits(tmp_path)) == ("labelimg", ("cat", "dog"), [])
    boxes = {r.path.name: [(a.label, a.box) for a in r.annotations] for r in data.records}
    assert boxes == {
        "straße 猫.png": [(1, (5, 6, 25, 30)), (0, (0, 0, 60, 40))],
        "b.png": [],
        "c.png": [(1, (59, 39, 60, 40))],  # one pixel
    }
    assert all(a.segmentation is None for r in data.records for a in r.annotations)
    assert messages(data.problems, "error") == []
    assert messages(data.problems, "warning") == [
        ": 1 images have no xml; they are left out, because they may be unlabelled"
    ]


def test_splits_are_folders(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("valid", "c")):
        write_image(tmp_path / split / f"{name}.png", ord(name))
        (tmp_path / split / f"{name}.xml").write_text(xml((name, 2, 2, 9, 9)))
    assert find_splits(tmp_path) == ["train", "val"]
    assert open_dataset(tmp_path, "val").categories.names == ("a", "b", "c")
    assert [r.path.name for r in open_dataset(tmp_path, "val").records] == ["c.png"]
    assert len(open_dataset(tmp_path)) == 3
    with pytest.raises(DataError, match="has no test split"):
        labelimg.read(tmp_path, "test")


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(xml(("dog", 9, 9, 3, 3), ("", 1, 1, 9, 9), ("dog", 2, 2, 9, 9)))
    (tmp_path / "again.xml").write_text(xml(("dog", 2, 2, 9, 9)))
    (tmp_path / "gone.xml").write_text(xml(name="gone.png"))
    (tmp_path / "broken.xml").write_text("<annotation><object>")
    (tmp_path / "feed.xml").write_text("<rss/>")
    data = open_dataset(tmp_path)
    assert [len(r.annotations) for r in data.records] == [1]
    said = " ".join(str(p) for p in data.problems)
    for text in ("object 1", "object 2", "as a.xml does", "no such image beside it", "broken.xml: is not xml"):
        assert text in said
    assert "feed.xml" not in said


def test_the_boxes_of_a_conversion_to_voc_are_the_same_beside_the_images(tmp_path: Path) -> None:
    """VOC's own writer is the other side: its images and xml files, put into one folder."""
    rows = [object_row(1, segmentation=[], bbox=[3.5, 4, 20.25, 9]), object_row(2, 1, segmentation=[], category_id=7)]
    file = write_coco(tmp_path / "src" / "a.json", [*rows, object_row(3, 2, segmentation=[], bbox=[0, 0, 60, 40])])
    convert(file, tmp_path / "voc", "voc")
    beside = tmp_path / "beside"
    shutil.copytree(tmp_path / "voc" / "JPEGImages", beside)
    shutil.copytree(tmp_path / "voc" / "Annotations", beside, dirs_exist_ok=True)
    before, after = open_dataset(file), open_dataset(beside)
    for old, new in zip(before.records, after.records, strict=True):
        assert [(before.categories.names[a.label], a.box) for a in old.annotations] == [
            (after.categories.names[a.label], a.box) for a in new.annotations
        ]
