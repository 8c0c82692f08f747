"""Folders of label images: values, colours, 16 bits, files that cannot be read; what the doctor sees in them."""

import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskkit import zoo
from maskkit.config import DataConfig, RunConfig
from maskkit.data import open_dataset
from maskkit.data.check import check
from maskkit.data.label_map import BACKGROUND, IGNORE, LabelFile
from maskkit.engine.data import open_data
from maskkit.errors import DataError
from maskkit.infer.samples import save_samples
from maskkit.terminal import Console
from tests.data.written import SIZE, messages, write_image

CLASSES = {"classes": [{"id": 0, "name": "background"}, {"id": 255, "name": "crack"}]}


def write_maps(folder: Path, **maps: np.ndarray) -> Path:
    """Label images by the name of their image; 8 bits, 16 bits or colours."""
    for i, (name, values) in enumerate(maps.items()):
        write_image(folder / "images" / f"{name}.png", i, values.shape[:2])  # type: ignore[arg-type]
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
    return folder


def square(inside: int, outside: int = 0, kind: type = np.uint8) -> np.ndarray:
    values = np.full(SIZE, outside, kind)
    values[10:20, 10:30] = inside
    return values


def coloured(values: np.ndarray, palette: list[list[int]]) -> np.ndarray:
    return np.array(palette, np.uint8)[values]


def printed(folder: Path) -> str:
    out = io.StringIO()
    check(folder).print(Console(file=out, width=200))
    return out.getvalue()


def run_of(folder: Path) -> RunConfig:
    found = zoo.preset("deeplabv3-mobilenetv2-320")
    train = replace(found.train, steps=1, workers=0)
    return RunConfig(found.name, found.model, found.input, found.augment, train, DataConfig(str(folder)))


def test_binary_masks_are_refused_with_the_remedy_and_the_remedy_works(tmp_path: Path) -> None:
    write_maps(tmp_path, a=square(255), b=square(255), c=square(255))
    (error,) = check(tmp_path).errors
    assert "only the values 0 and 255, and 255 means unknown" in error.message
    remedy = error.message.partition("classes.json: ")[2]
    with pytest.raises(DataError, match="only the values 0 and 255"):
        open_data(run_of(tmp_path))
    (tmp_path / "classes.json").write_text(remedy)
    report = check(tmp_path)
    assert report.problems == []
    labels = report.summaries["all"].labels
    assert labels is not None
    assert labels.classes == {"background": 3 * (2400 - 200), "object": 3 * 200}
    assert labels.unknown == 0
    _, target, _ = report.datasets["all"].load(0)
    assert target.semantic is not None
    assert np.array_equal(target.semantic.numpy(), square(1))
    open_data(run_of(tmp_path))


@pytest.mark.parametrize(("inside", "outside"), [(255, 255), (3, 3), (255, 7)])
def test_one_class_alone_teaches_nothing(tmp_path: Path, inside: int, outside: int) -> None:
    write_maps(tmp_path, a=square(inside, outside), b=square(inside, outside))
    assert ["nothing to tell apart" in e.message for e in check(tmp_path).errors] == [True]
    with pytest.raises(DataError, match="nothing to tell apart"):
        open_data(run_of(tmp_path))


def test_pixels_are_counted_and_not_objects(tmp_path: Path) -> None:
    maps = square(1)
    maps[:5] = 255
    write_maps(tmp_path, a=maps, b=square(1))
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\ntree\r\nlake\r\n")
    text = printed(tmp_path)
    for part in ("pixels per class", "4,100", "400", "300", "(unknown)", "no pixel of lake"):
        assert part in text, part
    assert "objects" not in text


def test_maps_that_are_unknown_in_large_part(tmp_path: Path) -> None:
    write_maps(tmp_path, a=square(1), b=np.full(SIZE, 255, np.uint8), c=np.full(SIZE, 255, np.uint8))
    warnings = " ".join(p.message for p in check(tmp_path).warnings)
    assert "67% of the pixels is unknown" in warnings
    assert "2 label maps without a pixel of known class: b.png, c.png" in warnings


def test_many_maps_are_looked_into_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskkit.data.check.LABEL_MAPS", 2)
    write_maps(tmp_path, a=square(255), b=square(255), c=square(255), d=square(255))
    report = check(tmp_path, decode=False)
    assert report.summaries["all"].labels is not None
    assert report.summaries["all"].labels.maps == 2
    assert len(report.errors) == 1


def test_sixteen_bits(tmp_path: Path) -> None:
    write_maps(tmp_path, a=square(2, kind=np.uint16), b=square(1))
    dataset = open_dataset(tmp_path)
    assert (dataset.problems, dataset.categories.names) == ([], ("0", "1", "2"))
    write_maps(tmp_path, a=square(1000, kind=np.uint16), b=square(1001, kind=np.uint16), c=square(1))
    dataset = open_dataset(tmp_path)
    assert [r.path.name for r in dataset.records] == ["c.png"]
    (error,) = dataset.problems
    assert error.file.endswith("masks/a.png")
    assert "values up to 1000 (1 other label image too)" in error.message
    classes = [{"id": 0, "name": "no"}, {"id": 1, "name": "one"}, {"id": 1000, "name": "a"}, {"id": 1001, "name": "b"}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    report = check(tmp_path)
    assert report.problems == []
    assert report.datasets["all"].records[1].semantic.counts(SIZE) == {0: 2200, 3: 200}  # type: ignore[union-attr]


@pytest.mark.parametrize("palette", [[[0, 0, 0], [128, 0, 0]], [[1, 2, 3], [128, 64, 255]]])
def test_colour_images_ask_for_the_palette_and_take_it(tmp_path: Path, palette: list[list[int]]) -> None:
    write_maps(tmp_path, a=coloured(square(1), palette), b=coloured(square(1), palette))
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 0
    (error,) = dataset.problems
    assert "is a colour image (1 other label image too), with 2 colours" in error.message
    assert str(palette[0]) in error.message
    assert "classes.json" in error.message
    rows = [
        {"id": i, "name": name, "color": colour} for i, name, colour in zip((0, 7), ("no", "cat"), palette, strict=True)
    ]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows}))
    for _ in range(2):
        report = check(tmp_path)
        assert report.problems == []
        assert report.datasets["all"].categories.names == ("no", "cat")
        assert report.datasets["all"].records[0].semantic.counts(SIZE) == {0: 2200, 1: 200}  # type: ignore[union-attr]
        (tmp_path / "classes.json").unlink(missing_ok=True)
        table = [f"no,{','.join(map(str, palette[0]))}", f"cat,{','.join(map(str, palette[1]))}"]
        (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *table]))


def test_an_unknown_colour_is_named(tmp_path: Path) -> None:
    write_maps(tmp_path, a=coloured(square(1), [[0, 0, 0], [9, 8, 7]]), b=coloured(square(1), [[0, 0, 0], [1, 1, 1]]))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nno,0,0,0\ncat,9,8,7\n")
    (error,) = check(tmp_path).errors
    assert "masks/b.png: the colour (1, 1, 1) is no class" in error.message


def test_indices_with_declared_colours_stay_indices(tmp_path: Path) -> None:
    write_maps(tmp_path, a=square(1))
    rows = [{"id": 0, "name": "no", "colour": [9, 9, 9]}, {"id": 1, "name": "cat", "colour": [1, 1, 1]}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": rows}))
    assert open_dataset(tmp_path).records[0].semantic.counts(SIZE) == {0: 2200, 1: 200}  # type: ignore[union-attr]


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("cut", [0, 40, 60])
def test_a_label_image_that_cannot_be_read_is_named_and_the_rest_is_usable(
    tmp_path: Path, declared: bool, cut: int
) -> None:
    write_maps(tmp_path, a=square(1), b=square(1), c=square(1))
    if declared:
        (tmp_path / "classes.txt").write_text("no\ncat\n")
    file = tmp_path / "masks" / "b.png"
    file.write_bytes(file.read_bytes()[:cut])
    report = check(tmp_path)
    assert [r.path.name for r in report.datasets["all"].records] == ["a.png", "c.png"]
    (error,) = report.errors
    assert "masks/b.png" in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"classes": []}, "no list of classes"),
        ([1], "no list of classes"),
        ({"classes": [{"id": "0", "name": "a"}]}, "class 1 of the list has no whole number"),
        ({"classes": [{"id": float("inf"), "name": "a"}]}, "class 1 of the list has no whole number"),
        ({"classes": [{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]}, "used twice"),
        ({"classes": [{"id": 0, "name": "a", "color": [0, 0, 256]}]}, "from 0 to 255"),
        ({"classes": [{"id": 0, "name": "a", "color": [0, 0, 0]}, {"id": 1, "name": "b"}]}, "'b' has no color"),
    ],
)
def test_a_list_of_classes_of_another_form_is_one_clear_error(tmp_path: Path, content: object, reason: str) -> None:
    write_maps(tmp_path, a=square(1))
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"classes\.json: .*{reason}"):
        open_dataset(tmp_path)


def test_classes_in_another_encoding_are_read_and_said(tmp_path: Path) -> None:
    write_maps(tmp_path, a=square(1))
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\ndog\n")
    dataset = open_dataset(tmp_path)
    assert dataset.categories.names == ("caf\\xe9", "dog")
    assert "line 1 is not UTF-8" in messages(dataset.problems, "warning")[0]


def test_blurred_edges_are_said(tmp_path: Path) -> None:
    write_maps(tmp_path, a=np.arange(2400, dtype=np.uint16).reshape(SIZE).astype(np.uint8))
    assert "256 different values" in messages(open_dataset(tmp_path).problems, "warning")[0]


def test_samples_show_label_maps(tmp_path: Path) -> None:
    write_maps(tmp_path, a=square(1))
    (sample,) = save_samples(open_dataset(tmp_path), tmp_path / "samples")
    shown = np.asarray(Image.open(sample)).astype(int)
    plain = np.asarray(Image.open(tmp_path / "images" / "a.png")).astype(int)
    assert np.abs(shown - plain).mean() > 20


@given(st.data())
def test_counting_is_reading(data: st.DataObject) -> None:
    """For values of any kind: 8 bits, 16 bits and colours, with and without a background."""
    kind = data.draw(st.sampled_from(["L", "P", "I;16", "RGB"]))
    values = data.draw(st.lists(st.integers(0, 65535 if kind == "I;16" else 255), min_size=1, max_size=5, unique=True))
    numbers = dict.fromkeys(values, 0) | {v: data.draw(st.sampled_from([BACKGROUND, IGNORE, 0, 1, 2])) for v in values}
    pixels = np.random.default_rng(0).choice(values, (5, 7))
    with tempfile.TemporaryDirectory() as folder:
        image = Image.fromarray(pixels.astype(np.uint16 if kind == "I;16" else np.uint8))
        if kind == "P":
            image.putpalette(list(range(256)) * 3)
        if kind == "RGB":
            image = Image.merge("RGB", [image] * 3)
        file = Path(folder) / "a.png"
        image.save(file)
        colours = {v * 65793: n for v, n in numbers.items()} if kind == "RGB" else None
        source = LabelFile(file, {} if colours else numbers, colours)
        found = source.read((5, 7))
        expected = np.vectorize(numbers.get)(pixels)
        assert np.array_equal(found, np.where(expected == BACKGROUND, IGNORE, expected))
        assert source.counts((5, 7)) == {int(n): int((expected == n).sum()) for n in np.unique(expected)}


def test_numbers_of_objects_are_doubted(tmp_path):
    """In each image from 1 on, each number one region; in a map of classes a class has several regions, or none."""
    five = np.kron(np.arange(6), np.ones((SIZE[0], SIZE[1] // 6))).astype(np.uint8)
    two = np.where(five > 2, 0, five)
    assert (
        "if they number objects" in messages(open_dataset(write_maps(tmp_path, a=five, b=two)).problems, "warning")[0]
    )
    for other in (np.where(five == 4, 1, two), np.where(five == 2, 3, two), five):
        assert open_dataset(write_maps(tmp_path, a=five, b=other)).problems == []
