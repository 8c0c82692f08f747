"""Label maps from images of labels and from objects, and the readers that give them."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.class_files import find_classes
from maskkit.data.label_map import BACKGROUND, IGNORE, LabelFile, read_labels
from maskkit.data.painted import PaintedObjects
from maskkit.data.records import Annotation
from maskkit.data.rules import Problems
from maskkit.data.shapes import shapes_dataset
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math

LABELS = np.array([[0, 1, 1], [255, 2, 0]], np.uint8)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def write_folder(root: Path, split: str, names: tuple[str, ...] = ("a", "b")) -> None:
    for name in names:
        save(root / "images" / split / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        save(root / "masks" / split / f"{name}.png", LABELS)


def test_values_become_class_numbers(tmp_path: Path) -> None:
    source = LabelFile(save(tmp_path / "m.png", LABELS), {0: 5, 1: 6, 2: IGNORE, 255: IGNORE})
    assert source.read((2, 3)).tolist() == [[5, 6, 6], [255, 255, 5]]
    assert source.classes == {5, 6}
    assert source.renumber({5: 0}).read((2, 3)).tolist() == [[0, 255, 255], [255, 255, 0]]


def test_an_unknown_value_and_a_wrong_size_are_named(tmp_path: Path) -> None:
    source = LabelFile(save(tmp_path / "m.png", LABELS), {0: 0, 1: 1, 255: IGNORE})
    with pytest.raises(DataError, match=r"m\.png: the value 2 is no class"):
        source.read((2, 3))
    with pytest.raises(DataError, match="3 x 2 pixels"):
        source.read((3, 3))


def test_the_smaller_object_wins_and_what_is_not_known_is_ignored() -> None:
    size = (6, 6)
    large, small, crowd = (np.zeros(size, bool) for _ in range(3))
    large[:4, :4], small[1:3, 1:3], crowd[3:, 3:] = True, True, True
    rles = mask_math.encode(np.stack([small, large, crowd]))
    objects = [
        Annotation(1, 1, None, rles[0]),
        Annotation(2, 2, None, rles[1]),
        Annotation(3, 2, None, rles[2], crowd=True),
        Annotation(4, 1, (0.0, 4.0, 2.0, 6.0)),  # its mask is not known
    ]
    labels = PaintedObjects(objects, 0).read(size)
    expected = np.zeros(size, np.uint8)
    expected[3:, 3:], expected[4:6, 0:2] = IGNORE, IGNORE
    expected[:4, :4] = 2
    expected[1:3, 1:3] = 1
    assert np.array_equal(labels, expected)


def test_objects_become_a_semantic_data_set_with_a_background() -> None:
    data = shapes_dataset(2, seed=3, size=(64, 64))
    semantic = data.as_semantic()
    assert semantic.categories.names == ("background", *data.categories.names)
    assert semantic.categories.ids[1:] == data.categories.ids
    _, target, _ = semantic.load(0)
    _, objects, _ = data.load(0)
    assert len(target) == 0
    assert objects.semantic is None
    assert target.semantic is not None
    assert objects.masks is not None
    assert set(target.semantic.unique().tolist()) == {0, *(objects.labels + 1).tolist()}
    assert ((target.semantic > 0) == objects.masks.dense().any(0)).all()  # drawn objects never share a pixel
    again = semantic.as_semantic()
    assert again.categories == semantic.categories


def test_classes_are_renumbered_by_name() -> None:
    data = shapes_dataset(1, seed=3, size=(64, 64)).as_semantic()
    turned = type(data.categories)(data.categories.names[::-1], data.categories.ids[::-1])
    before, after = (d.load(0)[1].semantic for d in (data, data.with_categories(turned)))
    assert before is not None
    assert after is not None
    assert ((len(turned) - 1 - before.int()) == after.int()).all()


def test_a_folder_of_label_images(tmp_path: Path) -> None:
    write_folder(tmp_path, "train")
    write_folder(tmp_path, "val", ("c",))
    described = {"classes": [{"id": i, "name": n} for i, n in enumerate(("sky", "road", "car"))], "void": {"id": 255}}
    (tmp_path / "classes.json").write_text(json.dumps(described))
    assert find_splits(tmp_path) == ["train", "val"]
    train, val = open_splits(tmp_path)
    assert (len(train), len(val)) == (2, 1)
    assert train.categories.names == ("sky", "road", "car")
    _, target, _ = train.load(0)
    assert target.semantic is not None
    assert target.semantic.tolist() == LABELS.tolist()
    assert train.as_semantic().categories == train.categories, "every pixel has a class already"


@pytest.mark.parametrize("names", [None, "sky\nroad\ncar\n"])
def test_classes_from_lines_or_from_the_values(tmp_path: Path, names: str | None) -> None:
    write_folder(tmp_path, ".")
    if names:
        (tmp_path / "classes.txt").write_text(names)
    data = open_dataset(tmp_path)
    assert data.categories.names == (("sky", "road", "car") if names else ("0", "1", "2"))
    assert data.categories.ids == (0, 1, 2)


def test_segnets_own_folders(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "trainannot" / "a.png", LABELS)
    assert len(open_dataset(tmp_path, "train")) == 1


def test_a_image_without_labels_is_a_problem(tmp_path: Path) -> None:
    write_folder(tmp_path, "train")
    save(tmp_path / "images" / "train" / "lonely.jpg", np.zeros((2, 3, 3), np.uint8))
    data = open_dataset(tmp_path, "train")
    assert len(data) == 2
    assert "lonely" in str(data.problems[0])


def test_voc_label_images(tmp_path: Path) -> None:
    save(tmp_path / "JPEGImages" / "a.jpg", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "SegmentationClass" / "a.png", LABELS)
    save(tmp_path / "SegmentationObject" / "a.png", LABELS)
    data = open_dataset(tmp_path)
    assert [a.label for a in data.records[0].annotations] == [0, 1]
    assert data.load(0)[1].semantic is None, "pixels of the background have no class among VOC's twenty"
    semantic = data.as_semantic()
    assert semantic.categories.names[:2] == ("background", "aeroplane")
    labels = semantic.load(0)[1].semantic
    assert labels is not None
    assert labels.tolist() == LABELS.tolist()


def test_panoptic_files(tmp_path: Path) -> None:
    ids = np.array([[0, 7, 7], [300, 300, 70000]])
    save(tmp_path / "images" / "a.jpg", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "panoptic" / "a.png", np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))
    segments = [(7, 1, 0), (300, 5, 0), (70000, 1, 1)]
    rows = [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments]
    content = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 2, "width": 3}],
        "annotations": [{"image_id": 4, "file_name": "a.png", "segments_info": rows}],
        "categories": [{"id": 1, "name": "dog", "isthing": 1}, {"id": 5, "name": "grass", "isthing": 0}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    data = open_dataset(tmp_path / "panoptic.json")
    assert data.categories.names == ("dog", "grass")
    labels = data.load(0)[1].semantic
    assert labels is not None
    assert labels.tolist() == [[255, 0, 0], [1, 1, 255]]


def test_background_has_no_number_of_its_own() -> None:
    assert BACKGROUND < 0
    assert PaintedObjects([], BACKGROUND).has_background


def test_what_lists_of_classes_must_not_say(tmp_path: Path) -> None:
    write_folder(tmp_path, ".")
    classes = [{"id": i, "name": n} for i, n in enumerate(("background", "road", "car"))]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "void": {"id": 0}}))
    with pytest.raises(DataError, match="void has the id of 'background', whose pixels would be unknown"):
        open_dataset(tmp_path)
    classes[2]["name"] = "void"
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "void": {"id": 2}}))
    assert open_dataset(tmp_path).categories.names == ("background", "road")
    (tmp_path / "classes.json").unlink()
    (tmp_path / "classes.txt").write_text("sky\n\ncar\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        open_dataset(tmp_path)


def test_a_table_of_colours_needs_no_names_of_columns(tmp_path: Path) -> None:
    for text in ("name,r,g,b\nsky,0,0,255\nroad,9,9,9\n", "sky,0,0,255\nroad,9,9,9\n"):
        (tmp_path / "class_dict.csv").write_text(text)
        found = find_classes(tmp_path, Problems())
        assert found is not None
        assert found.categories.names == ("sky", "road")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_label_images_are_turned_as_images_are(tmp_path: Path, name: str, mode: str) -> None:
    values = np.arange(12, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(3, 4) % (2 if mode == "1" else 99)
    image = Image.fromarray(values > 0 if mode == "1" else values)
    if mode == "P":
        image.putpalette([0] * 768)
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / name, exif=exif)
    assert read_labels(tmp_path / name, (4, 3))[0].tolist() == values[::-1].T.tolist()
    with pytest.raises(DataError, match="is 3 x 4 pixels, the image 4 x 3"):
        read_labels(tmp_path / name, (3, 4))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_stretched_in_silence(tmp_path: Path, bits: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed = {1: b"\0\x40", 2: b"\0\x1b", 4: b"\0\x01\x23"}[bits]  # 0 1 (2 3) in a row of 2 or 4 pixels
    head = struct.pack(">IIBBBBB", 2 if bits == 1 else 4, 1, bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    if bits == 1:
        assert read_labels(tmp_path / "a.png", None)[0].tolist() == [[0, 1]]
    else:
        with pytest.raises(DataError, match="grey with 2 or 4 bits"):
            read_labels(tmp_path / "a.png", None)
