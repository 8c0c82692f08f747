"""One preprocessing with and without torch: the same bits."""

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import InputConfig
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops
from maskkit.errors import MaskkitError
from maskkit.infer.preprocess import prepare, stack
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

INPUTS = sorted({p.input for p in zoo.presets()}, key=repr)
SIZES = [(31, 57), (90, 41), (64, 64), (1, 7), (200, 333)]


def kind(input: InputConfig) -> str:
    return "antialias" if input.antialias else input.interpolation


def compare(sizes: list[tuple[int, int]], input: InputConfig) -> None:
    """What `maskkit.infer.preprocess` makes of such images, and what the loader does."""
    rng = np.random.default_rng(sum(map(sum, sizes)))
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    metas = [ImageMeta(i, "", size, size) for i, size in enumerate(sizes)]
    samples = [
        apply(eval_ops(input), (torch.from_numpy(p.transpose(2, 0, 1).copy()), Target.of([], []), meta), rng)
        for p, meta in zip(images, metas, strict=True)
    ]
    batch = collate(samples, input)
    ours = stack([prepare(p, meta, input) for p, meta in zip(images, metas, strict=True)], input)
    assert ours.images.dtype == np.float32
    assert np.array_equal(ours.images, batch.images.numpy())
    assert np.array_equal(ours.sizes, batch.sizes.numpy())
    for one, other in zip(ours.metas, batch.metas, strict=True):
        assert (one.size, one.input_size) == (other.size, other.input_size)
        assert np.array_equal(one.affine, other.affine)


@pytest.mark.parametrize("input", INPUTS, ids=lambda i: f"{i.resize}-{i.size[0]}x{i.size[1]}-{kind(i)}-{i.std[0]}")
def test_every_preset_sees_what_it_was_trained_on(input: InputConfig) -> None:
    compare(SIZES[:2], input)
    compare(SIZES[3:4], input)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["stretch", "pad", "shorter"])
@pytest.mark.parametrize("filter", [(False, "bilinear"), (True, "bilinear"), (False, "cv2"), (False, "cv2_float")])
def test_odd_sizes(size: tuple[int, int], resize: str, filter: tuple[bool, str]) -> None:
    compare([size], InputConfig((64, 80), resize, *filter))  # type: ignore[arg-type]
    compare([size, (37, 45)], InputConfig((64, 80), resize, *filter))  # type: ignore[arg-type]
    compare([size, size], InputConfig(size, resize, *filter))  # type: ignore[arg-type]


def test_sides_may_be_cut_to_whole_pixels() -> None:
    pixels, meta = np.zeros((*SIZES[1], 3), np.uint8), ImageMeta(0, "", SIZES[1], SIZES[1])
    inputs = [InputConfig((80, 200), "shorter", rounding=r) for r in ("nearest", "down", "longer_down")]
    sizes = [prepare(pixels, meta, input).image.shape[:2] for input in inputs]
    assert sizes == [(176, 80), (175, 80), (175, 80)]
    for rounding in ("down", "longer_down"):
        compare(SIZES, InputConfig((80, 133), "shorter", rounding=rounding))


def test_opencv_rounds_to_bytes_and_never_antialiases() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (61, 83, 3), np.uint8)
    for size in [(61, 83), (90, 70), (20, 31), (122, 166)]:
        plain, cv2 = (
            prepare(
                pixels, ImageMeta(0, "", (61, 83), (61, 83)), InputConfig(size, "stretch", False, how, std=(1, 1, 1))
            )
            for how in ("bilinear", "cv2")
        )
        mean = np.asarray(InputConfig().mean, np.float32)
        assert np.abs((cv2.image + mean) - np.rint(cv2.image + mean)).max() < 1e-4
        assert np.abs(cv2.image - plain.image).max() < 1.01
        assert np.array_equal(cv2.meta.affine, plain.meta.affine)
    with pytest.raises(MaskkitError, match="set one of them"):
        InputConfig(antialias=True, interpolation="cv2")
