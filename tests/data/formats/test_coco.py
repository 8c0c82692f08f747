import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as oracle

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.formats.coco import read_json
from maskkit.data.rules import sound_rle
from maskkit.errors import DataError
from maskkit.geometry import polygons
from maskkit.geometry import rle as mask_math
from tests.data.written import (
    BLOCK,
    JSON,
    SIZE,
    SQUARE,
    areas,
    image_row,
    messages,
    object_row,
    places,
    spoil,
    write_coco,
    write_image,
    write_json,
)

MASK = np.zeros(SIZE, bool)
MASK[4:9, 7:20] = True
COMPRESSED = mask_math.encode(MASK[None])[0]["counts"].decode()
PIXELS = int(MASK.sum())


def test_every_kind_of_segmentation(tmp_path):
    runs = mask_math.run_lengths(COMPRESSED.encode()).tolist()
    shapes = [
        [SQUARE],
        [SQUARE, BLOCK],
        SQUARE,
        {"size": [*SIZE], "counts": COMPRESSED},
        {"size": [*SIZE], "counts": runs},
    ]
    rows = [object_row(i, segmentation=shape) for i, shape in enumerate(shapes, 1)]
    x1, y1, x2, y2 = mask_math.boxes([{"size": [*SIZE], "counts": COMPRESSED.encode()}])[0].tolist()
    rows[3]["bbox"] = rows[4]["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    rows += [object_row(6, segmentation=[]), object_row(7, segmentation=None)]
    rows += [object_row(8, segmentation=[[]]), object_row(9, segmentation=[[], []])]
    dataset = read_json(write_coco(tmp_path / "a.json", rows))
    assert dataset.problems == []
    found = dataset.records[0].annotations
    union = int(mask_math.area([polygons.to_rle([SQUARE, BLOCK], SIZE)])[0])
    assert areas(found) == [400, union, 400, PIXELS, PIXELS, None, None, None, None]
    assert found[0].box == (10, 10, 30, 30)
    assert len(dataset.records[1].annotations) == 0


def test_what_the_file_says_is_kept(tmp_path):
    rows = [object_row(17, area=123.5), object_row(18, 2, category_id=7, iscrowd=1)]
    truth = read_json(write_coco(tmp_path / "a.json", rows)).coco()
    assert truth["annotations"] == rows
    assert truth["images"] == [image_row(i) | {"file_name": f"images/{i}.png"} for i in (1, 2)]


def test_what_is_missing_is_found_out(tmp_path):
    bare = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [SQUARE]}
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png", "height": None, "width": 0}]
    dataset = read_json(write_coco(tmp_path / "a.json", [bare], images))
    assert dataset.problems == []
    assert [r.size for r in dataset.records] == [SIZE, SIZE]
    assert dataset.coco()["annotations"][0] == object_row(1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": [[1, 1, 5, 5]]}, "2 points"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]], "bbox": [1, 1, 8, 8]}, "are on one line"),
        ({"segmentation": [[1, 1, float("nan"), 5, 9, 1]]}, "no numbers"),
        ({"segmentation": [[70, 1, 80, 1, 75, 9]]}, "outside"),
        ({"segmentation": {"size": [20, 30], "counts": COMPRESSED}}, r"size \[20, 30\], the image \[40, 60\]"),
        ({"segmentation": {"size": [*SIZE], "counts": [10, 20]}}, "add up to 30 pixels, the image has 2400"),
        ({"segmentation": {"size": [*SIZE], "counts": [-10, 2410]}}, "add up"),
        ({"segmentation": {"size": [*SIZE], "counts": [2400]}}, "covers no pixel"),
        ({"segmentation": {"size": [*SIZE], "counts": COMPRESSED + "zz"}}, "compressed"),
        ({"segmentation": {"size": [*SIZE], "counts": None}}, "no run lengths"),
        ({"segmentation": "SQUARE"}, "is a text"),
        ({"segmentation": [], "bbox": [10, 10, 0, 5]}, "0 wide"),
        ({"segmentation": [], "bbox": [10, 10, 5, -5]}, "-5 high"),
        ({"segmentation": [], "bbox": None}, "neither a mask nor a bbox"),
        ({"segmentation": [], "bbox": [1, 2, 3]}, "neither a mask nor a bbox"),
        ({"category_id": 4}, "no category 4"),
        ({"category_id": None}, "no category None"),
        ({"image_id": 99}, "no such image"),
    ],
)
def test_a_bad_annotation_is_left_out_and_named(tmp_path, change, reason):
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1, 2), object_row(5) | change]))
    (message,) = messages(dataset.problems, "error")
    assert message.startswith("annotation 5 of image ")
    assert re.search(reason, message)
    assert dataset.problems[0].file == str(tmp_path / "a.json")
    assert [[a.id for a in r.annotations] for r in dataset.records] == [[], [1]]


def test_all_problems_are_found_at_once(tmp_path):
    rows = [object_row(1, category_id=4), object_row(2, segmentation=[[1, 1]]), None, object_row(3), "text"]
    dataset = read_json(write_coco(tmp_path / "a.json", rows))
    assert len(messages(dataset.problems, "error")) == 4
    assert [a.id for a in dataset.records[0].annotations] == [3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": [[-20, 10, 30, 10, 30, 30, -20, 30]]}, "is cut there"),
        ({"segmentation": [SQUARE, [1, 1, 5, 5]]}, "a part of the mask is left out"),
        ({"bbox": [10, 10, 0, 5]}, "the box of the mask is taken"),
        ({"bbox": [10, 10, 200, 20]}, "is cut there"),
    ],
)
def test_a_doubtful_annotation_is_mended_with_a_warning(tmp_path, change, reason):
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1) | change]))
    assert not messages(dataset.problems, "error")
    assert reason in messages(dataset.problems, "warning")[0]
    assert len(dataset.records[0].annotations) == 1


def test_images_that_cannot_be_used(tmp_path):
    images = [
        image_row(1),
        image_row(2, file_name="nowhere.png"),
        image_row(1, file_name="2.png"),
        {"id": 4},
        {"file_name": "2.png"},
        image_row(6, file_name="broken.png", width=None),
        None,
    ]
    write_image(tmp_path / "images" / "broken.png").write_bytes(b"")
    rows = [object_row(1), object_row(2, 2), object_row(3, 6)]
    dataset = read_json(write_coco(tmp_path / "a.json", rows, images))
    assert [r.image_id for r in dataset.records] == [1]
    errors = messages(dataset.problems, "error")
    assert len(errors) == 6
    for part in ("image 2 (nowhere.png): there is no such image", "image 1 (2.png): the id is used twice", "0 bytes"):
        assert any(part in e for e in errors)


def test_ids_that_are_used_twice_or_missing(tmp_path):
    rows = [object_row(5), object_row(5, 2), {k: v for k, v in object_row(0).items() if k != "id"}]
    dataset = read_json(write_coco(tmp_path / "a.json", rows))
    ids = [a.id for r in dataset.records for a in r.annotations]
    assert len(set(ids)) == 3
    assert 5 in ids
    assert messages(dataset.problems, "warning") == [
        "annotation 5 of image 2: the id is used twice; this one is read as 6"
    ]


def test_ids_as_text(tmp_path):
    numbers = write_coco(tmp_path / "a.json", [object_row("8", "1", category_id="3")], [image_row(1), image_row("2")])
    dataset = read_json(numbers)
    assert dataset.problems == []
    assert (dataset.records[0].annotations[0].id, dataset.records[0].image_id) == (8, 1)
    words = write_coco(tmp_path / "b.json", [object_row(1, "one")], [image_row(2, id="two"), image_row(1, id="one")])
    dataset = read_json(words)
    assert [(r.image_id, len(r.annotations)) for r in dataset.records] == [("two", 0), ("one", 1)]
    assert dataset.problems == []


@pytest.mark.parametrize(("one", "other"), [("12_3", "1_23"), ("0001", "1"), (" 1", "1"), ("+1", 1), ("1e0", 1)])
def test_ids_that_read_as_the_same_number_stay_apart(tmp_path, one, other):
    images = [image_row(1, id=one), image_row(2, id=other)]
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1, one), object_row(2, other)], images))
    assert messages(dataset.problems, "error") == []
    assert [[a.id for a in r.annotations] for r in dataset.records] == [[1], [2]]


def test_categories_that_are_wrong(tmp_path):
    categories = [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}, {"name": "fish"}, {"id": 9}, "x"]
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1)], categories=categories))
    assert dataset.categories.names == ("cat", "9")
    assert len(messages(dataset.problems, "error")) == 3


def test_no_annotation_is_legal_with_a_warning(tmp_path):
    dataset = read_json(write_coco(tmp_path / "a.json", []))
    assert len(dataset) == 2
    assert [p.level for p in dataset.problems] == ["warning"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "file is empty"),
        ("  \n", "file is empty"),
        ("{", "is not json"),
        ("\x00\x01", "is not json"),
        ("{}", "no list of images, annotations, categories"),
        ("[]", "holds a list"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list of annotations"),
    ],
)
def test_an_unreadable_file_is_one_clear_error(tmp_path, content, reason):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        open_dataset(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "a.json")


def _content(numbers: range) -> dict:
    return {
        "images": [image_row(i) for i in numbers],
        "annotations": [object_row(i, i) for i in numbers],
        "categories": [{"id": 3, "name": "cat"}],
    }


LAYOUTS = {
    "plain": ("train.json", "images/{}.png", "val.json", "images/{}.png"),
    "split folders": ("train.json", "images/train/{}.png", "val.json", "images/val/{}.png"),
    "coco": (
        "annotations/instances_train2017.json",
        "train2017/{}.png",
        "annotations/instances_val2017.json",
        "val2017/{}.png",
    ),
    "mmdetection": ("annotations/train.json", "images/{}.png", "annotations/val.json", "images/{}.png"),
    "roboflow": ("train/_annotations.coco.json", "train/{}.png", "valid/_annotations.coco.json", "valid/{}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_splits(tmp_path, layout):
    train_file, train_image, val_file, val_image = LAYOUTS[layout]
    for file, image, numbers in ((train_file, train_image, range(1, 4)), (val_file, val_image, range(3, 5))):
        for i in numbers:
            write_image(tmp_path / image.format(i), i)
        write_json(tmp_path / file, _content(numbers))
    assert find_splits(tmp_path) == ["train", "val"]
    train, val = open_splits(tmp_path)
    assert ([r.image_id for r in train.records], [r.image_id for r in val.records]) == ([1, 2, 3], [3, 4])
    assert train.problems == val.problems == []
    assert all(r.path.is_file() for r in train.records)
    whole = open_dataset(tmp_path)
    assert len(whole) == 5
    assert len({r.image_id for r in whole.records}) == 5
    with pytest.raises(DataError, match="no test split"):
        open_dataset(tmp_path, "test")


def test_a_folder_without_splits_is_read_whole_and_split_by_the_seed(tmp_path):
    write_json(tmp_path / "annotations.json", _content(range(1, 11)))
    for i in range(1, 11):
        write_image(tmp_path / f"{i}.png", i)
    assert len(open_dataset(tmp_path, "val")) == 10
    train, val = open_splits(tmp_path, val_split=0.3, seed=4)
    assert (len(train), len(val)) == (7, 3)
    assert not {r.image_id for r in train.records} & {r.image_id for r in val.records}
    assert [r.image_id for r in open_splits(tmp_path, val_split=0.3, seed=4)[1].records] == [
        r.image_id for r in val.records
    ]


def test_one_image_cannot_be_split(tmp_path):
    write_image(tmp_path / "1.png")
    file = write_json(tmp_path / "annotations.json", _content(range(1, 2)))
    with pytest.raises(DataError, match="1 usable image"):
        open_splits(file)


def test_validation_data_take_the_class_numbers_of_the_training_data(tmp_path):
    train = write_coco(tmp_path / "a" / "a.json", [object_row(1)])
    other = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    val = write_coco(tmp_path / "b" / "b.json", [object_row(1, category_id=2)], categories=other)
    training, validation = open_splits(train, val)
    assert validation.categories == training.categories
    assert validation.records[0].annotations[0].label == 0
    fish = write_coco(tmp_path / "c" / "c.json", [object_row(1)], categories=[{"id": 3, "name": "fish"}])
    with pytest.raises(DataError, match="fish"):
        open_splits(train, fish)


def test_roboflows_placeholder_class_is_dropped_only_when_unused(tmp_path):
    categories = [
        {"id": 0, "name": "project", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "project"},
    ]
    unused = read_json(write_coco(tmp_path / "a.json", [object_row(1)], categories=categories))
    assert unused.categories.names == ("cat",)
    used = read_json(write_coco(tmp_path / "b.json", [object_row(1, category_id=0)], categories=categories))
    assert used.categories.names == ("project", "cat")


def test_images_written_with_folders_of_another_machine(tmp_path):
    images = [image_row(1, file_name="C:\\data\\images\\1.png"), image_row(2, file_name="/home/me/2.png")]
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1)], images))
    assert [r.path.name for r in dataset.records] == ["1.png", "2.png"]


@given(arrays.arrays(bool, st.tuples(st.integers(1, 60), st.integers(1, 60))))
def test_run_lengths_of_the_compressed_text(mask):
    record = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = mask_math.run_lengths(bytes(record["counts"]))  # type: ignore[arg-type]
    assert runs.min() >= 0
    assert runs.sum() == mask.size
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert np.array_equal(values.reshape(mask.shape[::-1]).T, mask)


@given(st.binary(max_size=30))
def test_no_text_of_counts_does_more_than_raise_value_error(counts):
    try:
        record = sound_rle({"size": [6, 7], "counts": counts}, (6, 7))
    except ValueError:
        return
    assert mask_math.area([record])[0] == mask_math.decode([record], (6, 7)).sum() > 0


def test_json_of_other_tools_is_not_taken_for_coco(tmp_path):
    write_json(tmp_path / "a.json", json.loads('{"version": "5.0", "shapes": []}'))
    with pytest.raises(DataError, match="a file of one LabelMe image"):
        open_dataset(tmp_path / "a.json")


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_one_value_is_reading_gives_a_data_set_or_a_clear_error(tmp_path, data):
    if not (tmp_path / "a.json").is_file():
        rows = [object_row(1), object_row(2, 2, segmentation={"size": [*SIZE], "counts": COMPRESSED})]
        rows.append(object_row(3, 2, segmentation={"size": [*SIZE], "counts": [100, 50, 2250]}, iscrowd=1))
        write_coco(tmp_path / "a.json", rows)
    content = json.loads((tmp_path / "a.json").read_text())
    place = data.draw(st.sampled_from(places(content)))
    file = write_json(tmp_path / "b.json", spoil(content, place, data.draw(JSON)))
    try:
        dataset = read_json(file)
    except DataError:
        assert len(place) == 1  # one of the three lists is no list
        return
    truth = json.dumps(dataset.coco())
    assert len(json.loads(truth)["images"]) == len(dataset) <= 2


def test_one_bad_image_record_leaves_the_ids_of_the_others(tmp_path):
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1, 9)], [None, image_row(9, file_name="2.png")]))
    assert [(r.image_id, len(r.annotations)) for r in dataset.records] == [(9, 1)]
    assert len(dataset.problems) == 1


@pytest.mark.parametrize(
    ("bbox", "said"),
    [
        ([10, 10, 20, 20], False),
        ([8, 8, 23, 23], False),  # drawn by hand
        ([10, 10, 30, 20], False),  # around a hidden part
        ([40, 25, 10, 10], True),
        ([10, 10, 30, 30], True),  # x2 and y2 in place of width and height
        ([10, 10, 4, 4], True),
    ],
)
@pytest.mark.parametrize("kind", ["polygon", "run lengths"])
def test_a_box_that_is_not_around_its_mask_is_said(tmp_path, bbox, said, kind):
    rle = polygons.to_rle([SQUARE], SIZE)
    shape = [SQUARE] if kind == "polygon" else {"size": [*SIZE], "counts": rle["counts"].decode()}
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1, bbox=bbox, segmentation=shape)]))
    assert ["not around the mask" in w for w in messages(dataset.problems, "warning")] == [True] * said
    assert len(dataset.records[0].annotations) == 1


def test_many_boxes_that_contradict_their_masks_are_counted(tmp_path):
    rows = [object_row(i, bbox=[40, 25, 10, 10]) for i in range(1, 51)]
    warnings = messages(read_json(write_coco(tmp_path / "a.json", rows)).problems, "warning")
    assert len(warnings) == 21
    assert warnings[-1].startswith("30 other annotations: the same")


PYTHON = re.compile(
    r"NoneType|could not convert|unpack|not iterable|unhashable|argument must|has no attribute|object is not|"
    r"object of type|not supported between|Error\(|invalid literal|<class|inhomogeneous|sequence"
)
"""Words of Python's own messages."""


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_problems_are_in_words_of_the_file(tmp_path, data):
    content = json.loads(write_coco(tmp_path / "a.json", [object_row(1), object_row(2, 2)]).read_text())
    content["annotations"].append(object_row(3, segmentation={"size": [*SIZE], "counts": [100, 10, 2290]}))
    place = data.draw(st.sampled_from(places(content)))
    (tmp_path / "a.json").write_text(json.dumps(spoil(content, place, data.draw(JSON))))
    try:
        said = [str(p) for p in read_json(tmp_path / "a.json").problems]
    except DataError as error:
        said = [str(error)]
    assert not [text for text in said if PYTHON.search(text)]


@pytest.mark.parametrize("flag", [1, 1.0, True, "1", "true", "True", "yes"])
def test_flags_that_are_set(tmp_path, flag):
    categories = [{"id": 3, "name": "cat", "isthing": flag}, {"id": 7, "name": "sky", "isthing": "0"}]
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1, iscrowd=flag)], categories=categories))
    assert dataset.categories.things == (True, False)
    assert dataset.records[0].annotations[0].crowd


@pytest.mark.parametrize("flag", [0, 0.0, False, "0", "false", "", None, float("nan"), []])
def test_flags_that_are_not_set(tmp_path, flag):
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1, iscrowd=flag)]))
    assert not dataset.records[0].annotations[0].crowd


@pytest.mark.parametrize("corners", [True, False])
def test_corners_in_the_place_of_sizes_are_said(tmp_path, corners):
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(0, SIZE[1], (12, 2))).T, np.sort(rng.uniform(0, SIZE[0], (12, 2))).T
    boxes = np.stack([x[0], y[0], x[1], y[1]] if corners else [x[0], y[0], x[1] - x[0], y[1] - y[0]], 1).tolist()
    rows = [object_row(i, bbox=box, segmentation=None) for i, box in enumerate(boxes, 1)]
    dataset = read_json(write_coco(tmp_path / "a.json", rows))
    assert any("all but surely x1, y1, x2, y2" in p.message for p in dataset.problems) == corners


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_form_of_unicode(tmp_path, forms):
    stated, there = (unicodedata.normalize(form, "café/größe.png") for form in forms)
    write_image(tmp_path / "images" / there)
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1)], [image_row(1, file_name=stated)]))
    assert (len(dataset), dataset.problems) == (1, [])
    both = [image_row(1, file_name=stated), image_row(2, file_name=there)]
    dataset = read_json(write_coco(tmp_path / "a.json", [object_row(1)], both))
    assert [r.image_id for r in dataset.records] == [2], "the one that names it exactly has the file"
    assert "is that of" in messages(dataset.problems, "error")[0]


def test_a_file_of_all_beside_those_of_the_splits_is_not_read_again(tmp_path):
    for number, name in enumerate(("train", "val"), 1):
        write_coco(tmp_path / f"{name}.json", [object_row(1, number)], [image_row(number)])
    write_coco(tmp_path / "annotations.json", [object_row(1, 1), object_row(2, 2)])
    assert [r.image_id for r in open_dataset(tmp_path).records] == [1, 2]


def test_lvis_has_addresses_in_place_of_names(tmp_path):
    for folder in ("train2017", "val2017"):
        write_image(tmp_path / folder / "1.png", len(folder))
    image = image_row(1, coco_url="http://images.cocodataset.org/val2017/1.png", not_exhaustive_category_ids=[])
    del image["file_name"]
    dataset = read_json(write_coco(tmp_path / "lvis_v1_val.json", [object_row(1)], [image]))
    assert [r.path for r in dataset.records] == [tmp_path / "val2017" / "1.png"]
    assert "a measurement here is not that of LVIS" in messages(dataset.problems, "warning")[0]


def test_keypoints_are_counted(tmp_path):
    rows = [object_row(1, keypoints=[10, 10, 2]), object_row(2, keypoints=[]), object_row(3)]
    dataset = open_dataset(write_coco(tmp_path / "annotations.json", rows))
    assert messages(dataset.problems, "warning") == [": 1 annotation with keypoints: they are not read"]


def test_of_several_files_for_a_split_those_not_read_are_named(tmp_path):
    for part in (1, 2):
        write_coco(tmp_path / "annotations" / f"instances_train_{part}.json", [object_row(1)])
    write_coco(tmp_path / "annotations" / "instances_val.json", [object_row(1)])
    message = ": instances_train_1.json is read, instances_train_2.json of the same split not; join the files"
    assert messages(open_dataset(tmp_path, "train").problems, "warning") == [message]
    assert messages(open_dataset(tmp_path).problems, "warning") == [message]
    assert messages(open_dataset(tmp_path, "val").problems, "warning") == []
