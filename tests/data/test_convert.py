import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from maskkit.data import find_splits, open_dataset
from maskkit.data.convert import bridge, convert, trace, yolo
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle

from .written import (
    BLOCK,
    SIZE,
    SQUARE,
    image_row,
    messages,
    object_row,
    outlines,
    pixels,
    write_coco,
    write_image,
    write_json,
)

RING = np.zeros(SIZE, bool)
RING[5:25, 5:30] = True
RING[10:15, 10:20] = False
RING[30:38, 40:55] = True
RING_RLE = mask_math.encode(RING[None])[0]
FORMATS = ("coco", "yolo", "labelme")


def _rasterised(polygons, size=SIZE):
    return mask_math.decode([to_rle([p.tolist() for p in polygons], size)], size)[0]


@given(arrays.arrays(bool, st.tuples(st.integers(1, 25), st.integers(1, 25))))
def test_a_traced_mask_comes_back_pixel_for_pixel(mask):
    polygons = trace(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    assert np.array_equal(_rasterised(polygons, mask.shape), mask) if polygons else not mask.any()
    if polygons:
        assert np.array_equal(_rasterised([bridge(polygons)], mask.shape), mask)


@pytest.mark.parametrize("seed", range(5))
def test_blobs_come_back_pixel_for_pixel(seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(120, 160)), 5)
    mask = noise > 0.02
    assert 0.1 < mask.mean() < 0.9
    assert np.array_equal(_rasterised([bridge(trace(mask))], mask.shape), mask)


def test_a_traced_rectangle_has_its_four_corners():
    mask = np.zeros(SIZE, bool)
    mask[5:20, 10:30] = True
    assert sorted(trace(mask)[0].reshape(-1, 2).tolist()) == [[10, 5], [10, 20], [30, 5], [30, 20]]


def test_a_bridge_joins_parts_where_they_are_nearest():
    left, right = np.array([0, 0, 4, 0, 4, 4, 0, 4.0]), np.array([10, 0, 14, 0, 14, 4, 10, 4.0])
    joined = bridge([left, right]).reshape(-1, 2)
    assert len(joined) == 4 + 4 + 2
    assert np.linalg.norm(np.diff(joined, axis=0), axis=1).max() == 6
    assert np.array_equal(_rasterised([joined.reshape(-1)]), _rasterised([left, right]))


@pytest.fixture
def source(tmp_path):
    """Every kind of object; two images of one name in different folders."""
    content = {
        "images": [image_row(7, file_name="1.png"), image_row(9, file_name="x/1.png")],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog: or not"}, {"id": 8, "name": "nobody"}],
        "annotations": [
            object_row(11, 7),
            object_row(12, 7, bbox=None, category_id=7, segmentation=[SQUARE, [40.0, 3.3, 55.21, 3.3, 47.77, 19.03]]),
            object_row(13, 7, bbox=None, segmentation=[SQUARE, BLOCK]),  # parts that overlap
            object_row(14, 7, bbox=None, segmentation={"size": [*SIZE], "counts": RING_RLE["counts"].decode()}),
            object_row(15, 9, category_id=7, segmentation=[], bbox=[3.25, 4.5, 20.125, 9]),
            object_row(16, 9, bbox=None, iscrowd=1, segmentation={"size": [*SIZE], "counts": [100, 50, 2250]}),
        ],
    }
    for name in ("1.png", "x/1.png"):
        write_image(tmp_path / "src" / "images" / name, len(name))
    write_json(tmp_path / "src" / "train.json", content)
    write_image(tmp_path / "src" / "images" / "v.png", 5)
    val = content | {"images": [image_row(1, file_name="v.png")], "annotations": [object_row(1, 1)]}
    write_json(tmp_path / "src" / "val.json", val)
    return tmp_path / "src"


@pytest.mark.parametrize("to", FORMATS)
def test_every_object_comes_back(source, tmp_path, to):
    counts = convert(source, tmp_path / "dst", to)
    crowds = 1 if to == "yolo" else 0
    lost = {"ids of images that became others": 2} if to != "coco" else {}  # 7 and 9 of the training images
    lost |= {"classes without an object left out": 1} if to == "labelme" else {}
    assert counts == {"images": 3, "objects": 7 - crowds, "crowds left out": crowds, "problems": 0} | lost
    assert find_splits(tmp_path / "dst") == ["train", "val"]
    for split in ("train", "val"):
        before, after = open_dataset(source, split), open_dataset(tmp_path / "dst", split)
        assert after.format == to
        assert after.problems == []
        assert len(before) == len(after)
        for old, new in zip(before.records, after.records, strict=True):
            assert old.path.read_bytes() == new.path.read_bytes()
            kept = [a for a in old.annotations if to != "yolo" or not a.crowd]
            assert len(kept) == len(new.annotations)
            for a, b in zip(kept, new.annotations, strict=True):
                assert before.categories.names[a.label] == after.categories.names[b.label]
                assert a.crowd == b.crowd
                if a.segmentation is None:
                    assert b.segmentation is None
                    assert b.box == pytest.approx(a.box)
                else:
                    assert np.array_equal(pixels(a), pixels(b))


def test_coco_keeps_ids_polygons_and_areas(source, tmp_path):
    convert(source, tmp_path / "dst", "coco")
    before, after = open_dataset(source, "train").coco(), open_dataset(tmp_path / "dst", "train").coco()
    assert before["annotations"] == after["annotations"]
    assert before["categories"] == after["categories"]
    assert [i["id"] for i in after["images"]] == [7, 9]


@pytest.mark.parametrize("to", ["yolo", "labelme"])
def test_polygons_are_written_as_they_are(source, tmp_path, to):
    convert(source, tmp_path / "dst", to)
    single, several = open_dataset(tmp_path / "dst", "train").records[0].annotations[:2]
    assert outlines(single) == [SQUARE]
    if to == "labelme":
        assert outlines(several) == [SQUARE, [40.0, 3.3, 55.21, 3.3, 47.77, 19.03]]


@given(
    points=arrays.arrays(np.int64, st.integers(3, 12).map(lambda n: (n, 2)), elements=st.integers(0, 10**6)),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_yolo_lines_give_coordinates_of_six_digits_exactly_back(points, size):
    from maskkit.data.formats.yolo import _object
    from maskkit.data.records import Annotation
    from maskkit.data.rules import is_line

    points = np.round(points / 1.0007e6 * [size[1], size[0]], 6)
    if (np.ptp(points, axis=0) <= 0).any() or is_line(points):
        return
    numbers = yolo.fractions(Annotation(1, 0, None, [points.reshape(-1)]), size)
    line = f"0 {' '.join(f'{v:.12g}' for v in numbers)}"
    assert outlines(_object(line, size, 1, pytest.fail)) == [points.reshape(-1).tolist()]


@pytest.mark.parametrize("to", FORMATS)
def test_a_data_set_without_splits(tmp_path, to):
    file = write_coco(tmp_path / "src" / "a.json", [object_row(1)])
    assert convert(file, tmp_path / "dst", to, progress=True)["images"] == 2
    assert find_splits(tmp_path / "dst") == (["train"] if to == "yolo" else [])
    assert len(open_dataset(tmp_path / "dst")) == 2


def test_back_and_forth_through_all_formats(source, tmp_path):
    here = source
    for i, to in enumerate(("yolo", "labelme", "coco", "yolo")):
        convert(here, tmp_path / str(i), to)
        here = tmp_path / str(i)
    before, after = open_dataset(source, "train"), open_dataset(here, "train")
    kept = [a for r in before.records for a in r.annotations if not a.crowd]
    found = [a for r in after.records for a in r.annotations]
    for a, b in zip(kept, found, strict=True):
        assert (a.segmentation is None) == (b.segmentation is None)
        assert a.segmentation is None or np.array_equal(pixels(a), pixels(b))


def test_classes_that_one_split_lacks(tmp_path):
    write_coco(tmp_path / "src" / "train.json", [object_row(1)], categories=[{"id": 3, "name": "cat"}])
    categories = [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}]
    write_coco(tmp_path / "src" / "val.json", [object_row(1), object_row(2, category_id=4)], categories=categories)
    convert(tmp_path / "src", tmp_path / "dst", "yolo")
    val = open_dataset(tmp_path / "dst", "val")
    assert val.categories.names == ("cat", "dog")
    assert [a.label for a in val.records[0].annotations] == [1, 0]


def test_unusable_records_are_left_out_and_counted(tmp_path):
    file = write_coco(tmp_path / "src" / "a.json", [object_row(1), object_row(2, category_id=5)])
    counts = convert(file, tmp_path / "dst", "labelme")
    assert (counts["objects"], counts["problems"]) == (1, 1)


def test_a_folder_that_holds_something_is_not_touched(source, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        convert(source, tmp_path / "dst", "coco")
    assert [p.name for p in (tmp_path / "dst").iterdir()] == ["precious.txt"]


def test_a_failure_leaves_nothing_behind(source, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(yolo, "fractions", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        convert(source, tmp_path / "dst", "yolo")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
    monkeypatch.undo()
    (tmp_path / "dst").mkdir()  # an empty folder may be there
    convert(source, tmp_path / "dst", "yolo")
    assert (tmp_path / "dst" / "data.yaml").is_file()


def test_labelme_files_are_as_labelme_writes_them(source, tmp_path):
    convert(source, tmp_path / "dst", "labelme")
    content = json.loads((tmp_path / "dst" / "train" / "1.json").read_text())
    assert content["imagePath"] == "1.png"
    assert (content["imageHeight"], content["imageWidth"]) == SIZE
    groups = [s["group_id"] for s in content["shapes"]]
    assert groups[0] is None
    assert groups[1] == groups[2] != groups[3] == groups[4]
    assert all(isinstance(x, float) for s in content["shapes"] for point in s["points"] for x in point)


def test_problems_of_the_result_are_none(source, tmp_path):
    convert(source, tmp_path / "dst", "yolo")
    assert messages(open_dataset(tmp_path / "dst").problems, "error") == []


def test_classes_without_an_object_are_counted_where_no_list_holds_them(tmp_path):
    file = write_coco(tmp_path / "src" / "a.json", [object_row(1)])
    assert convert(file, tmp_path / "labelme", "labelme")["classes without an object left out"] == 1
    for to in ("yolo", "via", "voc", "cvat"):
        assert "classes without an object left out" not in convert(file, tmp_path / to, to)
        assert open_dataset(tmp_path / to).categories.names == ("cat", "dog")


@pytest.mark.parametrize("to", ["yolo", "labelme", "voc", "png", "cityscapes"])
def test_ids_of_images_are_counted_where_a_format_has_none(tmp_path, to):
    """Which numbers them by name: 10 comes before 9."""
    for number in (9, 10):
        write_image(tmp_path / "src" / "images" / f"{number}.png", number)
    images = [image_row(9) | {"id": 1}, image_row(10) | {"id": 2}]
    rows = [object_row(1), object_row(2, 2, category_id=7)]
    counts = convert(write_coco(tmp_path / "src" / "a.json", rows, images), tmp_path / "out", to)
    assert counts["ids of images that became others"] == 2
    split = (find_splits(tmp_path / "out") or [None])[0]
    first = open_dataset(tmp_path / "out", split).records[0]
    assert (first.image_id, first.path.stem[:2]) == (1, "10")
    images = [image_row(9) | {"id": 2}, image_row(10) | {"id": 1}]
    counts = convert(write_coco(tmp_path / "src" / "a.json", rows, images), tmp_path / "again", to)
    assert "ids of images that became others" not in counts


def test_classes_of_one_name_are_counted_where_they_get_others(tmp_path):
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}]
    rows = [object_row(1), object_row(2, 2, category_id=7)]
    file = write_coco(tmp_path / "src" / "a.json", rows, categories=categories)
    for to, names in (("coco", ("cat", "cat")), ("yolo", ("cat", "cat")), ("via", ("cat (3)", "cat (7)"))):
        counts = convert(file, tmp_path / to, to)  # type: ignore[arg-type]
        assert open_dataset(tmp_path / to).categories.names == names
        assert counts.get("names of classes that became others", 0) == (2 if to == "via" else 0)


def test_boxes_beside_masks_are_counted_where_a_format_has_none(tmp_path):
    rows = [object_row(1), object_row(2, bbox=[5, 5, 40, 30]), object_row(3, 2, bbox=[5, 5, 40, 30], segmentation=[])]
    file = write_coco(tmp_path / "src" / "a.json", rows)
    for to, count in (("coco", 0), ("voc", 0), ("cvat", 1), ("yolo", 1)):
        counts = convert(file, tmp_path / to, to)  # type: ignore[arg-type]
        assert counts.get("boxes that became those around their masks", 0) == count
