"""Images are those that are meant, and lie in the folders of their data set."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.check import check
from maskkit.data.convert import convert
from maskkit.data.places import locate
from maskkit.errors import DataError

from .formats.samples import SAMPLES
from .written import SIZE, image_row, messages, object_row, write_coco, write_image, write_json

NAMES = st.lists(
    st.sampled_from(["a.png", "b.png", "x/a.png", "y/a.png", "C:\\z\\x\\a.png", "/h/b.png", "n"]), max_size=6
)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    for name in ("a.png", "x/a.png", "b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@given(names=NAMES)
def test_no_file_is_given_to_two_names(three, names):
    found = locate(names, [three])
    files = [os.path.normpath(path) for path in found if isinstance(path, Path)]
    assert len(set(files)) == len(files)
    for name in ("a.png", "x/a.png", "b.png"):  # an exact name is served, once
        if name in names:
            assert found[names.index(name)] == three / name
    assert all(isinstance(path, Path) or path for path in found)


def test_names_of_another_machine_are_shortened_no_more_than_needed(three):
    assert locate(["D:\\data\\x\\a.png", "/home/b.png"], [three]) == [three / "x" / "a.png", three / "b.png"]
    (lost, kept) = locate(["/home/y/a.png", "a.png"], [three])
    assert kept == three / "a.png"
    assert lost == "there is no such image, and a.png is that of 'a.png' too; add the image that is meant"
    assert all("too; add the image" in str(reason) for reason in locate(["p/a.png", "q/a.png"], [three]))
    assert "has the same file as 'b.png'" in str(locate(["b.png", "./b.png"], [three])[1])
    assert "there is no such image in" in str(locate([""], [three])[0])


@pytest.fixture
def private(tmp_path):
    """Files outside of the data set."""
    write_image(tmp_path / "private" / "me.png", 7)
    (tmp_path / "private" / "id_rsa").write_text("secret")
    return tmp_path / "private"


def _outside(problems):
    return [m for m in messages(problems, "error") if "is outside of the data set's folder" in m]


def _contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _coco(tmp_path, private, name):
    write_coco(
        tmp_path / "data" / "a.json", [object_row(1), object_row(2, 3)], [image_row(1), image_row(3, file_name=name)]
    )
    return tmp_path / "data" / "a.json"


def _links(tmp_path, private):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "link.png").symlink_to(private / "me.png")
    (tmp_path / "data" / "images" / "key.png").symlink_to(private / "id_rsa")
    (tmp_path / "data" / "images" / "deep").symlink_to(private)


@pytest.mark.parametrize(
    "name",
    ["../private/me.png", "images/../../private/me.png", "{}/me.png", "link.png", "deep/me.png", "../private/id_rsa",
             "..\\private\\me.png", "key.png"]
)  # fmt: skip
def test_coco_reads_and_copies_nothing_from_outside(tmp_path, private, name):
    _links(tmp_path, private)
    file = _coco(tmp_path, private, name.format(private))
    dataset = open_dataset(file)
    assert [r.path.name for r in dataset.records] == ["1.png"]
    (reason,) = _outside(dataset.problems)
    assert "image 3" in reason
    assert "--allow-outside" in reason
    assert len(check(file).errors) == 1
    assert convert(file, tmp_path / "out", "coco")["images"] == 1
    stolen = {(private / "me.png").read_bytes(), (private / "id_rsa").read_bytes()}
    assert not stolen & _contents(tmp_path / "out")


def test_outside_is_allowed_by_the_option_for_images_alone(tmp_path, private):
    _links(tmp_path, private)
    file = _coco(tmp_path, private, "../private/me.png")
    assert len(open_dataset(file, allow_outside=True)) == 2
    assert check(file, allow_outside=True).errors == []
    assert convert(file, tmp_path / "out", "yolo", allow_outside=True)["images"] == 2
    assert [len(part) for part in open_splits(file, val_split=0.5, allow_outside=True)] == [1, 1]
    file = _coco(tmp_path, private, "../private/id_rsa")
    counts = convert(file, tmp_path / "text", "coco", allow_outside=True)
    assert (counts["images"], counts["problems"]) == (1, 1)
    assert b"secret" not in _contents(tmp_path / "text")


def test_a_folder_of_images_may_be_a_link(tmp_path, private):
    content = [image_row(1), image_row(2)]
    for layout in ("images", "images/train", "train", "train2017"):
        root = tmp_path / layout.replace("/", "-")
        file = root / ("annotations/instances_train2017.json" if layout == "train2017" else "train.json")
        write_coco(file, [object_row(1)], content)
        shutil.rmtree(file.parent / "images")
        for number in (1, 2):
            write_image(tmp_path / "store" / f"{number}.png", number)
        (root / layout).parent.mkdir(exist_ok=True)
        (root / layout).symlink_to(tmp_path / "store")
        for place in (root, file):
            dataset = open_dataset(place, "train")
            assert (len(dataset), dataset.problems) == (2, []), layout


def _yolo(root, content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(f"names: [cat]\n{content}")
    return root


def test_yolo_lists_and_entries_stay_inside(tmp_path, private):
    root = _yolo(tmp_path / "data", "train: train.txt\n")
    write_image(root / "a.png")
    (root / "train.txt").write_text(f"a.png\n../private/me.png\n{private}/id_rsa\n")
    dataset = open_dataset(root, "train")
    assert [r.path.name for r in dataset.records] == ["a.png"]
    assert len(_outside(dataset.problems)) == 1  # the other is no image
    assert len(messages(dataset.problems, "error")) == 2
    (root / "data.yaml").write_text("names: [cat]\ntrain: ../private\n")
    assert len(open_dataset(root, "train")) == 0
    assert len(_outside(open_dataset(root, "train").problems)) == 1
    assert len(open_dataset(root, "train", allow_outside=True)) == 1


def test_yolo_paths_may_be_absolute_and_folders_links(tmp_path):
    store = tmp_path / "store"
    write_image(store / "images" / "train" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    write_image(tmp_path / "elsewhere" / "b.png")
    (store / "images" / "val").symlink_to(tmp_path / "elsewhere")
    root = _yolo(tmp_path / "configs", f"path: {store}\ntrain: images/train\nval: {store}/images/val\n")
    for split in ("train", "val"):
        dataset = open_dataset(root, split)
        assert (len(dataset), messages(dataset.problems, "error")) == (1, [])
    other = _yolo(tmp_path / "relative", "path: ../store\ntrain: images/train\n")
    assert len(open_dataset(other, "train")) == 1


def test_labelme_images_stay_inside_and_belong_to_one_json(tmp_path, private):
    root = tmp_path / "data"
    write_image(root / "a.png")
    shape = {"label": "cat", "points": [[1, 1], [20, 1], [20, 20]], "shape_type": "polygon"}
    for name, image in (("a", "a.png"), ("b", "../private/me.png"), ("copy", "a.png")):
        content = {"shapes": [shape], "imagePath": image, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        write_json(root / f"{name}.json", content)
    dataset = open_dataset(root)
    assert [r.path.name for r in dataset.records] == ["a.png"]
    assert len(_outside(dataset.problems)) == 1
    assert any("copy.json" in p.file and "a.json" in p.message for p in dataset.problems)


@pytest.mark.parametrize("to", ["png", "voc"])
def test_label_images_stay_inside(tmp_path, private, to):
    write_coco(tmp_path / "src" / "a.json", [object_row(1), object_row(2, 2)])
    convert(tmp_path / "src" / "a.json", tmp_path / "data", to)
    name = "masks" if to == "png" else "SegmentationClass"
    mask = next((tmp_path / "data" / name).rglob("1.png"))
    shutil.move(mask, private / "mask.png")
    mask.symlink_to(private / "mask.png")
    dataset = open_dataset(tmp_path / "data", (find_splits(tmp_path / "data") or [None])[0])
    assert [r.path.stem for r in dataset.records] == ["2"]
    assert len(_outside(dataset.problems)) == 1


def test_two_records_on_one_file_are_errors(tmp_path):
    """Frames of two videos, of which only one folder came along, and without its name."""
    rows = [image_row(i, file_name=f"video_{i}/f.png") for i in (1, 2)]
    file = write_coco(tmp_path / "a.json", [object_row(1), object_row(2, 2)], rows)
    write_image(tmp_path / "images" / "f.png")
    dataset = open_dataset(file)
    assert len(dataset) == 0
    assert [m.count("is that of") for m in messages(dataset.problems, "error")] == [1, 1]
    write_image(tmp_path / "images" / "video_2" / "f.png", 2)
    dataset = open_dataset(file)
    assert [(r.image_id, r.path.parent.name) for r in dataset.records] == [(1, "images"), (2, "video_2")]
    twice = write_coco(tmp_path / "b.json", [object_row(1)], [image_row(1), image_row(2, file_name="./1.png")])
    assert [r.image_id for r in open_dataset(twice).records] == [1]
    assert "same file as '1.png'" in messages(open_dataset(twice).problems, "error")[0]


def test_files_that_are_left_out_are_warned_of(tmp_path):
    root = _yolo(tmp_path, "train: images/train\n")
    for name in ("a.png", ".b.png", "sub/c.jfif"):
        write_image(root / "images" / "train" / name) if not name.endswith("jfif") else None
    (root / "images" / "train" / "sub").mkdir()
    shutil.copy(root / "images" / "train" / "a.png", root / "images" / "train" / "sub" / "c.jfif")
    (root / "images" / "train" / "clip.mp4").write_bytes(b"x")
    dataset = open_dataset(root, "train")
    assert [r.path.name for r in dataset.records] == ["a.png", "c.jfif"]
    assert "2 files are left out, because hidden or of no format that is read: .b.png, clip.mp4" in " ".join(
        messages(dataset.problems, "warning")
    )


def test_images_in_folders_inside_are_warned_of(tmp_path):
    SAMPLES["labelme"](tmp_path)
    write_image(tmp_path / "own" / "c.png", 3)
    write_json(tmp_path / "c.json", {"imagePath": "own/c.png", "shapes": []})
    assert messages(open_dataset(tmp_path).problems, "warning") == []
    for name in (".hidden/a.png", "batch 2/a.png", "batch 2/more/b.png"):
        write_image(tmp_path / name, 4)
    (warning,) = messages(open_dataset(tmp_path).problems, "warning")
    assert "2 images are left out, in folders inside of it: batch 2/a.png, batch 2/more/b.png; move them up" in warning


def test_labels_without_an_image_are_warned_of(tmp_path):
    root = _yolo(tmp_path / "yolo", "train: images/train\nval: images/val\n")
    for split in ("train", "val"):
        write_image(root / "images" / split / f"{split}.png")
        (root / "labels" / split).mkdir(parents=True)
        for name in (split, "gone"):
            (root / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        (root / "labels" / split / "classes.txt").write_text("cat\n")
    (warning,) = messages(open_dataset(root, "val").problems, "warning")
    assert "1 label files have no image: gone.txt" in warning
    masks = tmp_path / "png" / "masks"
    write_image(tmp_path / "png" / "images" / "a.png")
    masks.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(masks / f"{name}.png")
    assert any("1 label images have no image: b.png" in p.message for p in open_dataset(tmp_path / "png").problems)


def test_two_images_do_not_share_labels(tmp_path):
    root = _yolo(tmp_path / "yolo", "train: images\n")
    for folder in (root, tmp_path / "png"):
        for name in ("a.bmp", "a.png", "b.png"):
            write_image(folder / "images" / name)
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "png" / "masks").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "png" / "masks" / f"{name}.png")
    for place in (root, tmp_path / "png"):
        dataset = open_dataset(place)
        assert [r.path.name for r in dataset.records] == ["a.bmp", "b.png"]
        (error,) = messages(dataset.problems, "error")
        assert "of a.bmp" in error


def test_a_data_set_beside_is_not_taken(tmp_path):
    """Roboflow's ../train/images means train/images beside the file, also where there is one above."""
    write_image(tmp_path / "train" / "images" / "other.png", 3)
    root = _yolo(tmp_path / "mine", "train: ../train/images\n")
    write_image(root / "train" / "images" / "mine.png")
    assert [r.path.name for r in open_dataset(root, "train").records] == ["mine.png"]


PIPES = {
    "coco": "train.json", "labelme": "b.json", "yolo": "labels/b.txt", "yolo file": "data.yaml", "tags": "tags.csv",
    "voc": "Annotations/b.xml", "voc names": "class_names.txt", "voc mask": "SegmentationObject/b.png",
    "png": "masks/b.png", "png classes": "classes.json", "png text": "classes.txt",
    "cvat": "annotations.xml", "labelstudio": "tasks.json", "labelstudio classes": "label_config.xml",
    "via": "via_project.json", "datumaro": "annotations/default.json", "supervisely": "ds0/ann/b.png.json",
    "supervisely classes": "meta.json",
}  # fmt: skip


@pytest.mark.parametrize("kind", PIPES)
def test_pipes_among_annotations_never_hang(tmp_path, kind):
    to = kind.split()[0]
    images = [image_row(1, file_name="a.png"), image_row(2, file_name="b.png")]
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.png", len(name))
    if to == "tags":
        for name in ("a", "b"):
            write_image(tmp_path / "data" / "images" / f"{name}.png", len(name))
    else:
        convert(write_coco(tmp_path / "a.json", [object_row(1), object_row(2, 2)], images), tmp_path / "data", to)  # type: ignore[arg-type]
        if to == "yolo":
            shutil.move(tmp_path / "data" / "labels" / "train", tmp_path / "data" / "labels" / "x")
            (tmp_path / "data" / "labels" / "train").mkdir()
    pipe = tmp_path / "data" / PIPES[kind].replace("labels/", "labels/train/")
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with suppress(DataError):
        check(tmp_path / "data")
