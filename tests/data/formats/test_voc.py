from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.errors import DataError
from maskkit.zoo.class_names import VOC
from tests.data.written import SIZE, messages, pixels, write_image


def write_palette(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist())
    assert image.mode == "P"
    image.save(path)


def write_xml(path: Path, objects: list[tuple[str, tuple[float, float, float, float]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = ("xmin", "ymin", "xmax", "ymax")
    rows = [
        f"<object><name>{name}</name><difficult>1</difficult><bndbox>"
        + "".join(f"<{s}>{v}</{s}>" for s, v in zip(sides, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    ]
    path.write_text(f"<annotation>{''.join(rows)}</annotation>")


@pytest.fixture
def objects():
    values = np.zeros(SIZE, int)
    values[5:15, 5:25] = 1
    values[20:30, 30:50] = 2
    values[4, 5:25] = 255
    return values


@pytest.fixture
def folder(tmp_path, objects):
    """Image a with masks (a cat and a dog), b with boxes alone; a for training, b for validation."""
    classes = np.where(objects == 1, 8, np.where(objects == 2, 12, objects))
    classes[5, 5:10] = 255  # void and a few pixels of another class inside of the cat
    classes[6, 5:10] = 15
    for name in "ab":
        write_image(tmp_path / "JPEGImages" / f"{name}.png", ord(name))
    write_palette(tmp_path / "SegmentationObject" / "a.png", objects)
    write_palette(tmp_path / "SegmentationClass" / "a.png", classes)
    write_xml(tmp_path / "Annotations" / "b.xml", [("person", (1, 1, 60, 40)), ("dog", (11, 21, 20, 30))])
    for split, name in (("train", "a"), ("val", "b")):
        file = tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")
    return tmp_path


def test_masks_and_classes(folder, objects):
    dataset = open_dataset(folder, "train")
    assert (dataset.format, dataset.categories, dataset.problems) == ("voc", VOC, [])
    (record,) = dataset.records
    assert (record.image_id, record.size) == (1, SIZE)
    cat, dog = record.annotations
    assert [VOC.names[cat.label], VOC.names[dog.label], cat.crowd, dog.id] == ["cat", "dog", False, 2]
    assert np.array_equal(pixels(cat), objects == 1)
    assert np.array_equal(pixels(dog), objects == 2)
    assert dataset.load(0)[1].boxes.tolist() == [[5, 5, 25, 15], [30, 20, 50, 30]]


def test_boxes_count_from_one_and_difficult_is_no_crowd(folder):
    dataset = open_dataset(folder, "val")
    person, dog = dataset.records[0].annotations
    assert (person.box, dog.box) == ((0, 0, 60, 40), (10, 20, 20, 30))
    assert person.segmentation is None
    assert not person.crowd


def test_splits(folder):
    assert find_splits(folder) == ["train", "val"]
    assert [len(d) for d in open_splits(folder)] == [1, 1]
    assert len(open_dataset(folder)) == 2
    with pytest.raises(DataError, match="no test split"):
        open_dataset(folder, "test")


def test_lists_in_the_root_and_images_as_folder(folder):
    (folder / "ImageSets").rename(folder / "elsewhere")
    (folder / "JPEGImages").rename(folder / "images")
    assert len(open_dataset(folder)) == 2  # all that is labelled
    (folder / "train.txt").write_text("b\n")
    (folder / "val.txt").write_text("a\n")
    assert open_dataset(folder, "train").records[0].path.stem == "b"


def test_other_class_names(folder):
    write_xml(folder / "Annotations" / "b.xml", [("zebra", (1, 1, 60, 40)), ("ant", (11, 21, 20, 30))])
    dataset = open_dataset(folder, "val")
    assert (dataset.categories.names, dataset.categories.ids) == (("ant", "zebra"), (1, 2))
    assert [a.label for a in dataset.records[0].annotations] == [1, 0]
    (folder / "class_names.txt").write_text("__ignore__\n_background_\n" + "\n".join(f"c{i}" for i in range(1, 13)))
    assert [open_dataset(folder, "train").coco()["annotations"][i]["category_id"] for i in (0, 1)] == [8, 12]


def test_masks_that_cannot_be_used(folder, objects):
    write_palette(folder / "SegmentationClass" / "a.png", np.where(objects == 1, 90, np.where(objects == 2, 12, 0)))
    dataset = open_dataset(folder, "train")
    assert len(dataset.records[0].annotations) == 1
    assert "object 1: its class in SegmentationClass is 90" in messages(dataset.problems, "error")[0]
    write_palette(folder / "SegmentationClass" / "a.png", objects[:-1])
    assert "60 x 39 pixels, the image 60 x 40" in messages(open_dataset(folder, "train").problems, "error")[0]
    write_image(folder / "SegmentationClass" / "a.png")
    assert "colour image" in messages(open_dataset(folder, "train").problems, "error")[0]
    (folder / "SegmentationClass" / "a.png").write_bytes(b"")
    dataset = open_dataset(folder, "train")
    assert len(dataset) == 0
    assert "cannot be read" in messages(dataset.problems, "error")[0]


def test_xml_that_cannot_be_used(folder):
    write_xml(folder / "Annotations" / "b.xml", [("dog", (5, 5, 3, 9)), ("", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))])
    dataset = open_dataset(folder, "val")
    assert len(dataset.records[0].annotations) == 1
    assert [m[:8] for m in messages(dataset.problems, "error")] == ["object 1", "object 2"]
    (folder / "Annotations" / "b.xml").write_text("<annotation>")
    assert "is not xml" in messages(open_dataset(folder, "val").problems, "error")[0]


BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>
<annotation><object><name>&c;</name></object></annotation>"""


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        '<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>',
        "<!DOCTYPE annotation><annotation><object><name>dog</name></object></annotation>",
    ],
    ids=["entities", "external", "plain"],
)
def test_a_doctype_is_refused_and_the_other_files_are_read(folder, content):
    (folder / "Annotations" / "b.xml").write_text(content)
    dataset = open_dataset(folder)
    assert [r.path.stem for r in dataset.records] == ["a"]
    (message,) = messages(dataset.problems, "error")
    assert "b.xml: has a DOCTYPE" in message


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"<?xml version='1.0' encoding='no-such'?><a/>"])
def test_what_is_no_xml_is_named(folder, content):
    (folder / "Annotations" / "b.xml").write_bytes(content)
    dataset = open_dataset(folder)
    assert len(dataset) == 1
    assert "b.xml: is not xml" in messages(dataset.problems, "error")[0]


def test_images_that_are_missing_or_without_labels(folder):
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("b\nnowhere\nc\n")
    write_image(folder / "JPEGImages" / "c.png")
    dataset = open_dataset(folder, "val")
    assert [r.path.stem for r in dataset.records] == ["b", "c"]
    assert messages(dataset.problems, "error")[0].startswith("nowhere: there is no such image")
    assert "neither masks nor an xml" in messages(dataset.problems, "warning")[0]
