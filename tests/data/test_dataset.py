from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskkit.data.dataset import Dataset, join
from maskkit.data.records import Annotation, Record
from maskkit.data.rules import Problems, sound_box, sound_polygons
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle
from maskkit.prediction import Categories

from .written import BLOCK, SIZE, SQUARE, write_image

RLE = mask_math.encode(np.pad(np.ones((1, 4, 6), bool), ((0, 0), (2, 34), (3, 51))))[0]


@pytest.fixture
def dataset(tmp_path):
    """Three images: all kinds of objects, boxes alone, nothing."""
    objects = [
        Annotation(11, 0, (10, 10, 30, 30), [SQUARE], area=400.0),
        Annotation(12, 1, None, RLE),
        Annotation(13, 1, (50.0, 30.0, 60.5, 40.5)),
        Annotation(14, 0, (0, 0, 60, 40), mask_math.from_counts([0, 2400], SIZE), crowd=True),
    ]
    contents = [objects, [Annotation(15, 2, (-0.5, 2, 3, 4))], []]
    records = [Record(i, write_image(tmp_path / f"{i}.png", i), SIZE, c) for i, c in enumerate(contents, 5)]
    return Dataset(records, Categories(("cat", "dog", "bird"), (3, 7, 9)), tmp_path, "coco")


def test_load_masks(dataset):
    image, target, meta = dataset.load(0)
    assert image.shape == (3, *SIZE)
    assert (meta.image_id, meta.size, meta.input_size) == (5, SIZE, SIZE)
    assert target.labels.tolist() == [0, 1, 1, 0]
    assert target.crowd.tolist() == [False, False, False, True]
    assert target.has_mask.tolist() == [True, True, False, True]
    assert target.masks.areas().tolist() == [400, 24, 0, 2400]
    assert target.boxes[1].tolist() == [3, 2, 9, 6]  # the tight box of the mask
    assert target.boxes[2].tolist() == [50, 30, 60, 40]  # cut at the border
    assert target.masks.dense()[0, 10:30, 10:30].all()


def test_load_boxes_carries_no_mask(dataset):
    _, target, _ = dataset.load(0, "boxes")
    assert target.masks is None
    assert len(target) == 4
    assert not target.has_mask.any()


def test_drawn_masks_stand_in_for_those_that_are_unknown(dataset):
    """With the supervision of boxes for all of them: masks of the file are not read."""
    record = dataset.records[0]
    drawn = mask_math.encode(np.pad(np.ones((1, 5, 5), bool), ((0, 0), (10, 25), (20, 35))))[0]
    objects = [replace(a, drawn=drawn) if i != 1 else a for i, a in enumerate(record.annotations)]
    given = replace(dataset, records=[replace(record, annotations=objects)])
    _, target, _ = given.load(0, "boxes")
    assert target.has_mask.tolist() == [True, False, True, True]
    assert target.masks.areas().tolist() == [25, 0, 25, 25]
    assert target.boxes.tolist() == dataset.load(0, "boxes")[1].boxes.tolist()
    _, target, _ = given.load(0, "masks")
    assert target.has_mask.all()
    assert target.masks.areas().tolist() == [400, 24, 25, 2400]
    assert given.load(0, "tags")[1].masks is None
    assert given.coco() == replace(dataset, records=[record]).coco(), "they are no ground truth"


def test_load_tags_carries_no_object(dataset):
    _, target, _ = dataset.load(0, "tags")
    assert len(target) == 0
    assert target.tags.tolist() == [True, True, False]
    assert target.masks is None


def test_boxes_alone_and_nothing_at_all_are_normal(dataset):
    _, boxes, _ = dataset.load(1)
    assert boxes.masks is None
    assert boxes.has_mask.tolist() == [False]
    assert boxes.boxes.tolist() == [[0, 2, 3, 4]]
    _, nothing, _ = dataset.load(2)
    assert len(nothing) == len(nothing.masks) == 0
    assert nothing.boxes.shape == (0, 4)
    assert dataset.load(2, "tags")[1].tags.tolist() == [False, False, False]


def test_load_refuses_a_image_of_another_size(dataset, tmp_path):
    write_image(tmp_path / "5.png", size=(SIZE[1], SIZE[0]))
    with pytest.raises(DataError, match=r"60 x 40 pixels, the image has 40 x 60.*EXIF"):
        dataset.load(0)


def test_coco_keeps_ids_areas_and_crowds(dataset):
    truth = dataset.coco()
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}]
    assert [i["id"] for i in truth["images"]] == [5, 6, 7]
    assert truth["images"][0]["file_name"] == "5.png"
    square, blob, box, crowd, other = truth["annotations"]
    assert square == {
        "id": 11,
        "image_id": 5,
        "category_id": 3,
        "bbox": [10, 10, 20, 20],
        "area": 400.0,
        "iscrowd": 0,
        "segmentation": [SQUARE],
    }
    assert (blob["area"], blob["bbox"], blob["segmentation"]["size"]) == (24, [3, 2, 6, 4], list(SIZE))
    assert isinstance(blob["segmentation"]["counts"], str)
    assert "segmentation" not in box
    assert box["area"] == pytest.approx(10.5**2)
    assert crowd["iscrowd"] == 1
    assert other["image_id"] == 6


def test_coco_is_read_by_pycocotools(dataset):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = dataset.coco()
    coco.createIndex()
    known = [a for a in coco.anns.values() if "segmentation" in a]
    assert [int(coco.annToMask(a).sum()) for a in known] == [400, 24, 2400]


@given(count=st.integers(2, 40), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_split_takes_every_image_once_and_repeats(count, share, seed):
    records = [Record(i, Path(f"{i}.png"), SIZE, []) for i in range(count)]
    dataset = Dataset(records, Categories.of(["cat"]), Path("."), "coco")
    train, val = dataset.split(share, seed)
    ids = [r.image_id for r in train.records], [r.image_id for r in val.records]
    assert sorted(ids[0] + ids[1]) == list(range(count))
    assert len(val) == min(max(round(share * count), 1), count - 1)
    assert [r.image_id for r in dataset.split(share, seed)[1].records] == ids[1]


def test_split_depends_on_the_seed_and_refuses_nonsense(dataset):
    many = Dataset(dataset.records * 20, dataset.categories, dataset.source, "coco")
    assert len({tuple(r.image_id for r in many.split(0.3, seed)[1].records) for seed in range(5)}) == 5
    with pytest.raises(ValueError, match="between 0 and 1"):
        dataset.split(1.0, 0)


def test_classes_are_matched_by_name(dataset):
    moved = dataset.with_categories(Categories(("dog", "fish", "bird", "cat"), (1, 2, 3, 4)))
    assert [a.label for a in moved.records[0].annotations] == [3, 0, 0, 3]
    assert moved.coco()["annotations"][0]["category_id"] == 4
    with pytest.raises(DataError, match="bird"):
        dataset.with_categories(Categories.of(["cat", "dog"]))


def test_classes_of_one_name_are_matched_by_id_too(dataset):
    twice = replace(dataset, categories=Categories(("cat", "cat", "dog"), (1, 2, 3)))
    assert twice.categories.numbers_in(Categories(("fish", "cat", "cat"), (9, 2, 1))) == {0: 2, 1: 1}
    with pytest.raises(DataError, match=r"unknown classes: cat \(1\), cat \(2\) .*cat \(8\), cat \(9\)"):
        twice.with_categories(Categories(("cat", "cat", "dog", "bird"), (8, 9, 3, 4)))


def test_join_numbers_anew_only_what_occurs_twice(dataset):
    again = join([dataset, dataset], dataset.source)
    assert [r.image_id for r in again.records] == [1, 2, 3, 4, 5, 6]
    assert [a.id for r in again.records for a in r.annotations] == list(range(1, 11))
    once = join([dataset.subset([0]), dataset.subset([1, 2])], dataset.source)
    assert [r.image_id for r in once.records] == [5, 6, 7]
    assert [a.id for r in once.records for a in r.annotations] == [11, 12, 13, 14, 15]


def test_problems_do_not_name_their_file_twice():
    problems = Problems()
    problems.error(Path("a/b.png"), "", "a/b.png: is empty")
    assert str(problems[0]) == "error: a/b.png: is empty"


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 5, 9), "0 wide"),
        ((5, 9, 8, 5), "-4 high"),
        ((70, 5, 80, 9), "outside"),
        ((5, -9, 8, 0), "outside"),
        ((5, float("nan"), 8, 9), "no numbers"),
        ((5, 5, float("inf"), 9), "no numbers"),
    ],
)
def test_unusable_boxes(box, reason):
    with pytest.raises(ValueError, match=reason):
        sound_box(box, SIZE, pytest.fail)


def test_boxes_are_cut_where_they_reach_far_over_the_border():
    said = []
    assert sound_box((-5, 2, 65, 9), SIZE, said.append) == (0, 2, 60, 9)
    assert len(said) == 1
    assert sound_box((-0.5, 2, 60.9, 9), SIZE, pytest.fail) == (-0.5, 2, 60.9, 9)


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([1, 1, 5, 5], "2 points"),
        ([1, 1, 5, 5, 9], "flat list"),
        ([[1, 1], [5, 5], [9, 1]], "flat list"),
        ([1, 1, float("nan"), 5, 9, 1], "no numbers"),
        ([70, 1, 80, 1, 75, 9], "outside"),
        ([60.2, 1, 60.8, 1, 60.5, 9], "outside"),
        ([-30, 45, 30, 45, 30, 100], "outside"),
        ([5, 5, 9, 5, 12, 5], "covers nothing"),
        (["a", 1, 2, 3, 4, 5], "is no number"),
    ],
)
def test_unusable_polygons(polygon, reason):
    with pytest.raises(ValueError, match=reason):
        sound_polygons([polygon], SIZE, pytest.fail)


def test_a_bad_part_does_not_take_the_object_along():
    said = []
    kept = sound_polygons([BLOCK, [1, 1, 5, 5]], SIZE, said.append)
    assert [p.tolist() for p in kept] == [BLOCK]
    assert "2 points" in said[0]


@given(arrays.arrays(np.float64, st.integers(3, 8).map(lambda n: (n, 2)), elements=st.integers(-40, 100).map(float)))
def test_cutting_a_polygon_is_cutting_its_mask(points):
    # the field from -40 to 100 in both axes, with the image inside
    big = mask_math.decode([to_rle([(points + 40).reshape(-1).tolist()], (140, 140))], (140, 140))[0]
    inside = big[40 : 40 + SIZE[0], 40 : 40 + SIZE[1]]
    try:
        kept = sound_polygons([points.reshape(-1)], SIZE, lambda text: None)
    except ValueError:
        assert inside.sum() <= SIZE[0] + SIZE[1]  # a line at most
        return
    mask = mask_math.decode([to_rle([p.tolist() for p in kept], SIZE)], SIZE)[0]
    # the rasteriser rounds slanted edges to fifths of a pixel, from other end points here
    assert (mask != inside).sum() <= 0.02 * inside.size
    assert torch.tensor(kept[0]).min() >= -1
