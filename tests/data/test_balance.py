"""Repeat factors, and orders of images that are functions of seed and epoch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskkit.config import AugmentConfig, InputConfig, ModelConfig, RunConfig, TrainConfig
from maskkit.data import shapes
from maskkit.data.balance import RepeatedImages, classes_of, repeat_factors, repeated
from maskkit.data.loader import train_loader

DATASET = shapes.shapes_dataset(10, size=(48, 64), objects=(1, 1))
CONFIG = RunConfig(
    "none", ModelConfig(), InputConfig((32, 32)), AugmentConfig(), TrainConfig(batch=4, workers=0, seed=3, repeat=0.9)
)


def test_factors_are_those_of_the_paper() -> None:
    classes = [{0}] * 8 + [{0, 1}, set()]
    factors = repeat_factors(classes, 0.4)
    assert factors[:8].tolist() == [1] * 8, "class 0 is in more than four tenths"
    assert factors[8] == pytest.approx(math.sqrt(0.4 / 0.1))
    assert factors[9] == 1, "an image without objects"
    assert repeat_factors(classes, 0.05).tolist() == [1] * 10


@given(st.lists(st.floats(1, 20), min_size=1, max_size=30), st.integers(0, 5))
def test_every_image_has_its_factor_rounded_down_or_up(factors: list[float], seed: int) -> None:
    images = RepeatedImages(np.array(factors), seed)
    assert len(images) == math.ceil(sum(factors) - 1e-6)
    scale = len(images) / sum(factors)
    for epoch in range(3):
        order = images.order(epoch)
        assert order.shape == (len(images), 2)
        times = np.bincount(order[:, 0], minlength=len(factors))
        assert all(
            math.floor(f * scale - 1e-6) <= n <= math.ceil(f * scale + 1e-6)
            for f, n in zip(factors, times, strict=True)
        )
        assert {(i, k) for i, n in enumerate(times) for k in range(n)} == set(map(tuple, order.tolist()))


def test_the_mean_over_epochs_is_the_factor_and_an_order_depends_on_nothing_else() -> None:
    factors = np.array([1.0, 1.0, 2.3, 1.5, 1.2])
    images = RepeatedImages(factors, 7)
    orders = [images.order(epoch) for epoch in range(2000)]
    mean = np.mean([np.bincount(order[:, 0], minlength=5) for order in orders], axis=0)
    assert np.allclose(mean, factors, atol=0.05)
    other = RepeatedImages(factors, 7)
    assert all(np.array_equal(other.order(epoch), orders[epoch]) for epoch in (5, 0, 1999))
    assert not np.array_equal(RepeatedImages(factors, 8).order(0), orders[0])


def test_the_loader_repeats_images_and_changes_each_repetition() -> None:
    images, line = repeated(DATASET, 0.9, 3)
    assert len(images) > len(DATASET)
    assert f"an epoch has {len(images)} places for 10 images" in line
    said: list[str] = []
    found = list(train_loader(DATASET, CONFIG, 0, 8, note=said.append))
    assert said == [line]
    seen = [(m.image_id, image) for b in found for m, image in zip(b.metas, b.images, strict=True)]
    expected = [DATASET.records[i].image_id for epoch in range(2) for i, _ in images.order(epoch).tolist()]
    assert [number for number, _ in seen] == expected[:32]
    rare = max(range(10), key=lambda i: repeat_factors(classes_of(DATASET), 0.9)[i])
    first, second = [image for number, image in seen if number == DATASET.records[rare].image_id][:2]
    assert not torch.equal(first, second)
    for a, b in zip(train_loader(DATASET, replace(CONFIG), 5, 8), found[5:], strict=True):
        assert torch.equal(a.images, b.images), "a resumed run sees the same batches"
