"""Prediction in tiles: with a detector that is never wrong, the result is that of the whole image."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskkit.config import InputConfig
from maskkit.decode import Decoder, LabelMap, OverInput
from maskkit.errors import DataError, MaskkitError
from maskkit.geometry.windows import Window, count, windows
from maskkit.infer.predict import Predictor
from maskkit.infer.stitch import stitch
from maskkit.infer.tiles import TiledPredictor, with_tiles
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction

CLASSES = Categories.of(["red", "green"])
BACK, MOST = Categories.of(["back", "red", "green"]), 40


@dataclass
class Exact:
    """A runtime that finds the connected parts of each colour: values 100 of the first or second channel."""

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        n, _, height, width = images.shape
        found = {"boxes": (n, MOST, 4), "labels": (n, MOST), "scores": (n, MOST), "masks": (n, MOST, height, width)}
        out = {name: np.zeros(shape, np.float32) for name, shape in found.items()}
        for i, image in enumerate(images):
            k = 0
            for label in (0, 1):
                parts, count = ndimage.label(image[label] == 100)
                for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
                    assert count < MOST
                    corners = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
                    out["boxes"][i, k], out["labels"][i, k], out["scores"][i, k] = corners, label, 0.9
                    out["masks"][i, k] = parts == number
                    k += 1
        return out | {"mask_scores": out["scores"]}


@dataclass
class Colours:
    """A runtime whose label map is the colour of each pixel."""

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        red, green = images[:, 0] == 100, images[:, 1] == 100
        return {"logits": np.stack([~(red | green), red, green], 1).astype(np.float32)}


def exact(tile: int, overlap: float, runtime: object = None, decoder: Decoder | None = None) -> TiledPredictor:
    input = InputConfig(size=(tile, tile), resize="pad", mean=(0, 0, 0), std=(1, 1, 1))
    categories = CLASSES if runtime is None else BACK
    runtime, decoder = runtime or Exact(), decoder or OverInput()
    return with_tiles(Predictor(runtime, decoder, input, categories), tile, overlap)  # type: ignore[arg-type]


def drawn(seed: int, size: tuple[int, int], largest: int) -> np.ndarray:
    """Ellipses that do not touch, in two colours."""
    rng = np.random.default_rng(seed)
    image, taken = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(12):
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        ry, rx = rng.uniform(2, largest / 2, 2)
        blob = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        if blob.any() and not (ndimage.binary_dilation(blob, iterations=2) & taken).any():
            taken |= blob
            image[blob, rng.integers(2)] = 100
    return image


def masks_of(prediction: Prediction) -> list[tuple[int, bytes]]:
    assert prediction.instances is not None
    assert prediction.instances.masks is not None
    dense = prediction.instances.masks.dense()
    np.testing.assert_allclose(prediction.instances.boxes, prediction.instances.masks.boxes(), atol=1e-4)
    return sorted(zip(prediction.instances.labels.tolist(), (m.tobytes() for m in dense), strict=True))


def truth(image: np.ndarray) -> list[tuple[int, bytes]]:
    found = []
    for label in (0, 1):
        parts, count = ndimage.label(image[..., label] == 100)
        found += [(label, (parts == n).tobytes()) for n in range(1, count + 1)]
    return sorted(found)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(8, 90), st.floats(0, 0.49))
def test_every_pixel_is_owned_once_and_seen_by_its_owner(height: int, width: int, tile: int, overlap: float) -> None:
    owners = np.zeros((height, width), int)
    assert count((height, width), tile, overlap) == len(windows((height, width), tile, overlap))
    for seen, own in windows((height, width), tile, overlap):
        owners[own.top : own.bottom, own.left : own.right] += 1
        assert seen.meet(own) == own
        assert seen.size == (min(tile, height), min(tile, width))
    assert (owners == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(60, 150), st.integers(60, 150), st.integers(40, 60), st.integers(4, 90))
def test_objects_of_any_size_are_found_once_and_whole(seed: int, height: int, width: int, tile: int, big: int) -> None:
    image = drawn(seed, (height, width), big)
    found = next(exact(tile, 0.2).images([image]))
    assert masks_of(found) == truth(image)
    assert found.meta.size == (height, width)
    assert found.image is not None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(60, 120), st.integers(60, 120), st.integers(25, 60))
def test_label_maps_have_no_seam(seed: int, height: int, width: int, tile: int) -> None:
    image = drawn(seed, (height, width), 40)
    found = next(exact(tile, 0.25, Colours(), LabelMap()).images([image]))
    assert found.semantic is not None
    np.testing.assert_array_equal(found.semantic, (image[..., 0] == 100) + 2 * (image[..., 1] == 100))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(60, 120), st.integers(60, 120), st.integers(40, 60))
def test_segments_of_panoptic_tiles_are_joined(seed: int, height: int, width: int, tile: int) -> None:
    image = drawn(seed, (height, width), 60)
    things = Categories.of(["red", "green"], ["back"])
    parts = []
    for window in windows((height, width), tile, 0.2):
        seen = window.seen
        pixels = image[seen.top : seen.bottom, seen.left : seen.right]
        ids, segments = np.zeros(seen.size, np.int32), []
        for label, of in enumerate((pixels[..., 0] == 100, pixels[..., 1] == 100, ~(pixels == 100).any(2))):
            blobs, count = ndimage.label(of) if label < 2 else (of.astype(int), int(of.any()))
            for n in range(1, count + 1):
                segments.append(PanopticSegment(len(segments) + 7, label, 0.9, label < 2))
                ids[blobs == n] = segments[-1].id
        parts.append(
            (window, Prediction(ImageMeta(1, "", seen.size, seen.size), things, panoptic=Panoptic(ids, segments)))
        )
    found = stitch(parts, ImageMeta(1, "", (height, width), (height, width)), things).panoptic
    assert found is not None
    assert [s.id for s in found.segments] == list(range(1, len(found) + 1))
    objects = sorted((s.label, (found.ids == s.id).tobytes()) for s in found.segments if s.thing)
    assert objects == truth(image)
    assert sum(not s.thing for s in found.segments) == 1
    assert (found.ids > 0).all()


def test_a_small_image_is_one_tile_with_the_same_result() -> None:
    image = drawn(3, (50, 60), 30)
    tiled = exact(64, 0.2)
    plain = Predictor(tiled.runtime, tiled.decoder, tiled.input, tiled.categories)
    a, b = next(tiled.images([image])), next(plain.images([image]))
    assert a.to_coco() == b.to_coco()


def test_what_another_tile_owns_is_no_object_of_its_own() -> None:
    """A remainder at the border, which the network sees otherwise there than whole, is left out."""
    image = np.zeros((40, 90, 3), np.uint8)
    image[10:30, 41:70, 0] = 100

    class Partial(Exact):
        def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
            found = super().run(images, sizes)
            narrow = found["boxes"][..., 2] - found["boxes"][..., 0] < 0.25
            found["masks"][narrow] *= (np.arange(found["masks"].shape[2]) < 14)[:, None]  # too few of its rows
            return found

    found = next(exact(50, 0.2, None).images([image]))
    assert len(found) == 1
    tiled = replace(exact(50, 0.2), runtime=Partial())
    assert masks_of(next(tiled.images([image]))) == truth(image)


def seen_by(window: Window, size: tuple[int, int], *found: tuple[slice, slice, float]) -> tuple[Window, Prediction]:
    """Objects in the columns and rows of the image, as the tile sees them."""
    masks = np.zeros((len(found), *size), bool)
    for mask, (rows, columns, _) in zip(masks, found, strict=True):
        mask[rows, columns] = True
    seen = Masks.from_dense(masks[:, :, window.seen.left : window.seen.right])
    scores = np.array([score for *_, score in found], np.float32)
    objects = Instances(seen.boxes(), np.zeros(len(found), np.int64), scores, seen)
    return window, Prediction(ImageMeta(1, "", window.seen.size, window.seen.size), CLASSES, objects)


def test_the_owner_of_an_object_that_it_sees_whole_has_the_word() -> None:
    """Its mask and score stand, whether another tile's agree or not; what the other alone sees there is left out."""
    size, (left, right) = (40, 90), windows((40, 90), 50, 0.2)
    assert (left.own.right, right.seen.left) == (45, 40)
    rows = slice(10, 20)
    for theirs in (rows, slice(10, 18), slice(10, 13)):  # the same, alike, hardly so
        parts = [seen_by(left, size, (rows, slice(41, 47), 0.6)), seen_by(right, size, (theirs, slice(41, 47), 0.9))]
        found = stitch(parts, ImageMeta(1, "", size, size), CLASSES).instances
        assert found is not None
        assert found.masks is not None
        assert found.scores.tolist() == pytest.approx([0.6])
        assert found.masks.areas().tolist() == [60]
    only = stitch(
        [seen_by(left, size), seen_by(right, size, (rows, slice(41, 44), 0.9))], ImageMeta(1, "", size, size), CLASSES
    )
    assert len(only) == 0


def test_what_one_of_two_tiles_takes_for_two_objects_is_one() -> None:
    size, (left, right) = (40, 90), windows((40, 90), 50, 0.2)
    columns, tall, low = slice(42, 50), slice(10, 20), slice(12, 20)
    twice = seen_by(right, size, (tall, columns, 0.9), (low, columns, 0.6))
    for theirs, expected in (
        ([(tall, columns, 0.8)], [0.9]),
        ([(tall, columns, 0.8), (low, columns, 0.5)], [0.9, 0.6]),
    ):
        found = stitch([seen_by(left, size, *theirs), twice], ImageMeta(1, "", size, size), CLASSES).instances
        assert found is not None
        assert found.scores.tolist() == pytest.approx(expected)


def test_failures_and_wrong_settings(tmp_path) -> None:
    with pytest.raises(MaskkitError, match=r"at least 0 and less than 0\.5"):
        exact(50, 0.5)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    failed = []
    image = drawn(1, (60, 60), 20)
    assert len(list(exact(50, 0.2).images([tmp_path / "a.jpg", image], failed=failed.append))) == 1
    assert failed[0].path.endswith("a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg"):
        list(exact(50, 0.2).images([tmp_path / "a.jpg"]))
