"""What all reports share: names from elsewhere are text and nothing else, one file holds everything."""

import io
import warnings
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, Record
from maskkit.eval import page
from maskkit.eval.instance import metric as instance
from maskkit.eval.instance import report as instance_report
from maskkit.eval.panoptic import metric as panoptic
from maskkit.eval.panoptic import report as panoptic_report
from maskkit.eval.semantic import metric as semantic
from maskkit.eval.semantic import report as semantic_report
from maskkit.geometry.rle import encode
from maskkit.prediction import Categories

NAMES = ("<script>alert(1)</script>", r"$\frac$", "\udc80 lone & \"quoted'", "x\ny", "\u65e5\u672c")


class Tags(HTMLParser):
    """Names of the tags of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


def test_sources_are_images():
    pixels = np.zeros((6, 8, 3), np.uint8)
    kind, data = page.jpeg(pixels).split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(b64decode(data))) as image:
        assert image.size == (8, 6)


def test_the_commonest_confusions_and_the_largest_classes(monkeypatch):
    monkeypatch.setattr(page, "CELLS", 2)
    counts = np.array([[5, 3, 0, 9], [1, 0, 0, 0], [0, 0, 1, 0], [0, 7, 0, 0]])
    found = page.confusions(counts, counts, ["a", "b", "c"], nothing=True)
    assert (found.shown, found.present) == (2, 3)
    assert found.mixed == [("a", "b", 3), ("b", "a", 1)]
    found = page.confusions(counts, counts, ["a", "b", "c"], nothing=False)
    assert found.mixed[:2] == [("a", "nothing", 9), ("nothing", "b", 7)]


def test_a_formula_in_a_name_is_drawn_as_it_is_written():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks
        found = page.confusions(np.eye(len(NAMES) + 1, dtype=int), np.eye(len(NAMES) + 1, dtype=int), NAMES, True)
    drawing = b64decode(found.drawing.split(",")[1]).decode()
    ElementTree.fromstring(drawing)
    assert r"$\frac$" in drawing, "each text is there once more as a comment"


def hostile(folder: Path) -> Dataset:
    """An image with objects of classes with bad names, and one that is not there, whose own name is bad."""
    folder.mkdir()
    Image.new("RGB", (60, 40), "grey").save(folder / "1.png")
    dense = np.zeros((len(NAMES), 40, 60), bool)
    for i, mask in enumerate(dense):
        mask[4 * i : 4 * i + 12, 10 * i : 10 * i + 15] = True
        mask[: 4 * i] = False
        dense[:i] &= ~mask
    objects = [Annotation(i, i - 1, None, rle) for i, rle in enumerate(encode(dense), 1)]
    paths = (folder / "1.png", folder / "<img src=x onerror=alert(1)> $\\frac$ \udc80.png")
    records = [Record(number, path, (40, 60), objects) for number, path in enumerate(paths, 1)]
    return Dataset(records, Categories.of(NAMES[:-1], stuff=NAMES[-1:]), folder, "drawn")


def rows_of(data: Dataset) -> list[dict[str, Any]]:
    """Found are the objects of the truth, each as one of the next class."""
    return [
        {
            "image_id": record.image_id,
            "category_id": data.categories.ids[(a.label + 1) % len(NAMES)],
            "segmentation": a.segmentation,
            "bbox": [5.0 * a.label, 4, 15, 12],
            "score": 0.9,
        }
        for record in data.records
        for a in record.annotations
    ]


def write_instances(path: Path, data: Dataset) -> None:
    truth, rows = data.coco(), rows_of(data)
    paths = {r.image_id: r.path for r in data.records}
    instance_report.write_report(path, instance.evaluate(rows, truth), rows, truth, paths, NAMES[0], [NAMES[1]])


def write_semantic(path: Path, data: Dataset) -> None:
    rows, data = rows_of(data), data.as_semantic()
    semantic_report.write_report(path, semantic.evaluate(rows, data), rows, data, NAMES[0], [NAMES[1]])


def write_panoptic(path: Path, data: Dataset) -> None:
    rows, data = rows_of(data), data.as_panoptic()
    panoptic_report.write_report(path, panoptic.evaluate(rows, data), rows, data, NAMES[0], [NAMES[1]])


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("write", [write_instances, write_semantic, write_panoptic])
def test_names_are_text_and_never_markup(tmp_path: Path, write: Callable[[Path, Dataset], None]):
    write(tmp_path / "report.html", hostile(tmp_path / "images"))
    html = (tmp_path / "report.html").read_bytes().decode("utf-8")
    content = Tags(html)
    assert "script" not in content.tags
    assert content.tags.count("figure") == 2
    assert {source.split(":")[0] for source in content.sources} == {"data"}
    for name in (NAMES[0], NAMES[1], r"\udc80 lone & " + "\"quoted'", NAMES[4], "<img src=x onerror=alert(1)>"):
        assert name in content.text
    assert "there is no such image" in content.text
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["report.html"]
