"""The report: everything in one file, and images that show what was counted."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.errors import DataError
from maskkit.eval.instance.match import scenes
from maskkit.eval.instance.metric import evaluate
from maskkit.eval.instance.report import draw_scene, write_report
from tests.eval.cases import annotation, detection, drawn, rectangle, truth_of

GREEN, RED, ORANGE, GREY = (46, 158, 91), (214, 69, 61), (224, 138, 0), (122, 127, 135)


class Page(HTMLParser):
    """Checks that what is opened is closed, and keeps text and tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write_images(folder: Path, truth: dict) -> dict[int, Path]:
    paths = {}
    for image in truth["images"]:
        paths[image["id"]] = folder / image["file_name"]
        Image.new("RGB", (image["width"], image["height"]), "white").save(paths[image["id"]])
    return paths


def test_report_is_one_complete_page(tmp_path):
    rows, truth = drawn(0)
    truth["categories"][0]["name"] = "<script>alert(1)</script>"
    result = evaluate(rows, truth)
    paths = write_images(tmp_path, truth)
    path = tmp_path / "out" / "report.html"
    write_report(path, result, rows, truth, paths, "Discs & more", ["a note"])
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert all(s.startswith("data:image/") for s in sources)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html)
    for part in ("Discs & more", "a note", "Average precision", "Score threshold", "Sizes", "Classes", "Confusion"):
        assert part in page.text
    assert result.segm is not None
    assert f"{result.segm['AP']:.3f}" in page.text
    images = [s for s in sources if "jpeg" in s]
    assert 2 <= len(images) <= 24
    for source in images:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).load()
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html"]


@pytest.mark.parametrize("found", [True, False])
def test_report_of_boxes_or_of_nothing(tmp_path, found):
    rows, truth = drawn(1)
    for record in truth["annotations"]:
        del record["segmentation"]
    rows = [{k: v for k, v in row.items() if k != "segmentation"} for row in rows] if found else []
    write_report(tmp_path / "report.html", evaluate(rows, truth), rows, truth, write_images(tmp_path, truth))
    text = Page((tmp_path / "report.html").read_text()).text
    assert ("no threshold to recommend" in text) != found
    assert "Masks" not in text


def test_report_without_objects(tmp_path):
    _, truth = drawn(1)
    truth["annotations"] = []
    write_report(tmp_path / "report.html", evaluate([], truth), [], truth, write_images(tmp_path, truth))
    assert "No image has an error" in Page((tmp_path / "report.html").read_text()).text


def test_report_names_images_that_cannot_be_shown(tmp_path):
    rows, truth = drawn(2)
    write_report(tmp_path / "report.html", evaluate(rows, truth), rows, truth, lambda i: tmp_path / f"{i}.jpg")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "cannot be shown" in text
    assert "there is no such image" in text


def farm(tmp_path: Path, side: int):
    """Four squares: a found one, a missed one, a crowd; detections of the first, the crowd, and of nothing."""
    q = side // 4
    found, missed, crowd, nothing = (
        rectangle((side, side), x * q, y * q, q, q) for x, y in ((0, 1), (2, 1), (0, 3), (2, 3))
    )
    truth = truth_of(
        {1: (side, side)},
        [annotation(1, 1, found), annotation(1, 1, missed), annotation(1, 1, crowd, crowd=True)],
        {1: "a"},
    )
    rows = [detection(1, 1, m, s) for m, s in ((found, 0.9), (crowd, 0.8), (nothing, 0.7), (missed, 0.1))]
    path = write_images(tmp_path, truth)[1]
    (scene,) = scenes(rows, truth, "segm")
    return draw_scene(path, scene, ["a"], 0.5)


@pytest.mark.parametrize("side", [80, 2000])
def test_colours_tell_what_was_found_missed_false_and_ignored(tmp_path, side):
    truth, found = farm(tmp_path, side)
    assert truth.shape == found.shape
    assert max(truth.shape) <= 460
    s = len(truth)

    def tint(image: np.ndarray, x: float, y: float) -> list[int]:
        return image[round(y * s), round(x * s)].tolist()

    def over_white(colour: tuple[int, ...]) -> list[int]:
        return [round(255 + (c - 255) * 115 / 255) for c in colour]

    for image, x, y, colour in (
        (truth, 0.2, 0.45, GREEN),
        (truth, 0.7, 0.45, ORANGE),
        (truth, 0.2, 0.95, GREY),
        (found, 0.2, 0.45, GREEN),
        (found, 0.2, 0.95, GREY),
        (found, 0.7, 0.95, RED),
    ):
        assert tint(image, x, y) == pytest.approx(over_white(colour), abs=2)
    assert tint(found, 0.7, 0.45) == [255] * 3  # below the score threshold
    assert tint(truth, 0.7, 0.95) == [255] * 3


def test_a_broken_image_is_a_data_error(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"no image")
    (scene,) = scenes([], truth_of({1: (4, 4)}, [], {1: "a"}), "bbox")
    with pytest.raises(DataError, match=r"1\.jpg"):
        draw_scene(tmp_path / "1.jpg", scene, ["a"], 0.5)
