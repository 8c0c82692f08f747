"""`maskkit prelabel`, and the loop: a model labels, a person corrects, a model is trained on the result."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from maskkit import cli
from maskkit.data import open_dataset, shapes
from maskkit.data.check import check
from tests.cli.test_cli import PRESET, SHORT, TINY, run, usage
from tests.small import save_small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shapes.write(tmp_path_factory.mktemp("drawn"), train=4, val=1, size=(64, 64), objects=(1, 3))
    return root / "images"


def test_the_loop_of_labelling(photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    labelled = tmp_path / "labelled"
    given = ("--model", checkpoint, "--score", 0, "--max-objects", 4)
    assert run("prelabel", photos, *given, "--to", "cvat", "--out", labelled) == 0
    before = open_dataset(labelled)
    counts = [len(r.annotations) for r in before.records]
    assert all(counts)
    assert f"5 images, {sum(counts)} objects" in capsys.readouterr().out
    assert check(labelled, True).errors == []

    file = labelled / "annotations.xml"  # as CVAT would write it after a person's changes
    tree = ElementTree.parse(file)
    first, second, *_ = tree.getroot().iter("image")
    for node in list(first):
        first.remove(node)
    ElementTree.SubElement(first, "polygon", {"label": "ring", "points": "10,10;50,10;50,50;10,50", "z_order": "0"})
    for node in second:
        node.set("label", "disc")
    tree.write(file)

    after = open_dataset(labelled)
    assert [len(r.annotations) for r in after.records] == [1, *counts[1:]]
    assert after.records[0].annotations[0].label == after.categories.names.index("ring")
    trained = ("--model", PRESET, "--data", labelled, "--out", tmp_path / "run", *TINY, *SHORT)
    assert run("train", *trained, "--weights", checkpoint) == 0
    best = tmp_path / "run" / "best.safetensors"
    again = ("--to", "labelstudio", "--score", 0, "--max-objects", 1, "--order", "uncertain", "--count", 3)
    assert run("prelabel", photos, "--model", best, *again, "--out", tmp_path / "again") == 0
    rows = list(csv.DictReader((tmp_path / "again" / "order.csv").open(newline="")))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    data = open_dataset(tmp_path / "again")
    assert data.format == "labelstudio"
    assert [r.path.name for r in data.records] == [Path(row["image"]).name for row in rows]


def test_a_wide_iou_has_fewer_corners(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    corners = []
    for iou in (1, 0.7):
        out = tmp_path / str(iou)
        given = ("--to", "labelme", "--iou", iou, "--score", 0, "--count", 2, "--max-objects", 3, "--out", out)
        assert run("prelabel", photos, "--model", checkpoint, *given) == 0
        data = open_dataset(out)
        assert len(data) == 2
        shapes = [a.segmentation for r in data.records for a in r.annotations]
        assert all(isinstance(s, list) for s in shapes)
        corners.append(sum(len(part) for s in shapes for part in s))  # type: ignore[union-attr]
    assert corners[1] < corners[0]


def test_what_cannot_be_labelled_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 30), (90, 90, 20)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"this is no image")
    given = ("--model", checkpoint, "--to", "coco", "--score", 0.99)
    assert run("prelabel", tmp_path / "a.png", tmp_path / "broken.png", *given, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "broken.png" in said.err
    assert "1 images, 0 objects" in said.out
    assert len(json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]) == 1
    assert run("prelabel", tmp_path / "broken.png", *given, "--out", tmp_path / "none") == 1
    assert "has no image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr("maskkit.api.load", lambda *_: pytest.fail("a folder that is full is refused before"))
    assert run("prelabel", tmp_path / "a.png", *given, "--out", tmp_path / "out") == 1
    assert "is not empty" in capsys.readouterr().err
    assert usage("prelabel", "--to", "coco") == 2
    assert usage("prelabel", tmp_path / "a.png") == 2
    assert usage("prelabel", tmp_path / "a.png", "--to", "pdf") == 2
    assert "prelabel" in cli.VERBS


def test_a_model_that_draws_in_boxes_fills_all_of_them(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    known = open_dataset(photos.parent, "train").coco()
    for row in known["annotations"]:
        del row["segmentation"]
    file = Path(photos.parent, "all.json")
    file.write_text(json.dumps(known))
    assert run("prelabel", file, "--from", "boxes", "--to", "coco", "--out", tmp_path / "out") == 0
    filled = [a for r in open_dataset(tmp_path / "out").records for a in r.annotations]
    before = [a for r in open_dataset(file).records for a in r.annotations]
    assert [(a.id, a.label, a.box) for a in filled] == [(a.id, a.label, a.box) for a in before]
    bare = sum(a.segmentation is None for a in filled)
    assert bare < len(filled) / 2, "only empty masks are left out"
    assert (f"{bare} boxes have no mask" in capsys.readouterr().out) == (bare > 0)


def test_check_with_a_model_lists_likely_errors(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "samples"
    assert run("check", photos.parent, "--model", checkpoint, "--out", out, "--samples", 0, "--top", 3) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((out / "label_errors.csv").open(newline="")))
    assert rows
    assert {row["split"] for row in rows} <= {"train", "val"}
    assert f"{len(rows)} labels differ" in said
    assert said.count("missed object") <= 3


def test_boxes_of_a_data_set_get_masks(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    known = open_dataset(photos.parent, "train").coco()
    for row in known["annotations"]:
        del row["segmentation"]
    Path(photos.parent, "boxes.json").write_text(json.dumps(known))
    given = ("--from", "boxes", "--model", checkpoint, "--to", "coco", "--out", tmp_path / "out")
    assert run("prelabel", photos.parent / "boxes.json", *given) == 0
    said = capsys.readouterr().out
    before, after = open_dataset(photos.parent / "boxes.json"), open_dataset(tmp_path / "out")
    old, new = ([a for r in data.records for a in r.annotations] for data in (before, after))
    assert [(a.id, a.box) for a in old] == [(b.id, b.box) for b in new]
    bare = sum(b.segmentation is None for b in new)
    assert (f"{bare} boxes have no mask" in said) == (bare > 0)
    assert run("prelabel", photos.parent / "boxes.json", *given[:3], checkpoint, *given[4:]) == 1  # out is not empty
    for option in (("--count", 2), ("--score", 0.5), ("--max-overlap", 0.5), ("--classes", "disc")):
        assert usage("prelabel", photos, "--from", "boxes", "--to", "coco", *option, "--out", tmp_path / "new") == 2
    tags = ("--from", "tags", "--model", checkpoint, "--to", "coco", "--out", tmp_path / "tags")
    assert run("prelabel", photos.parent, *tags) == 1
    assert "trained on tags" in capsys.readouterr().err
