"""The drawn data set: what it promises about its objects, and that it reads back as COCO."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle
from pycocotools.coco import COCO
from scipy import ndimage

from maskkit.data import open_splits, shapes
from maskkit.data.shapes import CATEGORIES, LEAST_VISIBLE, draw, shapes_dataset
from maskkit.targets import Target, TargetMasks


def masks_of(target: Target) -> TargetMasks:
    assert target.masks is not None
    return target.masks


def same(a, b):
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1].boxes, b[1].boxes)
    assert torch.equal(a[1].labels, b[1].labels)
    assert torch.equal(masks_of(a[1]).dense(), masks_of(b[1]).dense())


def test_a_seed_gives_one_image():
    same(draw(3), draw(3))
    assert not torch.equal(draw(3)[0], draw(4)[0])


@pytest.mark.parametrize("size", [(64, 64), (100, 160), (256, 200)])
def test_objects_are_apart_and_their_boxes_tight(size):
    for seed in range(8):
        image, target = draw(seed, size, (2, 9))
        assert image.shape == (3, *size)
        assert image.dtype == torch.uint8
        assert 1 <= len(target) <= 9
        dense = masks_of(target).dense()
        assert dense.sum(0).max() <= 1
        assert torch.equal(target.boxes, masks_of(target).boxes())
        assert (masks_of(target).areas() >= LEAST_VISIBLE * 30).all()
        assert target.has_mask.all()
        assert not target.crowd.any()


def test_no_objects():
    image, target = draw(0, (50, 60), (0, 0))
    assert image.float().std() > 1
    assert len(target) == 0
    assert masks_of(target).dense().shape == (0, 50, 60)


def test_every_class_with_holes_and_parts():
    """Alone in its image and away from the border a ring has one hole, a pair two parts, the others neither."""
    seen = set()
    for seed in range(150):
        _, target = draw(seed, (128, 128), (1, 1))
        mask = np.pad(masks_of(target).dense()[0].numpy(), 1)
        x1, y1, x2, y2 = target.boxes[0].tolist()
        parts, holes = ndimage.label(mask, np.ones((3, 3)))[1], ndimage.label(~mask)[1] - 1
        name = CATEGORIES.names[target.labels[0]]
        if min(x1, y1) < 1 or max(x2, y2) > 127 or parts > (1 + (name == "pair")):
            continue  # cut by the border, or by a pole
        seen.add(name)
        assert (parts, holes) == {"ring": (1, 1), "pair": (2, 0)}.get(name, (1, 0))
    assert seen == set(CATEGORIES.names)


def test_objects_differ_from_their_background():
    """Along the outline the image changes more than inside the background: there is something to learn."""
    for seed in range(5):
        image, target = draw(seed, objects=(1, 1))
        mask = masks_of(target).dense()[0].numpy()
        depth: Any = ndimage.distance_transform_edt(mask)
        height: Any = ndimage.distance_transform_edt(~mask)
        inside, around = depth > 2, (height > 2) & (height < 6)
        pixels = image.numpy()
        assert np.abs(pixels[:, inside].mean(1) - pixels[:, around].mean(1)).max() > 15


def test_crowd_comes_last():
    for seed in range(5):
        _, target = draw(seed, objects=(1, 4), crowd=True)
        assert target.crowd.tolist() == [False] * (len(target) - 1) + [True]
        assert target.has_mask[-1]
        assert masks_of(target).areas()[-1] > 0
        assert (target.labels >= 0).all()


def test_box_only_objects_have_no_mask():
    _, target = draw(1, objects=(8, 8), box_only=0.5)
    assert 0 < target.has_mask.sum() < len(target)
    assert torch.equal(masks_of(target).areas() > 0, target.has_mask)
    _, full = draw(1, objects=(8, 8))
    assert torch.equal(target.boxes, full.boxes)


def test_data_set_is_what_is_drawn():
    dataset = shapes_dataset(4, seed=2, size=(64, 80), crowd=True)
    assert len(dataset) == 4
    image, target, meta = dataset.load(1)
    wanted = draw(2 * 1_000_003 + 1, (64, 80), crowd=True)
    same((image, target), wanted)
    assert torch.equal(target.crowd, wanted[1].crowd)
    assert (meta.image_id, meta.size) == (2, (64, 80))
    image.zero_()
    assert dataset.load(1)[0].any()
    assert dataset.load(1, "boxes")[1].masks is None
    tags = dataset.load(1, "tags")[1].tags
    assert tags is not None
    assert sorted(set(target.labels.tolist())) == tags.nonzero()[:, 0].tolist()
    part = dataset.subset([3, 1])
    same(part.load(1)[:2], wanted)
    train, val = dataset.split(0.25, seed=0)
    assert (len(train), len(val)) == (3, 1)


def test_truth_is_cocos():
    dataset = shapes_dataset(3, size=(64, 64), crowd=True, box_only=0.3)
    truth = dataset.coco()
    index: Any = COCO()
    index.dataset = truth
    index.createIndex()
    assert index.getCatIds() == list(CATEGORIES.ids)
    ids = [row["id"] for row in truth["annotations"]]
    assert len(set(ids)) == len(ids)
    for row in truth["annotations"]:
        if "segmentation" in row:
            x, y, w, h = oracle.toBbox(row["segmentation"])
            assert row["bbox"] == [x, y, w, h]
    assert sum(row["iscrowd"] for row in truth["annotations"]) == 3
    assert any("segmentation" not in row for row in truth["annotations"])


def test_written_folder_reads_back(tmp_path):
    folder = shapes.write(tmp_path / "drawn", train=5, val=2, seed=1, size=(64, 64))
    train, val = open_splits(folder)
    assert (len(train), len(val)) == (5, 2)
    assert train.categories == CATEGORIES
    assert not train.problems
    assert sorted(p.name for p in folder.iterdir()) == ["images", "train.json", "val.json"]
    drawn = shapes_dataset(7, seed=1, size=(64, 64))
    for found, start in ((train, 0), (val, 5)):
        for i in range(len(found)):
            image, target, _ = found.load(i)
            expected, wanted, _ = drawn.load(start + i)
            assert torch.equal(masks_of(target).dense(), masks_of(wanted).dense())
            assert torch.equal(target.labels, wanted.labels)
            assert (image.float() - expected.float()).abs().mean() < 8  # JPEG
