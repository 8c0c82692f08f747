"""Drawing: what is changed and what is not, sizes, formats, many objects."""

import numpy as np
import pytest
from PIL import Image

from maskkit.errors import DataError
from maskkit.infer import draw
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction
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


def test_supervision_gets_everything():
    prediction = scene((20, 30), [[2, 3, 12, 13], [15, 5, 29, 18]])
    detections = prediction.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, objects(prediction).boxes)
    np.testing.assert_array_equal(np.asarray(detections.mask), masks(prediction).dense())
    np.testing.assert_array_equal(np.asarray(detections.confidence), objects(prediction).scores)
    np.testing.assert_array_equal(np.asarray(detections.class_id), [0, 1])
    np.testing.assert_array_equal(np.asarray(detections.data["class_name"]), ["disc", "ring"])


def test_supervision_of_nothing():
    assert len(scene((20, 30), []).to_supervision()) == 0
    assert len(Prediction(ImageMeta(1, "", (5, 5), (5, 5)), NAMES).to_supervision()) == 0


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
    monkeypatch.setattr(draw, "_MASK_BYTES", 1)
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
    with pytest.raises(DataError, match="no image format"):
        prediction.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_when_the_image_is_gone(tmp_path):
    prediction = scene((20, 20), [])
    prediction.meta = ImageMeta(1, str(tmp_path / "gone.jpg"), (20, 20), (20, 20))
    with pytest.raises(DataError, match=r"gone\.jpg"):
        prediction.save(tmp_path / "overlay.png")
