import io

import pytest
from rich.console import Console

from maskkit.data import check as doctor
from maskkit.data import open_dataset
from maskkit.data.check import check, check_datasets
from maskkit.data.convert import convert
from maskkit.errors import DataError

from .written import SIZE, image_row, object_row, write_coco, write_image, write_json


@pytest.fixture
def folder(tmp_path):
    """Training images 1 to 4 (3 is truncated, 4 of another size than the json says), validation images 5 and 6."""
    for i in range(1, 7):
        write_image(tmp_path / "images" / f"{i}.png", i)
    cut = tmp_path / "images" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-500])
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    rows = [object_row(1), object_row(2, segmentation=[]), object_row(3, 2, iscrowd=1), object_row(4, 2, category_id=9)]
    images = [image_row(1), image_row(2), image_row(3), image_row(4, width=61)]
    write_json(tmp_path / "train.json", {"images": images, "annotations": rows, "categories": categories})
    rows = [object_row(1, 5, area=2000), object_row(2, 5, category_id=7)]
    content = {"images": [image_row(5), image_row(6)], "annotations": rows, "categories": categories}
    write_json(tmp_path / "val.json", content)
    return tmp_path


def test_everything_is_found_at_once(folder):
    report = check(folder)
    found = {(p.file.rsplit("/", 1)[-1], p.record) for p in report.errors}
    assert found == {("train.json", "annotation 4 of image 2"), ("3.png", "image 3"), ("4.png", "image 4")}
    reasons = " ".join(p.message for p in report.errors)
    assert "no category 9" in reasons
    assert "damaged" in reasons
    assert "61 x 40 pixels, the image has 60 x 40" in reasons
    assert [p.record for p in report.warnings] == ["train"]
    assert "no object of dog" in report.warnings[0].message
    assert report.decoded


def test_only_what_is_usable_stays(folder):
    datasets = check(folder).datasets
    assert [r.image_id for r in datasets["train"].records] == [1, 2]
    for dataset in datasets.values():
        for i in range(len(dataset)):
            dataset.load(i)


def test_contents(folder):
    train, val = check(folder).summaries.values()
    assert (train.images, train.empty, train.objects, train.crowds, train.box_only) == (2, 1, 2, 1, 1)
    assert train.classes == {"cat": 2, "dog": 0}
    assert train.per_image == [2, 0]
    assert train.sizes == {SIZE: 2}
    assert (val.objects, val.small, val.classes) == (2, 1, {"cat": 1, "dog": 1})


def test_headers_alone_miss_damaged_pixels_and_say_so(folder):
    report = check(folder, decode=False)
    assert [p.record for p in report.errors] == ["annotation 4 of image 2", "image 4"]
    assert "only their headers" in _printed(report)


def test_many_images_are_not_decoded_unless_asked(folder, monkeypatch):
    monkeypatch.setattr(doctor, "MANY", 3)
    assert not check(folder).decoded
    assert check(folder, decode=True).decoded


def test_the_same_image_in_two_splits_is_a_leak(folder):
    images = folder / "images"
    (images / "6.png").write_bytes((images / "1.png").read_bytes())
    (images / "2.png").write_bytes((images / "1.png").read_bytes())
    warnings = {p.file: p.message for p in check(folder).warnings}
    assert "1.png of train: results on val will be too optimistic" in warnings[str(images / "6.png")]
    assert "one of them is enough" in warnings[str(images / "2.png")]


def _printed(report, **options) -> str:
    out = io.StringIO()
    report.print(Console(file=out, width=120), **options)
    return out.getvalue()


def test_print_shows_every_problem_and_the_contents(folder):
    report = check(folder, progress=True)
    text = _printed(report)
    for problem in report.problems:
        assert str(problem) in text
    for part in ("cat", "dog", "train", "val", "3 errors, 1 warning", "60 to 60"):
        assert part in text
    assert "... and 2 more errors" in _printed(report, limit=1)


def test_a_sound_data_set_has_no_problem(tmp_path):
    rows = [object_row(1), object_row(2, category_id=7)]
    report = check(write_coco(tmp_path / "[odd].json", rows))
    assert report.problems == []
    assert list(report.datasets) == ["all"]
    assert "[odd].json: 0 errors" in _printed(report)


def test_parts_of_one_file_report_its_problems_once(tmp_path):
    dataset = open_dataset(write_coco(tmp_path / "a.json", [object_row(1), object_row(2, category_id=5)]))
    train, val = dataset.split(0.5, 0)
    report = check_datasets({"train": train, "val": val})
    assert len(report.errors) == 1


def test_a_data_set_without_images(tmp_path):
    report = check(write_coco(tmp_path / "a.json", [], images=[]))
    assert [p.message for p in report.errors] == ["lists no image"]
    assert "0 to 0" in _printed(report)


def test_an_unreadable_file_raises(tmp_path):
    (tmp_path / "annotations.json").write_text("")
    with pytest.raises(DataError, match="empty"):
        check(tmp_path)


def test_objects_that_are_there_twice(tmp_path):
    box = object_row(3, 2, segmentation=[])
    others = [
        object_row(2, category_id=7),
        object_row(5, segmentation=[[10, 10, 30, 10, 30, 30]]),
        object_row(6, iscrowd=1),
    ]
    report = check(write_coco(tmp_path / "a.json", [object_row(1), *others, box]))
    assert report.problems == []
    rows = [object_row(1), *others, box, object_row(7), box | {"id": 8}, box | {"id": 9}, object_row(10, iscrowd=1)]
    (problem,) = check(write_coco(tmp_path / "a.json", rows)).problems
    assert (problem.level, problem.message[:31]) == ("warning", "3 objects are there twice, with")


@pytest.mark.parametrize(("side", "warned"), [(0.3, True), (3, False)])
def test_boxes_of_fractions_are_doubted(tmp_path, side, warned):
    rows = [object_row(i, bbox=[0.1, 0.1 * i, side, side], segmentation=[]) for i in (1, 2)]
    report = check(write_coco(tmp_path / "a.json", [*rows, object_row(3, 2, category_id=7)]))
    assert [p.message[:7] for p in report.problems] == ["2 of 3 "] * warned


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "cat"), "2 classes are called 'cat'; give each its own name"),
        (("Cat", "cat "), "the classes 'Cat' and 'cat ' differ only in case"),
        (("caf\u00e9", "cafe\u0301"), "'caf\\xe9' and 'cafe\\u0301' differ only in case"),
    ],
)
def test_classes_that_may_be_one_are_doubted(tmp_path, names, message):
    categories = [{"id": i, "name": name} for i, name in zip((3, 7), names, strict=True)]
    file = write_coco(tmp_path / "a.json", [object_row(1), object_row(2, category_id=7)], categories=categories)
    (problem,) = check(file).problems
    assert problem.level == "warning"
    assert message in problem.message


def test_nothing_to_learn_is_an_error(tmp_path):
    write_image(tmp_path / "a.png")
    write_json(tmp_path / "a.json", {"shapes": [], "imagePath": "a.png"})
    assert [p.message for p in check(tmp_path).errors] == [
        "there is no class and no object, so there is nothing to learn; add labels"
    ]
    with pytest.raises(DataError, match="has no class and no object, so there is nothing to convert"):
        convert(tmp_path, tmp_path / "out", "yolo")
