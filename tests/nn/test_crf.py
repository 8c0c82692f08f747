"""The fully connected CRF against a brute-force one that sees every pair of pixels."""

import pytest
import torch

from maskkit.data.shapes import draw
from maskkit.nn.crf import CrfConfig, Lattice, features_of, mean_field


def brute_force(probabilities: torch.Tensor, image: torch.Tensor, config: CrfConfig) -> torch.Tensor:
    """Mean field with exact Gaussians over all pairs of pixels."""
    unary = probabilities.flatten(1).clamp(min=1e-5).log().double()
    kernels = []
    given = (
        (config.smoothness, features_of(image, config.smoothness_pixels)),
        (config.appearance, features_of(image, config.appearance_pixels, config.appearance_colour)),
    )
    for weight, features in given:
        kernel = torch.exp(-0.5 * torch.cdist(features.double(), features.double()) ** 2)
        norm = kernel.sum(1).rsqrt()
        kernels.append(weight * norm[:, None] * kernel * norm)
    q = unary.softmax(0)
    for _ in range(config.iterations):
        q = (unary + sum(q @ k for k in kernels)).softmax(0)
    return q.reshape(probabilities.shape)


def case(size: tuple[int, int] = (40, 48)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A drawn image, its label map, and noisy probabilities of it."""
    image, target = draw(3, size, (2, 3))
    assert target.masks is not None
    truth = target.masks.dense().any(0).long()
    noise = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    logits = noise + 1.2 * torch.nn.functional.one_hot(truth, 2).permute(2, 0, 1)
    return image.float(), truth, logits.softmax(0)


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_lattice_is_near_the_gaussian(spread: float) -> None:
    image, _, probabilities = case()
    for features in (features_of(image, spread), features_of(image, 4 * spread, 20.0)):
        values = probabilities.flatten(1)
        kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
        exact = values @ kernel / kernel.sum(0)
        lattice = Lattice(features)
        ours = lattice.filter(values) / lattice.filter(torch.ones(1, values.shape[1]))
        assert (ours - exact).abs().mean() < 0.03
        assert torch.corrcoef(torch.stack([ours[0], exact[0]]))[0, 1] > 0.9


@pytest.mark.parametrize("iterations", [1, 5])
def test_mean_field_agrees_with_brute_force(iterations: int) -> None:
    image, _, probabilities = case()
    config = CrfConfig(iterations, smoothness_pixels=2.0, appearance_pixels=15.0, appearance_colour=15.0)
    ours, exact = mean_field(probabilities, image, config), brute_force(probabilities, image, config)
    assert (ours.argmax(0) == exact.argmax(0)).float().mean() > 0.97
    assert (ours - exact).abs().mean() < 0.03
    assert torch.allclose(ours.sum(0), torch.ones(image.shape[1:]), atol=1e-5)


def test_contours_get_sharper() -> None:
    image, truth, probabilities = case()
    sharpened = mean_field(probabilities, image, CrfConfig(5, appearance_pixels=10.0, appearance_colour=12.0))
    before, after = ((q.argmax(0) == truth).float().mean() for q in (probabilities, sharpened))
    assert after > before + 0.05


def test_without_kernels_nothing_changes() -> None:
    image, _, probabilities = case()
    assert torch.allclose(
        mean_field(probabilities, image, CrfConfig(smoothness=0, appearance=0)), probabilities, atol=1e-4
    )
