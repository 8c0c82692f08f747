"""Large images: the same masks and drawings in strips, reading at a fraction of the size, memory."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskkit.config import InputConfig
from maskkit.data import images
from maskkit.data.images import read_pixels, read_reduced
from maskkit.decode import boxes as boxes_module
from maskkit.decode import grid as grid_module
from maskkit.decode import votes as votes_module
from maskkit.decode.boxes import InBoxes
from maskkit.decode.grid import OverInput
from maskkit.decode.outputs import ObjectMasks, RegionVotes
from maskkit.decode.votes import Votes
from maskkit.errors import DataError
from maskkit.geometry import paint, rle
from maskkit.geometry.resample import strips
from maskkit.infer import draw
from maskkit.infer.preprocess import prepare
from maskkit.infer.sources import read_source
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction

TWO = Categories.of(["disc", "ring"])


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_run_lengths_of_some_columns_at_a_time(seed, values):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 12, 2).tolist()
    region = rng.random((height, width)) < 0.5
    top, left = rng.integers(0, 5, 2).tolist()
    size = (height + top + int(rng.integers(3)), width + left + int(rng.integers(3)))
    dense = np.zeros((1, *size), bool)
    dense[0, top : top + height, left : left + width] = region
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle, "strips", partial(strips, values=values))
        assert rle.encode_region(region, top, left, size) == rle.encode(dense)[0]


def outputs(rng: np.random.Generator, cells: int) -> ObjectMasks[np.ndarray]:
    corners = np.sort(rng.random((6, 2, 2)), 1).reshape(6, 4).astype(np.float32)
    scores = np.linspace(0.9, 0.4, 6, dtype=np.float32)
    return ObjectMasks(corners, np.arange(6) % 2, scores, rng.random((6, cells, cells)).astype(np.float32), scores)


@pytest.mark.parametrize("decoder", [InBoxes(), InBoxes("whole_pixels"), OverInput(), OverInput(0.5), Votes()])
def test_masks_in_strips_have_the_same_bits(decoder, monkeypatch):
    out: Any = outputs(np.random.default_rng(3), 14)
    if isinstance(decoder, Votes):
        votes = np.full((6, 6), 1 / 6, np.float32)
        out = RegionVotes(out.boxes, out.labels, out.scores, out.masks, votes)
    meta = ImageMeta(1, "", (123, 217), (64, 64), np.diag([217 / 64, 123 / 64, 1])[:2])
    whole = decoder(out, meta, TWO).to_coco()
    for module in (boxes_module, grid_module, votes_module):
        monkeypatch.setattr(module, "DENSE", 500)
    monkeypatch.setattr(votes_module, "_KEPT", 0)
    assert decoder(out, meta, TWO).to_coco() == whole
    assert len(whole) == 6


def test_overlays_in_strips_have_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (9, 12)), 10, 0), 10, 1)
    segments = [PanopticSegment(1, 0, 0.9, True), PanopticSegment(2, 1, 0.9, True)]
    dense = np.stack([labels == 1, labels == 2])
    meta = ImageMeta(1, "", (90, 120), (90, 120))
    found = Instances(np.array([[0, 0, 120, 90]] * 2, np.float32), np.arange(2), np.ones(2, np.float32))
    found.masks = Masks.from_dense(dense)
    predictions = [
        Prediction(meta, TWO, found),
        Prediction(meta, TWO, semantic=labels.astype(np.uint8)),
        Prediction(meta, TWO, panoptic=Panoptic(labels.astype(np.int32), segments)),
    ]
    whole = [draw.overlay(image, p) for p in predictions]
    monkeypatch.setattr(paint, "STRIP", 300)
    for prediction, expected in zip(predictions, whole, strict=True):
        np.testing.assert_array_equal(draw.overlay(image, prediction), expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_large_images_are_read_at_a_fraction_of_their_size(name, orientation, factor, tmp_path, monkeypatch):
    ramp = np.mgrid[0:150, 0:203].astype(np.float32)
    pixels = np.stack([ramp[0], ramp[1], np.full((150, 203), 90)], -1).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    whole = read_pixels(tmp_path / name)
    same, size = read_reduced(tmp_path / name, lambda _: pytest.fail("is not large"))
    assert size == whole.shape[:2]
    np.testing.assert_array_equal(same, whole)
    monkeypatch.setattr(images, "LARGE", 1000)
    read, size = read_reduced(tmp_path / name, lambda have: factor if have == whole.shape[:2] else 0)
    assert size == whole.shape[:2]
    assert read.shape == (*(-(-n // factor) for n in size), 3)
    expected = Image.fromarray(whole).reduce(factor)
    assert np.abs(read.astype(int) - np.asarray(expected).astype(int)).max() <= (8 if name.endswith("jpg") else 1)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_is_read_in_strips(mode, tmp_path, monkeypatch):
    grey = np.random.default_rng(0).integers(0, 255, (50, 30), dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / "a.tif"
    image.save(path)
    whole = read_pixels(path)
    monkeypatch.setattr(images, "strips", partial(strips, values=100))
    np.testing.assert_array_equal(read_pixels(path), whole)
    if mode == "L":
        assert (whole == grey[..., None]).all()


@pytest.mark.parametrize("resize", ["stretch", "pad", "shorter"])
def test_the_network_sees_the_same_with_less_memory(resize, tmp_path, monkeypatch):
    """Boxes in the input mean the same place of the image, whichever size it was read at."""
    ramp = np.mgrid[0:643, 0:1001].astype(np.float32)
    pixels = np.stack([ramp[0] / 3, ramp[1] / 4, ramp[0] * 0], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    input = InputConfig((64, 96), resize, mean=(0, 0, 0), std=(1, 1, 1))
    results = []
    for large in (1 << 25, 1000):
        monkeypatch.setattr(images, "LARGE", large)
        read, size = read_source(tmp_path / "a.png", input)
        have = read.shape[:2]
        affine = np.diag([size[1] / have[1], size[0] / have[0], 1.0])[:2]
        results.append(prepare(read, ImageMeta(1, "a", size, have, affine), input))
    whole, part = results
    assert part.image.shape == whole.image.shape
    assert part.meta.size == whole.meta.size == (643, 1001)
    np.testing.assert_allclose(part.meta.affine, whole.meta.affine, rtol=1e-12)
    assert np.abs(part.image - whole.image).max() < 2


def test_an_overlay_of_a_large_image_is_smaller(tmp_path, monkeypatch):
    image = np.full((90, 130, 3), 128, np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    mask = np.zeros((1, 90, 130), bool)
    mask[0, 20:60, 30:80] = True
    found = Instances(np.array([[30, 20, 80, 60]], np.float32), np.array([0]), np.array([0.9], np.float32))
    found.masks = Masks.from_dense(mask)
    meta = ImageMeta(1, str(tmp_path / "a.png"), (90, 130), (90, 130))
    for prediction in (
        Prediction(meta, TWO, found),
        Prediction(meta, TWO, semantic=np.where(mask[0], 0, 255).astype(np.uint8)),
        Prediction(meta, TWO, panoptic=Panoptic(mask[0].astype(np.int32), [PanopticSegment(1, 0, 0.9, True)])),
    ):
        monkeypatch.setattr(images, "LARGE", 4000)
        monkeypatch.setattr(draw, "LARGE", 4000)
        with Image.open(draw.save(prediction, tmp_path / "out.png", draw.Style(labels=False, boxes=False))) as drawn:
            assert drawn.size == (65, 45)
            changed = (np.asarray(drawn) != 128).any(2)
        assert changed[12:28, 17:38].all()
        changed[9:31, 14:41] = False
        assert not changed.any()


def test_an_image_beyond_the_limit_is_refused_in_one_line(tmp_path, monkeypatch):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(DataError, match=r"a\.png: too many pixels for one image \(.*at most"):
        read_pixels(tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is known on Linux alone")
def test_memory_of_108_million_pixels(tmp_path):
    """With the built-in model, interpreter and libraries included."""
    Image.effect_noise((1200, 900), 60).resize((12000, 9000)).convert("RGB").save(tmp_path / "a.jpg")
    code = (
        "import sys; from maskkit import cli; code = cli.main(sys.argv[1:]); "
        "print('peak', next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line)); sys.exit(code)"
    )
    args = ["predict", str(tmp_path / "a.jpg"), "--out", str(tmp_path / "out"), "--score", "0.01"]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "108 million pixels" in done.stderr
    # kilobytes of this process alone: what the system counts for children includes those of other tests
    assert int(done.stdout.split("peak")[1]) < 1.5e6
