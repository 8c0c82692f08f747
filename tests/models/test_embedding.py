"""Pixel embeddings: the shared conformance, and the discriminative loss against its formula."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.export.graph import trace
from maskkit.models.embedding import Embedding, discriminative_loss
from maskkit.targets import Batch, Target, full_sizes
from tests.models.conformance import Conformance


class TestEmbedding(Conformance):
    preset = "embedding-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {"width": 32}


class TestPlainEmbedding(Conformance):
    """The paper's own, without the place of the pixels."""

    variant = True
    preset = "embedding-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {"width": 32, "unit": 0.0}


def formula(embeddings: np.ndarray, owners: np.ndarray, delta_v: float, delta_d: float) -> tuple[float, float, float]:
    """Equations 1 to 3 of the paper, term by term."""
    clusters = [embeddings[:, owners == c].T for c in np.unique(owners) if c >= 0]
    means = [x.mean(0) for x in clusters]
    count = len(clusters)
    var: float = sum(
        sum(max(float(np.linalg.norm(mean - x)) - delta_v, 0) ** 2 for x in cluster) / len(cluster)
        for cluster, mean in zip(clusters, means, strict=True)
    )
    dist: float = sum(
        max(2 * delta_d - float(np.linalg.norm(means[a] - means[b])), 0) ** 2
        for a in range(count)
        for b in range(count)
        if a != b
    )
    reg: float = sum(float(np.linalg.norm(mean)) for mean in means)
    return var / count, dist / (count * (count - 1)) if count > 1 else 0.0, reg / count


@pytest.mark.parametrize(("seed", "objects"), [(0, 1), (1, 2), (2, 7)])
def test_loss_is_the_papers_formula(seed: int, objects: int) -> None:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(0, 1.5, (3, 12, 9))
    owners = rng.integers(-2, objects, (12, 9))
    ours = discriminative_loss(torch.from_numpy(embeddings), torch.from_numpy(owners), 0.5, 1.5)
    assert [t.item() for t in ours] == pytest.approx(formula(embeddings, owners, 0.5, 1.5), rel=1e-6, abs=1e-6)


def gradients(points: list[list[float]], owners: list[int]) -> list[torch.Tensor]:
    """Gradient of pull, push and norm at each point, (d, n) each."""
    embeddings = torch.tensor(points, dtype=torch.float64).T[:, None]  # (d, 1, n)
    found = []
    for term in range(3):
        leaf = embeddings.clone().requires_grad_()
        discriminative_loss(leaf, torch.tensor([owners]), 0.5, 1.5)[term].backward()
        assert leaf.grad is not None
        found.append(leaf.grad[:, 0])
    return found


def test_pixels_are_pulled_to_their_mean_and_only_from_outside_the_margin() -> None:
    pull, _, _ = gradients([[-1, 0], [1, 0], [0, 0.4], [0, -0.4]], [0, 0, 0, 0])
    downhill = -pull
    assert downhill[0, 0] > 0 > downhill[0, 1]
    assert torch.allclose(downhill[1], torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(downhill[:, 2:], torch.zeros(2, 2, dtype=torch.float64))


def test_means_are_pushed_apart_until_they_are_far_enough() -> None:
    _, push, _ = gradients([[0, 0], [2, 0], [2, 9]], [0, 1, 2])
    downhill = -push
    assert downhill[0, 0] < 0 < downhill[0, 1]
    assert torch.allclose(downhill[1], torch.zeros(3, dtype=torch.float64))
    assert not downhill[:, 2].any()


def test_means_are_drawn_to_the_origin_and_others_are_left_alone() -> None:
    for gradient in gradients([[3, 4], [7, 7]], [0, -1])[:2]:
        assert not gradient.any()
    _, _, norm = gradients([[3, 4], [7, 7]], [0, -1])
    assert torch.allclose(norm[:, 0], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert not norm[:, 1].any()


def test_one_class_needs_no_class_map() -> None:
    net = Embedding(change(zoo.preset("embedding-mobilenetv2-256").model, num_classes=1, width=16)).eval()  # type: ignore[arg-type]
    images = torch.zeros(1, 3, 64, 96)
    raw = net(images)
    assert raw.classes.shape == (1, 0, 16, 24)
    batch = Batch(images, full_sizes(images), [Target.of([], [])], [])
    assert "classification" not in net.loss_terms(raw, batch)
    chosen = trace(net, images).program.module()(images)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(chosen.values(), net.select(raw), strict=True))
