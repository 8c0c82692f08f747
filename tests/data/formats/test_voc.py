import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.check import check
from maskkit.errors import DataError
from maskkit.infer.samples import save_samples
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


def write_plain(folder: Path, kind: type = np.uint8) -> Path:
    """The three folders of VOC and nothing else: no list, no xml."""
    for i in range(3):
        write_image(folder / "JPEGImages" / f"p{i}.png", i)
        values = np.zeros(SIZE, kind)
        values[5:15, 5:25], values[20:30, 30:40] = 1, 2
        for name, shown in (("SegmentationObject", values), ("SegmentationClass", np.where(values, 3, 0).astype(kind))):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(shown).save(folder / name / f"p{i}.png")
    return folder


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_plain_folder(tmp_path, kind):
    report = check(write_plain(tmp_path, kind))
    assert report.errors == []
    summary = report.summaries["all"]
    assert (summary.images, summary.objects, summary.classes["bird"]) == (3, 6, 6)
    assert summary.labels is not None
    assert (summary.labels.classes["bird"], summary.labels.background) == (900, 6300)
    dataset = report.datasets["all"]
    assert len(dataset.as_instances().load(0)[1]) == 2
    semantic = dataset.as_semantic().load(0)[1].semantic
    assert semantic is not None
    assert np.bincount(semantic.flatten().numpy()).tolist() == [2100, 0, 0, 300]
    assert save_samples(dataset, tmp_path / "samples", 1)


def test_label_maps_without_objects(tmp_path):
    write_plain(tmp_path)
    shutil.rmtree(tmp_path / "SegmentationObject")
    dataset = open_dataset(tmp_path)
    assert (dataset.format, len(dataset)) == ("voc", 3)
    assert [p.message for p in dataset.problems] == [
        "no class_names.txt says which value of the masks is which class; VOC's 20 classes are taken"
    ]
    assert check(tmp_path).errors == []


@pytest.mark.parametrize("broken", ["SegmentationClass", "SegmentationObject"])
@pytest.mark.parametrize("fault", ["cut", "ids", "folder"])
def test_one_bad_label_image_is_named_and_the_rest_is_read(tmp_path, broken, fault):
    file = write_plain(tmp_path) / broken / "p1.png"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:50])
    elif fault == "ids":
        Image.fromarray(np.full(SIZE, 1000, np.uint16)).save(file)
    else:
        file.unlink()
        file.mkdir()
    report = check(tmp_path)
    there = [r.path.stem for r in report.datasets["all"].records]
    assert there == ["p0", "p2"] or (fault == "folder" and broken == "SegmentationObject")
    assert report.errors or there == ["p0", "p1", "p2"]
    assert all("p1" in str(error) for error in report.errors)


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize(
    "line",
    ["{}", "{} 1", "{}  -1", "{}.png", "JPEGImages/{}.png", "JPEGImages/{}.png SegmentationClass/{}.png", "  {}\t"],
)
@pytest.mark.parametrize("name", ["a", "left gate", "left gate 1", "2008_0001", "v1.2"])
def test_lines_of_lists(tmp_path, start, line, name):
    if name.startswith("left") and "Seg" in line:
        return  # two paths with spaces cannot be told apart
    write_image(tmp_path / "JPEGImages" / f"{name}.png")
    write_image(tmp_path / "JPEGImages" / "other.png", 1)
    write_xml(tmp_path / "Annotations" / f"{name}.xml", [("bolt", (1, 1, 20, 20))])
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(start + line.format(name, name) + "\r\n", encoding="utf-8")
    dataset = open_dataset(tmp_path, "train")
    assert [r.path.stem for r in dataset.records] == [name]
    assert dataset.problems == []


def test_a_list_in_another_encoding_loses_that_line_alone(folder):
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"a\ncaf\xe9\n")
    dataset = open_dataset(folder, "train")
    assert [r.path.stem for r in dataset.records] == ["a"]
    assert "line 2 is not UTF-8" in messages(dataset.problems, "warning")[0]
    assert "no such image" in messages(dataset.problems, "error")[0]
    (folder / "class_names.txt").write_bytes(b"__ignore__\n_background_\n" + b"caf\xe9\n" * 12)
    assert any("class_names" in p.file for p in open_dataset(folder, "train").problems)


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "Shift_JIS", "utf-16"])
def test_xml_in_any_encoding(tmp_path, encoding):
    write_image(tmp_path / "JPEGImages" / "p.png")
    (tmp_path / "Annotations").mkdir()
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation><object><name>猫</name><bndbox><xmin>2</xmin>'
    text += "<ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
    (tmp_path / "Annotations" / "p.xml").write_bytes(text.replace("猫", "車").encode(encoding, "replace"))
    dataset = open_dataset(tmp_path)
    assert dataset.problems == []
    assert dataset.records[0].annotations[0].box == (1, 1, 20, 20)


def test_the_size_of_the_xml_is_compared(folder):
    file = folder / "Annotations" / "b.xml"
    plain = file.read_text()
    for size, faulty in ((SIZE, False), ((0, 0), False), (("x", ""), False), (SIZE[::-1], True), ((80, 120), True)):
        stated = f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
        file.write_text(plain.replace("<annotation>", stated))
        errors = [e.message for e in check(folder).errors]
        assert ["the image has 60 x 40" in e for e in errors] == [True] * faulty, size


def test_folders_among_files_and_two_images_of_one_name(folder):
    (folder / "Annotations" / "p2.xml").mkdir()
    (folder / "JPEGImages" / "p3.png").mkdir()
    shutil.rmtree(folder / "ImageSets")
    assert [r.path.stem for r in open_dataset(folder).records] == ["a", "b"]
    write_image(folder / "JPEGImages" / "b.bmp")
    errors = messages(open_dataset(folder).problems, "error")
    assert ["has the same name" in e for e in errors] == [True]


def test_a_box_without_numbers_is_named_in_our_words(folder):
    file = folder / "Annotations" / "b.xml"
    plain = file.read_text()
    for value, reason in (("ten", "no number: 'ten'"), ("", "the box has no xmin"), ("1e999", "no numbers")):
        file.write_text(plain.replace("<xmin>1<", f"<xmin>{value}<", 1))
        dataset = open_dataset(folder, "val")
        assert len(dataset.records[0].annotations) == 1
        assert reason in messages(dataset.problems, "error")[0]


def test_images_without_labels_are_counted(folder):
    write_image(folder / "JPEGImages" / "c.png", 3)
    assert open_dataset(folder, "train").problems == []
    shutil.rmtree(folder / "ImageSets")
    dataset = open_dataset(folder)
    assert len(dataset) == 2
    assert messages(dataset.problems, "warning") == [
        ": 1 images have no labels; they are left out, because they may be unlabelled"
    ]


def test_a_polygon_beside_a_box_is_the_mask(folder):
    """As supervision writes it, corners from 1 on: 10 rows and 20 columns."""
    xml = folder / "Annotations" / "b.xml"
    write_xml(xml, [("dog", (11, 21, 30, 30)), ("cat", (1, 1, 9, 9))])
    corners = (
        "<polygon><x1>11</x1><y1>21</y1><x2>31</x2><y2>21</y2><x3>31</x3><y3>31</y3><x4>11</x4><y4>31</y4></polygon>"
    )
    both = xml.read_text().replace("</bndbox></object>", f"</bndbox>{corners}</object>", 1)
    xml.write_text(both.replace("9</ymax></bndbox>", "9</ymax></bndbox><polygon><x1>3</x1><y1>4</y1></polygon>"))
    dataset = open_dataset(folder, "val")
    dog, cat = dataset.records[0].annotations
    assert dog.box == (10, 20, 30, 30)
    assert np.argwhere(pixels(dog)).min(0).tolist() == [20, 10]
    assert pixels(dog).sum() == 200
    assert (cat.box, cat.segmentation) == ((0, 0, 9, 9), None)
    assert (
        "1 points has no area; it must have at least three; the box alone" in messages(dataset.problems, "warning")[0]
    )


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:61,245,61::\ncat:250,50,83:head,tail:\n"


def test_coloured_masks_of_cvat(folder, objects):
    """Its export of segmentation masks: a colour for each class, and VOC's colours for objects."""
    colours = np.array([[0, 0, 0], [250, 50, 83], [61, 245, 61], [224, 224, 192]], np.uint8)
    painted = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]], np.uint8)
    places = np.where(objects == 255, 3, objects)
    for kind, table in (("Class", colours), ("Object", painted)):
        Image.fromarray(table[places]).save(folder / f"Segmentation{kind}" / "a.png")
    assert "name the colours in labelmap.txt" in messages(open_dataset(folder, "train").problems, "error")[0]
    (folder / "labelmap.txt").write_text(LABELMAP)
    dataset = open_dataset(folder, "train")
    assert (dataset.problems, dataset.categories.names) == ([], ("dog", "cat"))
    (record,) = dataset.records
    found = {dataset.categories.names[a.label]: pixels(a) for a in record.annotations}
    assert np.array_equal(found["cat"], objects == 1)
    assert np.array_equal(found["dog"], objects == 2)
    assert record.semantic is not None
    assert record.semantic.counts(SIZE) == {-1: 1980, 0: 200, 1: 200, 255: 20}
    assert [a.label for a in open_dataset(folder, "val").records[0].annotations] == [0]  # a person is no class
    (folder / "labelmap.txt").write_text(LABELMAP.replace("250,50,83", "250,50,84"))
    assert "colour (250, 50, 83) is not in labelmap.txt" in messages(open_dataset(folder, "train").problems, "error")[0]
    (folder / "labelmap.txt").write_text(LABELMAP.replace("61,245,61", "250,50,83"))
    with pytest.raises(DataError, match=r"labelmap\.txt: the colour of 'cat' is that of another class"):
        open_dataset(folder, "train")


def test_an_xml_of_something_else_is_no_empty_image(folder):
    (folder / "Annotations" / "b.xml").write_text("<annotations><image/></annotations>")
    dataset = open_dataset(folder, "val")
    assert len(dataset) == 0
    assert "is not Pascal VOC's, its root is 'annotations'" in messages(dataset.problems, "error")[0]


def test_label_maps_without_objects_beside_others_are_said(folder, objects):
    write_image(folder / "JPEGImages" / "c.png", 3)
    write_palette(folder / "SegmentationClass" / "c.png", np.where(objects == 1, 8, 0))
    lists = folder / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("a\nc\n")
    (warning,) = messages(open_dataset(folder, "train").problems, "warning")
    assert "1 image with a label map alone: for models of objects it is an image without any" in warning
    (lists / "train.txt").write_text("c\n")
    assert open_dataset(folder, "train").problems == [], "they are all there is"


@pytest.mark.parametrize("name", ["carr", ""])
def test_an_odd_name_does_not_renumber_the_values_of_masks(folder, name):
    """In alphabetical order "carr" would have the value of the cat, and the dog another one."""
    write_xml(folder / "Annotations" / "b.xml", [("person", (1, 1, 60, 40)), (name, (11, 21, 20, 30))])
    dataset = open_dataset(folder, "train")
    found = [dataset.categories.names[a.label] for a in dataset.records[0].annotations]
    assert found == ["cat", "dog"]
    assert dataset.categories.names == (*VOC.names, *filter(None, [name]))
    assert [p.message for p in dataset.problems] == ["carr: no classes of VOC's; they follow its 20"] * bool(name)


def test_the_order_of_values_that_nobody_states_is_said(folder):
    write_xml(folder / "Annotations" / "b.xml", [("zebra", (1, 1, 60, 40)), ("ant", (11, 21, 20, 30))])
    assert "their alphabetical order is taken" in messages(open_dataset(folder, "val").problems, "warning")[0]
    shutil.rmtree(folder / "SegmentationClass")
    assert open_dataset(folder, "val").problems == [], "boxes have names"
