"""PSENet: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.export.graph import trace
from maskkit.models.psenet import Psenet, hard_pixels, kernel_losses, perimeter, shrink
from maskkit.targets import Batch, Target, full_sizes
from tests.models.conformance import Conformance


class TestPsenet(Conformance):
    preset = "psenet-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {"width": 32}


def rotated(size: int, width: float, height: float, angle: float, inwards: float = 0) -> np.ndarray:
    """A rectangle in the middle of a square image, its sides moved inwards."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (np.abs(u) < width / 2 - inwards) & (np.abs(v) < height / 2 - inwards)


@pytest.mark.parametrize("angle", [0, 0.3, np.pi / 4, 1.2])
def test_a_shrunken_mask_is_the_shrunken_polygon(angle: float) -> None:
    ratios = np.linspace(1, 0.4, 7)
    whole = rotated(200, 121, 41, angle)
    for ratio, ours in zip(ratios, shrink(whole, ratios, 20), strict=True):
        offset = 121 * 41 * (1 - ratio**2) / (2 * (121 + 41))
        # the estimate of the perimeter may be 6 % off, a pixel is cut or kept as a whole
        least, most = (rotated(200, 121, 41, angle, offset * f + e) for f, e in ((1.07, 1), (0.93, -1)))
        assert not (least & ~ours).any(), ratio
        assert not (ours & ~most).any(), ratio


def test_shrinking_stops_at_its_limit_and_never_ends_in_nothing() -> None:
    large = np.ones((300, 300), bool)
    assert shrink(large, np.array([0.1]), 20)[0].sum() == 260 * 260
    dot = np.ones((1, 3), bool)
    assert shrink(dot, np.array([1, 0.4]), 20).all()


def test_perimeter_of_discs_and_squares() -> None:
    y, x = np.mgrid[-60:61, -60:61]
    assert perimeter(np.hypot(x, y) < 50.5) == pytest.approx(2 * np.pi * 50.5, rel=0.01)
    assert perimeter(np.maximum(np.abs(x), np.abs(y)) <= 50) == pytest.approx(4 * 101, rel=0.06)


def test_hard_pixels_are_the_objects_and_three_times_as_many_others() -> None:
    logits = torch.arange(100.0).reshape(10, 10)
    truth, known = torch.zeros(10, 10, dtype=torch.bool), torch.ones(10, 10, dtype=torch.bool)
    truth[0, :4] = True
    known[0, 0] = False
    chosen = hard_pixels(logits, truth, known, 3)
    assert chosen.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [9, 1], *[[9, i] for i in range(2, 10)]]
    assert torch.equal(hard_pixels(logits, torch.zeros_like(truth), known, 3), known)


def test_kernels_are_judged_inside_the_objects_alone() -> None:
    kernels = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    kernels[0, 0, 2:6, 2:6] = True
    kernels[0, 1, 3:5, 3:5] = True
    logits = torch.where(kernels, 20.0, -20.0)
    known = torch.ones(1, 8, 8, dtype=torch.bool)
    perfect = kernel_losses(logits, kernels, known, 3)
    assert all(term.item() == pytest.approx(0, abs=1e-3) for term in perfect)
    logits[0, 1, 0, 0] = 20  # a kernel where no object is does no harm: the complete map removes it
    assert kernel_losses(logits, kernels, known, 3)[1].item() == perfect[1].item()
    logits[0, 1, 2, 2] = 20
    assert kernel_losses(logits, kernels, known, 3)[1].item() == pytest.approx(1 - 2 * 4 / 9, abs=1e-3)


def test_one_class_needs_no_class_map() -> None:
    net = Psenet(change(zoo.preset("psenet-mobilenetv2-256").model, num_classes=1, width=16)).eval()  # type: ignore[arg-type]
    images = torch.zeros(1, 3, 64, 96)
    raw = net(images)
    assert raw.classes.shape == (1, 0, 16, 24)
    batch = Batch(images, full_sizes(images), [Target.of([], [])], [])
    assert "classification" not in net.loss_terms(raw, batch)
    chosen = trace(net, images).program.module()(images)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(chosen.values(), net.select(raw), strict=True))
