"""Drawing: what is changed and what is not, sizes, formats, many objects."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskkit.errors import DataError
from maskkit.geometry import paint
from maskkit.infer import draw, fonts
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction
from tests.small import masks, objects

NAMES = Categories(("disc", "ring"), (3, 9))


def scene(size: tuple[int, int], boxes: list[list[float]], image: np.ndarray | None = None, masked: bool = True):
    """A prediction whose masks fill the boxes."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    dense = np.zeros((len(array), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(dense, array.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    n = len(array)
    found = Instances(
        array,
        np.arange(n) % 2,
        np.linspace(0.9, 0.4, n, dtype=np.float32),
        Masks.from_dense(dense) if masked else None,
    )
    return Prediction(ImageMeta(1, "", size, size), NAMES, found, image=image)


def test_boxes_without_masks_are_drawn():
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = draw.overlay(image, scene((100, 100), [[20, 40, 60, 90]], masked=False))
    assert drawn[40, 20:60].any(1).all()
    assert not drawn[50:85, 25:55].any()


def test_objects_are_coloured_and_the_rest_is_left_alone():
    image = np.full((200, 300, 3), 128, np.uint8)
    drawn = draw.overlay(image, scene((200, 300), [[20, 60, 80, 120], [200, 100, 280, 180]]))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 128).all(), "the image that was given is changed"
    inside = drawn[100, 50].astype(int), drawn[150, 240].astype(int)
    assert np.abs(inside[0] - 128).max() > 20
    assert np.abs(inside[0] - inside[1]).max() > 20, "neighbours have the same colour"
    assert (drawn[:, 120:190] == 128).all()


def test_colours_are_rgb():
    """The first colour is a blue; red and blue exchanged it would be orange."""
    drawn = draw.overlay(np.zeros((100, 100, 3), np.uint8), scene((100, 100), [[20, 40, 60, 90]]))
    red, _, blue = drawn[70, 40]
    assert blue > red


def test_nothing_found_draws_nothing():
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    drawn = draw.overlay(image, scene((30, 40), []))
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


@pytest.mark.parametrize("size", [(1, 1), (8, 200), (200, 8), (1500, 2000)])
def test_images_of_every_size(size):
    height, width = size
    drawn = draw.overlay(np.zeros((*size, 3), np.uint8), scene(size, [[0, 0, width, height]]))
    assert drawn.shape == (*size, 3)
    assert drawn.any()


def test_text_leaves_a_crowded_image_visible():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 240, (150, 2))
    boxes = np.concatenate([corners, corners + 8], 1)
    prediction = scene((256, 256), boxes.tolist())
    drawn = draw.overlay(np.zeros((256, 256, 3), np.uint8), prediction)
    covered = np.zeros((256, 256), bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        covered[max(0, y1 - 2) : y2 + 3, max(0, x1 - 2) : x2 + 3] = True
    assert drawn[~covered].any(1).mean() < draw._TEXT_SHARE


def test_masks_that_do_not_fit_into_memory_at_once_are_all_drawn(monkeypatch):
    prediction = scene((50, 90), [[5, 5, 15, 15], [30, 20, 50, 40], [60, 10, 85, 45]])
    image = np.full((50, 90, 3), 200, np.uint8)
    together = draw.overlay(image, prediction)
    monkeypatch.setattr(paint, "STRIP", 1)
    np.testing.assert_array_equal(draw.overlay(image, prediction), together)


def test_save_reads_the_image_again_turned_as_its_exif_says(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (9, 9, 9)).save(path, exif=exif)
    prediction = scene((60, 40), [[10, 30, 30, 50]])
    prediction.meta = ImageMeta(1, str(path), (60, 40), (60, 40))
    out = prediction.save(tmp_path / "deep" / "overlay.png")
    assert Image.open(out).size == (40, 60)
    assert [p.name for p in out.parent.iterdir()] == ["overlay.png"]


@pytest.mark.parametrize("name", ["overlay", "overlay.txt", "overlay.json"])
def test_save_refuses_what_is_no_image_format(tmp_path, name):
    prediction = scene((20, 20), [], np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DataError, match="not an image format"):
        prediction.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_when_the_image_is_gone(tmp_path):
    prediction = scene((20, 20), [])
    prediction.meta = ImageMeta(1, str(tmp_path / "gone.jpg"), (20, 20), (20, 20))
    with pytest.raises(DataError, match=r"gone\.jpg"):
        prediction.save(tmp_path / "overlay.png")


def shared_area(places: np.ndarray) -> np.ndarray:
    """Area that each two of N boxes share, (N, N), without that of a box with itself."""
    low, high = np.maximum(places[:, None, :2], places[:, :2]), np.minimum(places[:, None, 2:], places[:, 2:])
    return (high - low).clip(min=0).prod(2) * ~np.eye(len(places), dtype=bool)


def test_labels_stand_beside_their_boxes_and_do_not_cover_each_other():
    boxes = np.array([[100, 100, 200, 200], [102, 101, 198, 199], [100, 102, 200, 198], [0, 0, 400, 300.0]])
    taken = np.zeros((0, 4))
    for box in boxes:
        place, _ = draw._place(box, (60.0, 14.0), (400, 300), taken)
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= 400
        assert place[3] <= 300
        gap = np.maximum(np.maximum(place[:2] - box[2:], box[:2] - place[2:]), 0)
        assert gap.max() <= 1, "away from its box"
        taken = np.vstack([taken, place])
    assert shared_area(taken).max() == 0


def test_a_contour_is_of_the_full_colour_and_the_inside_is_tinted():
    image = np.zeros((100, 100, 3), np.uint8)
    mask = np.zeros((1, 100, 100), bool)
    mask[0, 30:70, 30:70] = True
    mask[0, 30:40, 60:70] = False
    found = Instances(np.array([[30, 30, 70, 70]], np.float32), np.array([0]), np.array([0.9], np.float32))
    found.masks = Masks.from_dense(mask)
    drawn = draw.overlay(image, Prediction(ImageMeta(1, "", (100, 100), (100, 100)), NAMES, found))
    contour, inside, outside = drawn[38, 59], drawn[55, 50], drawn[36, 64]
    assert contour.tolist() == draw._COLOURS[0].tolist()
    assert 0 < inside.max() < contour.max()
    assert not outside.any()


@pytest.mark.parametrize("name", ["two\nlines", "\udc80 lone", "$x$", "\x00", "", "\u65e5\u672c", "long " * 100])
def test_any_name_can_be_drawn(name):
    prediction = scene((90, 120), [[10, 30, 60, 80], [50, 20, 110, 70]])
    prediction.categories = Categories((name, "b"), (1, 2))
    image = np.zeros((90, 120, 3), np.uint8)
    assert draw.overlay(image, prediction).any()
    found, prediction.instances = prediction.instances, None
    prediction.semantic = np.zeros((90, 120), np.uint8)
    assert draw.overlay(image, prediction).any()
    assert found is not None


def test_a_text_keeps_both_ends():
    text = draw.one_line("a" * 100 + "\n0.93")
    assert len(text) == 40
    assert text.startswith("aaa")
    assert text.endswith("a 0.93")


def test_classes_are_named_on_their_regions():
    grey = np.full((64, 64, 3), 128, np.uint8)
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    named = draw.overlay(grey, Prediction(ImageMeta(1, "", (64, 64), (64, 64)), NAMES, semantic=labels))
    assert (named == 255).all(2).any(), "the names are written in white"


def test_a_label_map_is_written_with_the_colours_of_its_classes(tmp_path: Path):
    labels = np.zeros((20, 30), np.uint8)
    labels[10:, 5:] = 1
    prediction = Prediction(ImageMeta(7, "", (20, 30), (20, 30)), NAMES, semantic=labels)
    with Image.open(draw.save_labels(prediction, tmp_path / "labels.png")) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert np.array_equal(np.asarray(image.convert("RGB"))[0, 0], paint.class_colours(2)[0])


def test_segments_are_drawn(tmp_path: Path):
    ids = np.zeros((60, 80), np.int32)
    ids[:30], ids[30:, 40:], ids[34:58, 5:35] = 9, 4, 70
    segments = [
        PanopticSegment(9, 1, 0.9, False),
        PanopticSegment(4, 0, 0.9, True),
        PanopticSegment(70, 0, 0.9, True),
    ]
    image = np.full((60, 80, 3), 100, np.uint8)
    prediction = Prediction(ImageMeta(1, "", (60, 80), (60, 80)), NAMES, panoptic=Panoptic(ids, segments), image=image)
    drawn = draw.overlay(image, prediction)
    assert (drawn[32, 2] == 100).all(), "what is nothing stays as it is"
    colours = {tuple(drawn[place].tolist()) for place in ((2, 2), (57, 77), (56, 7))}
    assert len(colours) == 3, "two discs can be told apart"
    prediction.save(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as written:
        assert np.array_equal(np.asarray(written), drawn)


@pytest.mark.parametrize("name", ["background", "__background__", " Background", "bg"])
def test_the_background_of_a_label_map_is_not_tinted(name):
    image = np.full((60, 80, 3), 100, np.uint8)
    labels = np.zeros((60, 80), np.uint8)
    labels[10:50, 20:60] = 1
    prediction = Prediction(ImageMeta(1, "", (60, 80), (60, 80)), Categories((name, "cat"), (1, 2)), semantic=labels)
    changed = (draw.overlay(image, prediction, draw.Style(labels=False)) != 100).any(2)
    np.testing.assert_array_equal(changed, labels == 1)
    prediction.categories = Categories(("road", "cat"), (1, 2))
    assert (draw.overlay(image, prediction) != 100).any(2).all(), "the first class is not always the background"


def test_what_is_drawn_can_be_chosen():
    image = np.full((200, 300, 3), 128, np.uint8)
    prediction = scene((200, 300), [[20, 60, 80, 120], [200, 100, 280, 180], [120, 20, 180, 60]])
    objects(prediction).boxes[0] = [10, 50, 90, 130]
    frame = (50, 40)
    assert (draw.overlay(image, prediction)[frame] != 128).any()
    plain = draw.overlay(image, prediction, draw.Style(boxes=False, labels=False))
    covered = masks(prediction).dense().any(0)
    np.testing.assert_array_equal((plain != 128).any(2), covered)
    by_class = draw.overlay(image, prediction, draw.Style(labels=False, colours="class"))
    inside = [by_class[y, x].tolist() for y, x in ((90, 50), (140, 240), (40, 150))]
    assert inside[0] == inside[2] != inside[1]


def test_boxes_of_a_model_without_masks_are_always_drawn():
    drawn = draw.overlay(
        np.zeros((99, 99, 3), np.uint8), scene((99, 99), [[9, 9, 60, 60]], masked=False), draw.Style(False, False)
    )
    assert drawn.any()


def test_labels_that_would_hide_others_are_left_out():
    boxes = np.array([[100, 100, 140, 120]] * 60, float)
    shown = draw.draw_objects(
        np.zeros((200, 300, 3), np.uint8), [], boxes, np.full((60, 3), 90, np.uint8), ["a label"] * 60
    )
    assert (shown != 0).any(2).mean() < 0.2


@given(st.text(max_size=30))
def test_any_text_has_a_font(text):
    draw.text_width(text, 11)
    boxes, colours = np.array([[5.0, 20, 50, 40]]), np.array([[200, 0, 0]], np.uint8)
    draw.draw_objects(np.zeros((60, 90, 3), np.uint8), [], boxes, colours, [text])


def test_characters_that_no_font_has_are_escapes():
    assert fonts.fitted("cat", 11)[1] == "cat"
    assert fonts.fitted("кошка café", 11)[1] == "кошка café"
    shown = fonts.fitted("x\U000e0fff", 11)[1]
    assert shown == "x\\U000e0fff"
    shown = fonts.fitted("日本", 11)[1]
    assert shown in ("日本", "\\u65e5\\u672c")


def test_drawing_needs_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['supervision'] = None; import maskkit.infer.draw"
    subprocess.run([sys.executable, "-c", code], check=True)
