"""Tables of boxes: what is recognised, what a row means, what is left out."""

import random
from pathlib import Path

import pytest

from maskkit.data import find_splits, open_dataset, open_splits
from maskkit.data.check import check
from maskkit.data.dataset import Dataset
from maskkit.data.formats import boxes, tags
from maskkit.errors import DataError
from tests.data.written import messages, write_image

HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax"
"""Of TensorFlow's tools. An image here is 60 wide and 40 high."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        write_image(tmp_path / "images" / f"{name}.png", ord(name))
    return tmp_path


def found(dataset: Dataset) -> dict[str, list[tuple[str, tuple[float, ...] | None]]]:
    names = dataset.categories.names
    return {r.path.name: [(names[a.label], a.box) for a in r.annotations] for r in dataset.records}


EXPECTED = {"a.png": [("cat", (5, 6, 25, 30)), ("dog", (30, 10, 50, 20))], "b.png": [("cat", (1, 2, 11, 22))]}


@pytest.mark.parametrize(
    "lines",
    [
        [HEAD, "a.png,60,40,cat,5,6,25,30", "a.png,60,40,dog,30,10,50,20", "b.png,60,40,cat,1,2,11,22"],
        ["path,x1,y1,x2,y2,class", "a.png,5,6,25,30,cat", "a.png,30,10,50,20,dog", "b.png,1,2,11,22,cat"],
        ["images/a.png,5,6,25,30,cat", "images/a.png,30,10,50,20,dog", "images/b.png,1,2,11,22,cat"],
        ["image_id;x;y;w;h;label", "a.png;5;6;20;24;cat", "a.png;30;10;20;10;dog", "b.png;1;2;10;20;cat"],
        ["LABEL\tLEFT\tTOP\tRIGHT\tBOTTOM\tIMAGE", "cat\t5\t6\t25\t30\ta.png", "dog\t30\t10\t50\t20\ta.png",
         "cat\t1\t2\t11\t22\tb.png"],
        ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf",
         f"a,x,/m/1,1,{5 / 60!r},{25 / 60!r},{6 / 40!r},{30 / 40!r},0", f"a,x,/m/2,1,0.5,{50 / 60!r},0.25,0.5,0",
         f"b,x,/m/1,1,{1 / 60!r},{11 / 60!r},0.05,0.55,0"],
    ],
    ids=["tensorflow", "named", "retinanet", "corner and size", "tabs", "open images"],
)  # fmt: skip
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_layouts(folder: Path, lines: list[str], mark: str, end: str) -> None:
    (folder / "class-descriptions-boxable.csv").write_text("/m/1,cat\n/m/2,dog\n")
    (folder / "annotations.csv").write_bytes((mark + end.join(lines) + end).encode())
    for path in (folder, folder / "annotations.csv"):
        dataset = open_dataset(path)
        assert (dataset.format, dataset.problems, dataset.categories.names) == ("csv", [], ("cat", "dog"))
        rounded = {k: [(n, tuple(round(v, 9) for v in box or ())) for n, box in v] for k, v in found(dataset).items()}
        assert rounded == EXPECTED
        assert all(a.segmentation is None for r in dataset.records for a in r.annotations)


def test_an_image_without_objects_and_a_group(folder: Path) -> None:
    (folder / "annotations.csv").write_text("images/a.png,5,6,25,30,cat\nimages/b.png,,,,,\n")
    dataset = open_dataset(folder)
    assert found(dataset) == {"a.png": [("cat", (5, 6, 25, 30))], "b.png": []}
    (folder / "annotations.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0,0.5,0,0.5,1\n")
    (group,) = open_dataset(folder).records[0].annotations
    assert (group.box, group.crowd) == ((0, 0, 30, 20), True)


def test_splits_have_the_same_classes(folder: Path) -> None:
    (folder / "train_labels.csv").write_text(f"{HEAD}\na.png,60,40,cat,5,6,25,30\n")
    (folder / "val.csv").write_text(f"{HEAD}\nb.png,60,40,dog,5,6,25,30\n")
    assert find_splits(folder) == ["train", "val"]
    train, val = open_splits(folder)
    assert train.categories == val.categories
    assert len(open_dataset(folder)) == 2
    with pytest.raises(DataError, match="no test split"):
        open_dataset(folder, "test")


def test_a_row_that_cannot_be_used_is_named_and_the_others_are_read(folder: Path) -> None:
    rows = [
        "a.png,60,40,cat,5,6,25,30",
        "a.png,60,40,cat,5,6,5,30",
        "a.png,60,40,,5,6,25,30",
        "a.png,60,40,cat,five,6,25,30",
        "a.png,60,40,cat,5,nan,25,30",
        "a.png,60,40",
        "gone.png,60,40,cat,5,6,25,30",
        "b.png,60,40,dog,1,2,11,22",
    ]
    (folder / "annotations.csv").write_text("\n".join([HEAD, *rows]))
    dataset = open_dataset(folder)
    assert found(dataset) == {"a.png": EXPECTED["a.png"][:1], "b.png": [("dog", (1, 2, 11, 22))]}
    errors = messages(dataset.problems, "error")
    assert [e.partition(":")[0] for e in errors] == ["row 7", "row 3", "row 4", "row 5", "row 6", "gone.png"]
    assert "no number: 'five'" in " ".join(errors)


def test_the_stated_size_is_compared_with_the_image(folder: Path) -> None:
    (folder / "annotations.csv").write_text(f"{HEAD}\na.png,120,80,cat,5,6,25,30\nb.png,60,40,cat,5,6,25,30\n")
    report = check(folder)
    assert ["120 x 80 pixels, the image has 60 x 40" in p.message for p in report.errors] == [True]
    assert [r.path.name for r in report.datasets["all"].records] == ["b.png"]


def test_rows_that_contradict_one_another_and_rows_without_a_box(folder: Path) -> None:
    rows = ["a.png,60,40,cat,,,,", "a.png,60,40,cat,5,6,25,30", "b.png,60,40,cat,5,6,25,30", "b.png,120,80,cat,1,1,9,9"]
    (folder / "annotations.csv").write_text("\n".join([HEAD, *rows]))
    dataset = open_dataset(folder)
    assert found(dataset) == {"a.png": EXPECTED["a.png"][:1]}
    assert messages(dataset.problems, "error") == [": the rows of the image state several sizes of it; correct them"]
    assert "1 row with a class and no box" in messages(dataset.problems, "warning")[0]


def test_fractions_are_said(folder: Path) -> None:
    (folder / "annotations.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,0.25,0.25,0.5,1\n")
    dataset = open_dataset(folder)
    assert found(dataset) == {"a.png": [("cat", (15, 10, 30, 40))]}
    assert "fractions" in messages(dataset.problems, "warning")[0]


@pytest.mark.parametrize(
    "head", ["image_id,width,height,bbox,source", "filename,xmin,class", "#filename,file_size,region_shape_attributes"]
)
def test_columns_that_are_not_understood_are_no_tags(folder: Path, head: str) -> None:
    (folder / "train.csv").write_text(f"{head}\na.png,1,2\n")
    for path in (folder, folder / "train.csv"):
        with pytest.raises(DataError, match=r"not understood; name them filename, class|VIA"):
            open_dataset(path, "train" if path == folder else None)


@pytest.mark.parametrize(
    "text",
    ["image,left,right\na.png,1,0\n", "a.png,dog,cat\n", "name,tags\na.png,x1\n"],
)
def test_tables_of_tags_stay_tags(folder: Path, text: str) -> None:
    (folder / "tags.csv").write_text(text)
    assert not boxes.is_table(folder / "tags.csv")
    assert open_dataset(folder).format == "tags"


def test_ticks_without_names_are_neither(folder: Path) -> None:
    (folder / "tags.csv").write_text("a.png,1,0,1,0,1\nb.png,0,0,1,1,0\n")
    assert not boxes.is_table(folder / "tags.csv")
    with pytest.raises(DataError, match="write 1 and 0 under the name of each class"):
        open_dataset(folder)


def test_sizes_and_dates_are_no_tags(folder: Path) -> None:
    (folder / "tags.csv").write_text("photo,width,date,label\na.png,60,2024-01-01,cat\nb.png,60,2024-01-02,dog\n")
    dataset = tags.read(folder)
    assert dataset.categories.names == ("cat", "dog")
    assert "width, date are no classes" in messages(dataset.problems, "warning")[0]


def test_whatever_is_in_a_table_it_is_a_data_set_or_a_clear_error(folder: Path) -> None:
    rng, text = random.Random(0), f"{HEAD}\na.png,60,40,cat,5,6,25,30\nb.png,60,40,dog,1,2,11,22\n"
    cells = ["", "nan", "inf", "-1", "1e400", '"', ",", "\0", "\n", "\xe9", "9" * 400, ";", "filename", "\ufeff"]
    for _ in range(200):
        place = rng.randrange(len(text))
        spoiled = text[:place] + rng.choice(cells) + text[place + rng.randrange(6) :]
        (folder / "annotations.csv").write_bytes(spoiled.encode(rng.choice(["utf-8", "cp1252"]), "replace"))
        try:
            dataset = open_dataset(folder / "annotations.csv")
        except DataError:
            continue
        for record in dataset.records:
            assert all(a.box is not None and a.box[2] > a.box[0] for a in record.annotations)


@pytest.mark.parametrize(
    "lines",
    [
        ["image,class,x_center,y_center,width,height", f"a.png,cat,0.25,0.45,{1 / 3!r},0.6"],  # a YOLO box
        ["filename,label,cx,cy,w,h", "a.png,cat,15,18,20,24"],
        ["filename,left,top,width,height,class", "a.png,5,6,20,24,cat"],
        ["filename,width,height,class,x_min,y_min,w,h", "a.png,60,40,cat,5,6,20,24"],
        ["filename,class,x0,y0,x1,y1", "a.png,cat,5,6,25,30"],
        ["image,label,xtl,ytl,xbr,ybr", "a.png,cat,5,6,25,30"],
        ["filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,60.0,40.0,cat,5.0,6.0,25.0,30.0"],
    ],
)
def test_other_names_of_columns(folder: Path, lines: list[str]) -> None:
    (folder / "annotations.csv").write_text("\n".join(lines))
    dataset = open_dataset(folder)
    ((name, box),) = found(dataset)["a.png"]
    assert (name, box) == ("cat", pytest.approx((5, 6, 25, 30)))
    assert not messages(dataset.problems, "error")


def test_fractions_may_cross_the_border_and_sizes_have_a_point(folder: Path) -> None:
    (folder / "annotations.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,0.5,0.25,1.001,0.5\n")
    dataset = open_dataset(folder)
    assert found(dataset)["a.png"] == [("cat", pytest.approx((30, 10, 60.06, 20)))]
    assert "read as fractions" in messages(dataset.problems, "warning")[0]
    (folder / "annotations.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,0,0,2,1\n")
    assert found(open_dataset(folder))["a.png"] == [("cat", (0, 0, 2, 1))], "whole numbers are pixels"
    (folder / "annotations.csv").write_text(f"{HEAD}\na.png,600.0,400.0,cat,5,6,25,30\n")
    assert any("600 x 400 pixels, the image has 60 x 40" in p.message for p in check(folder).errors)


def test_an_image_has_one_name(folder: Path) -> None:
    (folder / "annotations.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.png,cat,5,6,25,30\na,cat,1,2,9,9\n")
    dataset = open_dataset(folder)
    assert found(dataset) == {"a.png": [("cat", (5, 6, 25, 30))]}
    assert messages(dataset.problems, "error") == ["a: is a.png, which has a name of its own; keep one of them"]
