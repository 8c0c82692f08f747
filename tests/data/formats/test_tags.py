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
from maskkit.data.transforms import Flip, Resize, ScaleJitter, apply
from maskkit.errors import DataError
from maskkit.prediction import Categories
from tests.data.written import SIZE, object_row, write_coco, write_image


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
    assert [p.record for p in validation.problems] == ["missing.png", "b.png"]


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
