"""Image tags from tables, folders, boxes and label images; saliency maps by the names of their images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskkit.config import InputConfig
from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.dataset import Dataset
from maskkit.data.label_map import BACKGROUND, IGNORE, ImageTags, LabelFile
from maskkit.data.loader import collate
from maskkit.data.records import Annotation, Record
from maskkit.data.saliency import find, places
from maskkit.data.transforms import Flip, Resize, ScaleJitter, apply
from maskkit.errors import DataError
from maskkit.prediction import Categories
from tests.data.written import SIZE, messages, object_row, write_coco, write_image


def tags_of(dataset: Dataset) -> list[set[str]]:
    names = np.array(dataset.categories.names)
    loaded = (dataset.load(i, "tags")[1].tags for i in range(len(dataset)))
    return [set(names[tags.numpy()].tolist()) for tags in loaded if tags is not None]


def test_a_table_of_names(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "images" / f"{name}.png")
    (tmp_path / "tags.csv").write_text("image,tags\na.png,dog, cat\nb.png\nc.png,dog\n")
    for path in (tmp_path, tmp_path / "tags.csv"):
        dataset = open_dataset(path)
        assert dataset.format == "tags"
        assert dataset.categories == Categories.of(["cat", "dog"])
        assert tags_of(dataset) == [{"cat", "dog"}, set(), {"dog"}]
        assert not dataset.problems


def test_a_table_of_ticks_with_splits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("filename,dog,cat\na.png,1,0\n")
    (tmp_path / "val.csv").write_text("filename,dog,cat\nb.png,1,1\nmissing.png,0,1\nb.png,1\n")
    assert find_splits(tmp_path) == ["train", "val"]
    training, validation = open_splits(tmp_path)
    assert training.categories == validation.categories == Categories.of(["cat", "dog"])
    assert tags_of(training) == [{"dog"}]
    assert tags_of(validation) == [{"cat", "dog"}]
    assert [p.record for p in validation.problems] == ["b.png", "missing.png"]


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/dog/1", "train/dog/2", "val/cat/1", "val/dog/1"):
        write_image(tmp_path / f"{name}.png")
    assert find_splits(tmp_path) == ["train", "val"]
    assert tags_of(open_dataset(tmp_path, "train")) == [{"cat"}, {"dog"}, {"dog"}]
    assert len(open_dataset(tmp_path)) == 5
    assert tags_of(open_dataset(tmp_path / "val")) == [{"cat"}, {"dog"}]


def test_one_folder_of_images_is_no_class(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.png")
    write_image(tmp_path / "holiday" / "1.png")
    with pytest.raises(DataError, match="no data set is recognised"):
        open_dataset(tmp_path)


def test_tags_say_nothing_of_where(tmp_path: Path) -> None:
    for name in ("cat/1", "dog/1"):
        write_image(tmp_path / f"{name}.png")
    dataset = open_dataset(tmp_path).as_semantic()
    assert dataset.categories.names == ("background", "cat", "dog")
    assert tags_of(dataset) == [{"cat"}, {"dog"}]
    semantic = dataset.load(0)[1].semantic
    assert semantic is not None
    assert (semantic == IGNORE).all()


def test_boxes_and_label_images_give_tags(tmp_path: Path) -> None:
    boxed = open_dataset(write_coco(tmp_path / "boxed.json", [object_row(1, segmentation=None)]))
    assert tags_of(boxed) == [{"cat"}, set()]
    assert tags_of(boxed.as_semantic()) == [{"background", "cat"}, {"background"}]
    values = np.zeros(SIZE, np.uint8)
    values[3, 4:6] = 2, IGNORE
    Image.fromarray(values).save(tmp_path / "labels.png")
    labels = LabelFile(tmp_path / "labels.png", {0: BACKGROUND, 1: 0, 2: 1, IGNORE: IGNORE})
    image = write_image(tmp_path / "image.png")
    mapped = Dataset([Record(1, image, SIZE, [], labels)], Categories.of(["cat", "dog"]), tmp_path, "png")
    assert tags_of(mapped) == [{"dog"}]
    assert tags_of(mapped.as_semantic()) == [{"background", "dog"}]


def test_pixels_of_no_class_are_of_the_class_called_background(tmp_path: Path) -> None:
    """A pseudo-labelled training set names it; the objects that validate must not get a second one."""
    categories = Categories(("background", "cat"), (0, 1))
    record = Record(1, write_image(tmp_path / "1.png"), SIZE, [Annotation(1, 1, (2.0, 2.0, 9.0, 9.0))])
    dataset = Dataset([record], categories, tmp_path, "coco").as_semantic()
    assert dataset.categories == categories
    semantic = dataset.load(0)[1].semantic
    assert semantic is not None
    assert int(semantic[20, 20]) == 0


def test_renumbered_tags() -> None:
    tags = ImageTags(frozenset({0, 2}))
    assert tags.renumber({2: 5, BACKGROUND: 0}) == ImageTags(frozenset({5}), 0)


def write_map(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(SIZE, np.uint8)
    values[:, : SIZE[1] // 2] = 255
    Image.fromarray(values).save(path)


def test_saliency_is_found_by_name_and_folder(tmp_path: Path) -> None:
    for name in ("cat/1", "dog/1", "dog/2"):
        write_image(tmp_path / "data" / f"{name}.png")
    dataset, maps = open_dataset(tmp_path / "data"), tmp_path / "maps"
    with pytest.raises(DataError, match="no such folder"):
        dataset.with_saliency(maps)
    for name in ("cat/1", "dog/1"):
        write_map(maps / f"{name}.png")
    with pytest.raises(DataError, match=r"no saliency map for .*2.png"):
        dataset.with_saliency(maps)
    write_map(maps / "2.png")
    found = dataset.with_saliency(maps)
    assert [r.saliency for r in found.records] == [maps / "cat/1.png", maps / "dog/1.png", maps / "2.png"]
    saliency = found.load(0, "tags")[1].saliency
    assert saliency is not None
    assert saliency[:, : SIZE[1] // 2].eq(1).all()
    assert saliency[:, SIZE[1] // 2 :].eq(0).all()


def test_each_image_has_its_own_saliency_map(tmp_path: Path) -> None:
    images = [write_image(tmp_path / "data" / split / "cat" / "1.png") for split in ("train", "val")]
    maps = tmp_path / "maps"
    write_map(maps / "1.png")
    with pytest.raises(DataError, match=r"1\.png: would be the saliency map of both .*train.* and .*val"):
        find(maps, images)
    files = places(maps, images)
    assert list(files.values()) == [maps / "train/cat/1.png", maps / "val/cat/1.png"]
    for file in files.values():
        write_map(file)
    assert find(maps, images) == list(files.values())
    assert places(maps, images[:1]) == {images[0]: maps / "cat/1.png"}
    assert places(maps, []) == {}
    with pytest.raises(DataError, match=r"both .*1\.png and .*1\.jpg; .*rename one"):
        places(maps, [images[0], images[0].with_suffix(".jpg")])


def test_saliency_of_another_size_is_refused(tmp_path: Path) -> None:
    record = Record(1, write_image(tmp_path / "1.png"), SIZE, [], saliency=write_image(tmp_path / "m.png", 0, (5, 5)))
    with pytest.raises(DataError, match=r"m.png: is 5 x 5 pixels"):
        Dataset([record], Categories.of(["cat"]), tmp_path, "png").load(0)


@pytest.mark.parametrize("seed", range(5))
def test_saliency_follows_the_image(tmp_path: Path, seed: int) -> None:
    """A map that is the image itself stays so through what a training does to both."""
    write_map(tmp_path / "1.png")
    record = Record(1, tmp_path / "1.png", SIZE, [], saliency=tmp_path / "1.png")
    sample = Dataset([record], Categories.of(["cat"]), tmp_path, "png").load(0)
    ops = [Flip(), ScaleJitter((0.5, 1.5), (32, 32), "pad"), Resize((24, 40), "pad")]
    image, target, meta = apply(ops, sample, np.random.default_rng(seed))
    assert target.saliency is not None
    assert torch.allclose(target.saliency, image[0].float() / 255, atol=1e-5)
    batch = collate([(image, target, meta), (torch.zeros(3, 64, 64), target, meta)], InputConfig(resize="pad"))
    padded = batch.targets[0].saliency
    assert padded is not None
    assert padded.shape == batch.images.shape[2:]
    assert torch.equal(padded[:24, :40], target.saliency)
    assert not padded[24:].any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,cat,dog\na.png,1.0,0.0\nb.png,0.0,1.0\n", [{"cat"}, {"dog"}]),  # pandas
        ("image_id,cat,dog\na.png,1,-1\nb.png,-1,1\n", [{"cat"}, {"dog"}]),  # CelebA
        ("image,cat,dog\na.png,True,False\nb.png,FALSE,TRUE\n", [{"cat"}, {"dog"}]),
        ("image,cat,dog\na.png,x,\nb.png,,x\n", [{"cat"}, {"dog"}]),
        ("image,width,height,cat,dog\na.png,60,40,1,0\nb.png,60,40,0,1\n", [{"cat"}, {"dog"}]),
        ("image,label\na.png,0\nb.png,1\n", [{"0"}, {"1"}]),  # numbers of classes, not ticks
        ("image,label,fold\na.png,cat,0\nb.png,dog,1\n", [{"cat"}, {"dog"}]),
        (",image,cat,dog\n0,a.png,1,0\n1,b.png,0,1\n", [{"cat"}, {"dog"}]),  # pandas, with its index
        ("id,breed\na,cat\nb,dog\n", [{"cat"}, {"dog"}]),  # names without an ending
        ("a,cat\nb,dog\n", [{"cat"}, {"dog"}]),
        ("image,age\na.png,0-2\nb.png,4-6\n", [{"0-2"}, {"4-6"}]),
        ("image,label\na.png,cat\nb.png,cat\na.png,dog\n", [{"cat", "dog"}, {"cat"}]),  # a row for each class
    ],
)
def test_what_cells_of_a_table_mean(tmp_path: Path, text: str, expected: list[set[str]]) -> None:
    for seed, name in enumerate("ab"):
        write_image(tmp_path / f"{name}.png", seed)
    (tmp_path / "tags.csv").write_text(text)
    dataset = open_dataset(tmp_path)
    assert tags_of(dataset) == expected
    assert not messages(dataset.problems, "error")


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("Path,A,B\na.png,1.0,-1.0\nb.png,0.0,\n", "A, B"),  # -1 beside 0 means uncertain
        ("image,cat,dog\na.png,0.3,0.7\nb.png,0.1,0.2\n", "cat, dog"),
        ("ImageId,EncodedPixels\na.png,264661 17 264667 9\nb.png,1 3\n", "EncodedPixels"),
        ("image,animal,age\na.png,cat,3\nb.png,dog,11\n", "age"),
        ('image,boxes\na.png,"[1, 2, 3, 4]"\nb.png,"[1.5, 2, 3, 4]"\n', "boxes"),
        ("a.png,cat,10,20,30,40\nb.png,dog,1,2,3,4\n", "number 3, number 4, number 5, number 6"),
    ],
)
def test_numbers_that_measure_are_no_classes(tmp_path: Path, text: str, columns: str) -> None:
    for seed, name in enumerate("ab"):
        write_image(tmp_path / f"{name}.png", seed)
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=rf"table\.csv: the columns {columns} have numbers"):
        open_dataset(tmp_path / "table.csv")


@pytest.mark.parametrize(
    "names",
    [("train_images", "test_images"), ("train2017", "val2017"), ("images-1", "images-2"), ("Training", "Testing")],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_image(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="no data set is recognised"):
        open_dataset(tmp_path)
    for name in ("train_station", "mask"):
        write_image(tmp_path / name / "1.png")
    assert open_dataset(tmp_path).categories.names == ("mask", "train_station")
