"""One preprocessing with and without torch: the same bits."""

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import InputConfig
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops
from maskkit.infer.preprocess import prepare, stack
from maskkit.prediction import ImageMeta
from maskkit.targets import Target

INPUTS = sorted({p.input for p in zoo.presets()}, key=repr)
SIZES = [(31, 57), (90, 41), (64, 64), (1, 7), (200, 333)]


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


@pytest.mark.parametrize("input", INPUTS, ids=lambda i: f"{i.resize}-{i.size[0]}x{i.size[1]}-{i.antialias}-{i.std[0]}")
def test_every_preset_sees_what_it_was_trained_on(input: InputConfig) -> None:
    compare(SIZES[:2], input)
    compare(SIZES[3:4], input)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["stretch", "pad", "shorter"])
@pytest.mark.parametrize("antialias", [False, True])
def test_odd_sizes(size: tuple[int, int], resize: str, antialias: bool) -> None:
    compare([size], InputConfig((64, 80), resize, antialias))  # type: ignore[arg-type]
    compare([size, (37, 45)], InputConfig((64, 80), resize, antialias))  # type: ignore[arg-type]
    compare([size, size], InputConfig(size, resize, antialias))  # type: ignore[arg-type]
