"""Test-time augmentation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit.config import InputConfig, Tta
from maskkit.infer.tta import probabilities, window_corners


class Pixelwise:
    """Scores of a pixel by its own colour: every view of it says the same."""

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


def test_tta_says_whether_it_changes_anything() -> None:
    assert Tta().plain
    assert not Tta(flip=True).plain
