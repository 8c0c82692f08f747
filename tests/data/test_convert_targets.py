"""Conversion between all formats: pixels come back exactly, and what cannot be held is counted or refused."""

import errno
import json
import os
import shutil
import stat
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskkit.data import find_splits, open_dataset
from maskkit.data.check import check
from maskkit.data.convert import TARGETS, bridge, convert, trace
from maskkit.data.convert.outlines import one_polygon
from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation
from maskkit.errors import DataError, MaskkitError
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle

from .written import (
    BLOCK,
    JSON,
    SIZE,
    SQUARE,
    image_row,
    messages,
    object_row,
    panoptic_categories,
    places,
    spoil,
    write_coco,
    write_image,
    write_json,
    write_panoptic,
)

TOOLS = ("cvat", "labelstudio", "via", "datumaro", "supervisely")
"""Targets of labelling tools."""
OBJECTS = ("coco", "yolo", "labelme", "voc", "coco-panoptic", "cityscapes", *TOOLS)
"""Targets that keep objects apart."""
WITHOUT_MAPS = ("coco", "yolo", "labelme", *TOOLS)
"""Targets of which label maps are no part."""
PAIRS = [(a, b) for a in TARGETS for b in TARGETS if not {a, b} & {*TOOLS, "cityscapes"} or "coco" in (a, b)]
"""Those of tools with COCO alone, to save time."""


def _ids(seed: int, size=SIZE) -> np.ndarray:
    """An image of ids: 0 is no object, objects do not overlap and have several parts, some of a single pixel."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 6, (size[0] // 4 + 1, size[1] // 4 + 1)).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    noise = rng.random(size) < 0.02
    return np.where(noise, rng.integers(0, 6, size), ids)


def _text(mask: np.ndarray) -> dict:
    return mask_math.to_text(mask_math.encode(mask[None])[0])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Objects that do not overlap, as pixels; two splits, a class that only one of them has."""
    root = tmp_path_factory.mktemp("source")
    number = 0
    for split, images in (("train", (1, 2)), ("val", (3,))):
        rows = []
        for image in images:
            write_image(root / "images" / f"{image}.png", image)
            ids = _ids(image)
            for value in np.unique(ids[ids > 0]).tolist():
                number += 1
                label = 3 + value % (2 if split == "val" else 3)
                rows.append(object_row(number, image, category_id=label, segmentation=_text(ids == value), bbox=None))
        categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "a dog"}, {"id": 5, "name": "Käse: rot"}]
        content = {"images": [image_row(i) for i in images], "annotations": rows, "categories": categories}
        write_json(root / f"{split}.json", content)
    return root


@pytest.fixture(scope="module")
def first(source, tmp_path_factory):
    """The source in every format."""
    root = tmp_path_factory.mktemp("first")
    for to in TARGETS:
        counts = convert(source, root / to, to)
        assert (counts["images"], counts["problems"]) == (3, 0)
        assert counts["objects"] == (0 if to == "png" else 15)
    return root


def _stem(path: Path) -> str:
    return path.stem.removesuffix("_leftImg8bit")


def _objects(dataset: Dataset) -> dict[str, Counter]:
    """Objects of every image: class name and mask."""
    names = dataset.categories.names
    return {
        _stem(r.path): Counter((names[a.label], str(a.rle(r.size)), a.crowd) for a in r.annotations)
        for r in dataset.records
    }


def _maps(dataset: Dataset) -> dict[str, np.ndarray]:
    """Label maps of names, with "" for unknown pixels."""
    view = dataset.as_semantic()
    names = np.array([*view.categories.names, *[""] * (256 - len(view.categories))])
    return {_stem(r.path): names[r.semantic.read(r.size)] for r in view.records}  # type: ignore[union-attr]


def _same_maps(before: Dataset, after: Dataset) -> None:
    ours, theirs = _maps(before), _maps(after)
    assert ours.keys() == theirs.keys()
    for name, labels in ours.items():
        known = (labels != "") & (theirs[name] != "")
        assert np.array_equal(labels[known], theirs[name][known])
        assert (labels[~known] == "").all() or set(labels[~known]) <= {"", "background"}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_every_pair_of_formats_keeps_every_pixel(source, first, tmp_path, one, other):
    counts = convert(first / one, tmp_path / "out", other)
    assert (counts["images"], counts["problems"]) == (3, 0)
    splits = find_splits(tmp_path / "out")
    assert splits == ["train", "val"]
    for split in splits:
        before, after = open_dataset(source, split), open_dataset(tmp_path / "out", split)
        assert messages(after.problems, "error") == []
        if one in OBJECTS and other in OBJECTS:
            assert _objects(before) == _objects(after)
        _same_maps(before, after)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 30), st.integers(1, 30)), to=st.sampled_from(OBJECTS))
def test_any_pixels_come_back(tmp_path_factory, seed, size, to):
    root = tmp_path_factory.mktemp("any")
    ids = _ids(seed, size)
    values = np.unique(ids[ids > 0]).tolist()
    rows = [object_row(v, segmentation=_text(ids == v), category_id=3 + 4 * (v % 2), bbox=None) for v in values]
    file = write_coco(root / "a.json", rows, [image_row(1, height=size[0], width=size[1])])
    write_image(root / "images" / "1.png", 1, size)
    convert(file, root / "out", to)
    assert _objects(open_dataset(file)) == _objects(open_dataset(root / "out"))


def _label_maps(root: Path, classes: str = "background\nbolt\nnut\n", unknown: bool = True) -> Path:
    """Label maps of three images, without splits."""
    for number in (1, 2, 3):
        write_image(root / "images" / f"{number}.png", number)
        labels = (_ids(number) % 3).astype(np.uint8)
        if unknown:
            labels[:3] = 255
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(labels).save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text(classes)
    return root


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("to", TARGETS)
def test_regions_of_label_maps_come_back(tmp_path, to, background):
    classes = "background\nbolt\nnut\n" if background else "sky\nbolt\nnut\n"
    source, regions = _label_maps(tmp_path / "src", classes), 6 if background else 9
    counts = convert(source, tmp_path / "out", to)
    kind = "segments" if to == "coco-panoptic" else "objects"
    expected = {"images": 3, "objects": 0, "crowds left out": 0, "problems": 0}
    if to not in ("png", "voc", "cityscapes"):
        if to == "coco-panoptic":
            regions = 9
        expected |= {"objects": regions, f"regions of label maps as {kind}": regions}
        if to != "coco-panoptic":
            expected["images whose unknown pixels became background"] = 3
    assert counts == expected
    before, after = open_dataset(source), open_dataset(tmp_path / "out")
    assert messages(after.problems, "error") == []
    if to in ("coco", "coco-panoptic"):
        assert not any(after.categories.things)  # regions are no objects
    ours, theirs = _maps(before), _maps(after)
    for name, labels in ours.items():
        kept = theirs[name]
        if to in WITHOUT_MAPS:
            assert (kept[:3] == "background").all()
            labels, kept = labels[3:], kept[3:]
        assert np.array_equal(labels, kept)
    convert(tmp_path / "out", tmp_path / "back", "png")
    assert len(open_dataset(tmp_path / "back")) == 3


def test_label_studio_tells_regions_of_label_maps_apart(tmp_path):
    convert(_label_maps(tmp_path / "src"), tmp_path / "out", "labelstudio")
    for task in json.loads((tmp_path / "out" / "tasks.json").read_text()):
        regions = [region["id"] for region in task["annotations"][0]["result"]]
        assert len(set(regions)) == len(regions) == 2


def test_tags_are_refused(tmp_path):
    for number in (1, 2):
        write_image(tmp_path / "src" / f"{number}.png", number)
    (tmp_path / "src" / "tags.csv").write_text("image,cat,dog\n1.png,1,0\n2.png,1,1\n")
    for to in TARGETS:
        with pytest.raises(DataError, match=f"image tags.*{to} cannot hold them"):
            convert(tmp_path / "src", tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_stuff_is_stuff_or_counted(tmp_path):
    ids = np.zeros((12, 16), np.int64)
    ids[:6], ids[6:, :8], ids[6:, 8:12] = 5, 300, 70000
    segments = [{"id": 5, "category_id": 187}, {"id": 300, "category_id": 3}, {"id": 70000, "category_id": 193}]
    file = write_panoptic(tmp_path / "panoptic_val.json", {1: (ids, segments)})
    source = open_dataset(file)
    for to in TARGETS:
        counts = convert(file, tmp_path / to, to)
        after = open_dataset(tmp_path / to, "train" if to == "yolo" else None)
        _same_maps(source, after)
        assert counts.get("regions of stuff as objects", 0) == (2 if to in WITHOUT_MAPS else 0), to
        if to in ("coco", "coco-panoptic"):
            assert after.categories.things == panoptic_categories().things
        if to in ("coco", "coco-panoptic", "voc"):
            assert sum(len(r.annotations) for r in after.as_instances().records) == 1
        assert counts.get("images whose unknown pixels became background", 0) == (to in WITHOUT_MAPS)


def _everything(tmp_path: Path) -> Path:
    """A crowd, a box without mask, an object that another one covers in part, and one that is hidden by it."""
    rows = [
        object_row(1, segmentation=[SQUARE]),
        object_row(2, segmentation=[BLOCK], category_id=7, bbox=None),
        object_row(3, bbox=None, segmentation=[[20, 20, 24, 20, 24, 24, 20, 24]]),
        object_row(4, bbox=None, segmentation=[[20, 20, 24, 20, 24, 24, 20, 24]], category_id=7),
        object_row(5, segmentation=[], bbox=[40, 2, 9, 9]),
        object_row(6, iscrowd=1, bbox=None, segmentation={"size": [*SIZE], "counts": [2000, 200, 200]}),
        object_row(7, 2, segmentation=[], bbox=[3, 3, 9.5, 9]),
    ]
    return write_coco(tmp_path / "src" / "a.json", rows)


def test_what_a_format_cannot_hold_is_counted(tmp_path):
    file = _everything(tmp_path)
    kept = {"images": 2, "crowds left out": 0, "problems": 0}
    covered = {"objects left out, hidden by others": 1, "objects that others cover in part": 1}
    expected = {
        "coco": {"objects": 7},
        "labelme": {"objects": 7},
        "cvat": {"objects": 7},
        "labelstudio": {"objects": 7},
        "via": {"objects": 7},
        "datumaro": {"objects": 7},
        "supervisely": {"objects": 7, "polygons as pixels": 4},
        "yolo": {"objects": 6, "crowds left out": 1},
        "voc": {"objects": 5, "crowds left out": 1, "boxes without a mask that only the xml has": 1, **covered},
        "coco-panoptic": {
            "objects": 3, "boxes without a mask left out": 2, "images whose background became unknown": 2, **covered,
        },
        "cityscapes": {"objects": 3, "boxes without a mask left out": 2, **covered},
        "png": {
            "objects": 0, "objects merged into label maps": 4, "crowds left out": 1, "boxes without a mask left out": 2,
            **covered,
        },
    }  # fmt: skip
    for to, counts in expected.items():
        assert convert(file, tmp_path / to, to) == kept | counts, to  # type: ignore[arg-type]
    voc = open_dataset(tmp_path / "voc")
    assert [[a.segmentation is None for a in r.annotations] for r in voc.records] == [[False] * 3, [True]]
    assert voc.records[1].annotations[0].box == (3, 3, 12.5, 12)
    assert voc.problems == []
    crowd = [a for r in open_dataset(tmp_path / "coco-panoptic").records for a in r.annotations if a.crowd]
    assert len(crowd) == 1


def test_the_label_map_of_boxes_is_counted(tmp_path):
    """VOC with boxes in xml and classes in pixels: a format of objects gets the boxes."""
    convert(_label_maps(tmp_path / "src"), tmp_path / "voc", "voc")
    file = tmp_path / "voc" / "Annotations" / "1.xml"
    box = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
    node = f"<object><name>bolt</name><bndbox>{box}</bndbox></object></annotation>"
    file.write_text(file.read_text().replace("</annotation>", node))
    counts = convert(tmp_path / "voc", tmp_path / "coco", "coco")
    assert counts["regions of label maps left out"] == 2
    assert counts["regions of label maps as objects"] == 4


def test_names_that_voc_cannot_hold_are_refused(tmp_path):
    for name in (" cat", "a\nb", "_background_", "\udc80"):
        file = write_coco(tmp_path / "a.json", [object_row(1)], categories=[{"id": 3, "name": name}])
        with pytest.raises(DataError, match="class name"):
            convert(file, tmp_path / "out", "voc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "images"]
    for to in ("yolo", "labelme", "coco"):
        convert(file, tmp_path / to, to)
        assert open_dataset(tmp_path / to).categories.names[0] == "\udc80"


def test_two_classes_of_one_name_stay_two(tmp_path):
    same = [{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}]
    rows = [object_row(1), object_row(2, category_id=7, segmentation=[[40, 20, 50, 20, 50, 30]])]
    file = write_coco(tmp_path / "a.json", rows, categories=same)
    for to in TARGETS:
        convert(file, tmp_path / to, to)
        view = open_dataset(tmp_path / to).as_semantic()
        labels = view.records[0].semantic.read(SIZE)  # type: ignore[union-attr]
        known = labels[labels != 255]
        assert len(np.unique(known)) == (2 if to == "coco-panoptic" else 3), to


def test_more_objects_than_voc_holds(tmp_path):
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 8
    rows = [object_row(v, segmentation=_text(ids == v), bbox=None) for v in range(1, 256)]
    file = write_coco(tmp_path / "a.json", [*rows, object_row(300, 2)])
    counts = convert(file, tmp_path / "voc", "voc")
    assert (counts["images"], counts["objects"], counts["problems"]) == (1, 1, 1)
    assert convert(file, tmp_path / "panoptic", "coco-panoptic")["objects"] == 256


@pytest.mark.parametrize("to", TARGETS)
def test_images_that_contradict_their_records_are_left_out(tmp_path, to):
    """Sizes that were noted before the image was turned, a file that is no image, one that is gone meanwhile."""
    rows = [image_row(1), image_row(2, height=SIZE[1], width=SIZE[0]), image_row(3)]
    file = write_coco(tmp_path / "a.json", [object_row(i, i) for i in (1, 2, 3)], rows)
    (tmp_path / "images" / "3.png").write_text("no image")
    counts = convert(file, tmp_path / "out", to)
    assert (counts["images"], counts["problems"]) == (1, 2)
    assert {s for p in (tmp_path / "out").rglob("*.*") if (s := p.stem.partition("_")[0]).isdigit()} == {"1"}
    bad = write_coco(tmp_path / "b.json", [], [rows[1]])
    with pytest.raises(DataError, match="no usable image, 2 problems"):
        convert(bad, tmp_path / "nothing", to)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("to", TARGETS)
def test_names_of_copies_are_found_again(tmp_path, to):
    names = [
        "a.png",
        ".hidden.png",
        "IMG_0005",
        "i..png",
        "h.jpg.png",
        "A.PNG",
        "x/a.png",
        "two words.png",
        "\x1b[2J.png",
    ]
    kinds = {"IMG_0005": "JPEG"}
    for i, name in enumerate(names, 1):
        path = tmp_path / "images" / name
        write_image(tmp_path / "images" / "tmp.png", i)
        path.parent.mkdir(exist_ok=True)
        Image.open(tmp_path / "images" / "tmp.png").save(path, format=kinds.get(name, "PNG"))
    (tmp_path / "images" / "tmp.png").unlink()
    rows = [image_row(i, file_name=name) for i, name in enumerate(names, 1)]
    file = write_json(
        tmp_path / "a.json",
        {
            "images": rows,
            "annotations": [object_row(i, i) for i in range(1, len(names) + 1)],
            "categories": [{"id": 3, "name": "cat"}],
        },
    )
    assert convert(file, tmp_path / "out", to)["images"] == len(names)
    after = open_dataset(tmp_path / "out")
    assert len(after) == len(names)
    assert all(p.level != "error" for p in after.problems)
    assert len({r.path.stem.lower() for r in after.records}) == len(names)
    assert all(r.path.suffix and r.path.name.isprintable() for r in after.records)
    assert not any(" " in r.path.name for r in after.records if to == "voc")


def test_folders_of_others_are_not_touched(tmp_path):
    file = write_coco(tmp_path / "a.json", [object_row(1)])
    mine = tmp_path / ".out.tmp" / "precious.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    convert(file, tmp_path / "out", "coco")
    assert mine.read_text() == "mine"
    with pytest.raises(DataError, match="is not empty"):
        convert(file, tmp_path / ".out.tmp", "coco")


def test_errors_of_the_system_name_file_and_fix(tmp_path, monkeypatch):
    file = write_coco(tmp_path / "src" / "a.json", [object_row(1)])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for to in TARGETS:
        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(DataError, match=r"1\.png: cannot be copied .*No space left on device.*free space"):
            convert(file, tmp_path / "out", to)
        monkeypatch.undo()
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(MaskkitError, match=r"out.*: No space left on device; free some space"):
            convert(file, tmp_path / "out", to)
        monkeypatch.undo()
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match="file"):
            convert(file, tmp_path / "file" / "out", to)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "src"]


def test_files_and_folders_have_the_modes_of_the_umask(tmp_path):
    file = write_coco(tmp_path / "a.json", [object_row(1)])
    (tmp_path / "images" / "1.png").chmod(0o400)
    old = os.umask(0o027)
    try:
        for to in TARGETS:
            convert(file, tmp_path / to, to)
    finally:
        os.umask(old)
    for to in TARGETS:
        for path in [tmp_path / to, *(tmp_path / to).rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_speckled_masks_do_not_take_the_square_of_their_parts():
    mask = np.random.default_rng(0).random((320, 400)) < 0.09
    start = time.process_time()
    polygon = one_polygon(Annotation(1, 0, None, mask_math.encode(mask[None])[0]), mask.shape)
    taken = time.process_time() - start
    assert len(trace(mask)) > 8541
    assert np.array_equal(mask_math.decode([to_rle([polygon.tolist()], mask.shape)], mask.shape)[0], mask)
    assert taken < 5, "it was 37 s for 8,541 parts"


def test_bridges_of_many_parts_are_short():
    mask = np.zeros((200, 200), bool)
    mask[::4, ::4] = True
    parts = trace(mask)
    joined = bridge(parts).reshape(-1, 2)
    lengths = np.array([np.linalg.norm(b - a) for a, b in pairwise(joined)])
    assert len(parts) == 2500
    assert np.median(lengths[lengths > 1]) <= 8
    assert lengths.sum() < 2500 * 30


def test_coco_panoptic_is_found_by_check(tmp_path):
    convert(_everything(tmp_path), tmp_path / "out", "coco-panoptic")
    assert check(tmp_path / "out").errors == []
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert all(
        {"id", "category_id", "bbox", "area", "iscrowd"} <= s.keys() for s in content["annotations"][0]["segments_info"]
    )


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_one_value_is_the_result_is_whole_or_not_there(tmp_path_factory, data):
    """A spoilt COCO file, to any format: a clear error and no folder, or a data set with as many images as it says."""
    root = tmp_path_factory.mktemp("spoilt")
    file = _everything(root)
    content = json.loads(file.read_text())
    place = data.draw(st.sampled_from(places(content)))
    file.write_text(
        json.dumps(spoil(content, place, data.draw(JSON | st.sampled_from(["../a.json", "\x1b", "1.png"]))))
    )
    to = data.draw(st.sampled_from(TARGETS))
    try:
        counts = convert(file, root / "out", to)
    except DataError:
        assert not list(root.rglob("*out*"))
        return
    after = open_dataset(root / "out")
    assert len(after) == counts["images"]
    assert messages(after.problems, "error") == []
