"""Test-time augmentation: scales, mirror images, windows, and the runtime that wraps them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit.api import Segmenter, create_model
from maskkit.config import InputConfig, Tta
from maskkit.errors import MaskkitError
from maskkit.infer.tta import probabilities, window_corners
from maskkit.prediction import Categories
from tests.small import small_config, small_model


class Pixelwise:
    """Scores of a pixel by its own colour: every augmented image says the same of it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[2:]))
        return images * torch.tensor([1.0, -2.0, 0.5])[:, None, None]


def look(images: Tensor, **tta: object) -> tuple[Tensor, Pixelwise]:
    net = Pixelwise()
    return probabilities(net, images, Tta(**tta), InputConfig()), net  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [(7, 9), (20, 30), (64, 8)])
def test_windows_and_mirrors_change_nothing_for_a_pixelwise_net(window: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 20, 30)
    found, net = look(images, window=window, flip=True)
    assert torch.allclose(found, net(images).softmax(1), atol=1e-6)
    assert set(net.seen[:-1]) == {window}


def test_logits_are_averaged_over_windows_that_are_cut_to_the_image() -> None:
    images = torch.randn(1, 3, 20, 30)
    found, net = look(images, window=(25, 20), flip=True, average="logits")
    assert torch.allclose(found, net(images), atol=1e-5)
    assert set(net.seen[:-1]) == {(20, 20)}


def test_a_third_of_overlap_is_a_third() -> None:
    """129 * (1 - 1/3) is more than 86 in floats, but the next window begins there."""
    assert [x for _, x in window_corners((129, 215), (129, 129), 1 / 3)] == [0, 86]


def test_scales_are_multiples_of_the_base() -> None:
    found, net = look(torch.randn(1, 3, 20, 30), scales=(0.5, 2.0), base=60)
    assert net.seen == [(20, 30), (80, 120)]
    assert found.shape == (1, 3, 20, 30)
    assert torch.allclose(found.sum(1), torch.ones(1, 20, 30), atol=1e-5)


def test_a_smooth_image_looks_alike_at_every_scale() -> None:
    smooth = F.interpolate(torch.randn(1, 3, 3, 3), size=(48, 48), mode="bilinear", align_corners=True)
    one, three = look(smooth)[0], look(smooth, scales=(0.5, 1.0, 1.5))[0]
    assert (one - three).abs().max() < 0.05


def test_windows_cover_everything_and_overlap_enough() -> None:
    for size in ((20, 30), (7, 9), (100, 41)):
        covered = torch.zeros(size)
        for y, x in window_corners(size, (7, 9), 1 / 3):
            assert 0 <= y <= size[0] - 7
            assert 0 <= x <= size[1] - 9
            covered[y : y + 7, x : x + 9] += 1
        assert covered.min() >= 1


def test_the_settings_say_whether_they_change_anything() -> None:
    assert Tta().plain
    assert not Tta(flip=True).plain


def test_a_segmenter_averages_images_and_data_sets_alike() -> None:
    torch.manual_seed(0)
    model = create_model("fcn8s-mobilenetv2-256", 3).eval()
    for bias in (p for n, p in model.named_parameters() if n.startswith("score") and n.endswith("bias")):
        torch.nn.init.normal_(bias)
    plain = Segmenter.of(model, InputConfig((64, 64)), Categories.of("abc"), device="cpu")
    mirrored = plain.with_tta(Tta(flip=True))
    assert plain.with_tta(Tta()) is plain
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    images = np.random.default_rng(1).normal(size=(1, 3, 64, 64)).astype(np.float32)
    sizes = np.array([[64, 64]])
    logits = plain.runtime.run(images, sizes)["logits"]
    assert mirrored.runtime.run(images, sizes)["logits"].shape[:2] == logits.shape[:2]
    one, other = (mirrored.predict(p).semantic for p in (pixels, pixels[:, ::-1]))
    assert one is not None
    assert other is not None
    assert (one == other[:, ::-1]).mean() > 0.99, "the mirror image has the mirrored label map"
    assert (one != plain.predict(pixels).semantic).any(), "and it is another one than without"


def test_only_class_probabilities_are_averaged() -> None:
    segmenter = Segmenter.of(small_model(), small_config().input, Categories.of("ab"), device="cpu")
    with pytest.raises(MaskkitError, match="semantic models"):
        segmenter.with_tta(replace(Tta(), flip=True))
