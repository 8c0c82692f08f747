"""Deformable attention: two ways to sample that are one function, and what it does at the border."""

import pytest
import torch
from torch import Tensor

from maskkit.nn.deform_attn import DeformableAttention, portions, sample_by_grid, sample_by_rows

SIZES = [(3, 5), (6, 4), (9, 11)]


def inputs(queries: int = 50, far: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Values, places that also lie outside and exactly on centres and borders, and weights, in double precision."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in SIZES)
    values = torch.randn(2, cells, 4, 8, generator=generator, dtype=torch.float64)
    extent = torch.tensor([(w, h) for h, w in SIZES], dtype=torch.float64)[:, None]
    places = torch.rand(2, queries, 4, 3, 6, 2, generator=generator, dtype=torch.float64) * (extent + 2 * far) - far
    places[:, 0], places[:, 1] = extent - 0.5, extent
    places[:, 2], places[:, 3], places[:, 4] = 0.5, 0.0, -0.5
    places[:, 5] = extent + 0.5
    return values, places.movedim(-1, 0), torch.rand(2, queries, 4, 3, 6, generator=generator, dtype=torch.float64)


def test_rows_give_what_the_grid_gives_and_its_gradients() -> None:
    found = []
    for sample in (sample_by_rows, sample_by_grid):
        leaves = inputs()
        for leaf in leaves:
            leaf.requires_grad_()
        seen = sample(*leaves, SIZES)
        seeds = torch.linspace(-1, 1, seen.numel(), dtype=torch.float64).view_as(seen)
        gradients = torch.autograd.grad((seen * seeds).sum(), leaves)
        inside = torch.ones(seen.shape[1], dtype=torch.bool)
        inside[:6] = False  # at a kink there are two slopes
        found.append([seen, gradients[0], gradients[1][:, :, inside], gradients[2]])
    for rows, grid in zip(*found, strict=True):
        assert torch.allclose(rows, grid, atol=1e-10)


def test_inference_in_pieces_gives_what_training_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = DeformableAttention(16, heads=2, levels=3, points=4)
    torch.nn.init.normal_(attention.offsets.weight, std=0.3)
    generator = torch.Generator().manual_seed(1)
    cells = torch.randn(2, sum(h * w for h, w in SIZES), 16, generator=generator)
    reference = torch.rand(cells.shape[1], 1, 2, generator=generator)
    whole = attention(cells, reference, cells, SIZES)
    monkeypatch.setattr("maskkit.nn.deform_attn._AT_A_TIME", 7)
    with torch.no_grad():
        assert len(portions(cells)) > 1
        assert torch.allclose(attention(cells, reference, cells, SIZES), whole, atol=1e-6)


def test_the_centre_of_a_cell_is_its_value_and_beyond_the_map_is_nothing() -> None:
    values = torch.arange(1.0, 7.0).view(1, 6, 1, 1)  # a map of two rows of three
    places = torch.tensor([[0.5, 0.5], [2.5, 1.5], [1.5, 0.0], [3.5, 1.0], [-0.5, 0.5], [1.0, -2.0], [9.0, 9.0]])
    weights = torch.ones(1, len(places), 1, 1, 1)
    for sample in (sample_by_rows, sample_by_grid):
        seen = sample(values, places.T.view(2, 1, -1, 1, 1, 1), weights, [(2, 3)])
        assert seen.flatten().tolist() == [1, 6, 1, 0, 0, 0, 0]


def test_the_first_offsets_of_a_head_lie_on_a_ray() -> None:
    attention = DeformableAttention(32, heads=8, levels=3, points=4)
    offsets = attention.offsets.bias.detach().view(8, 3, 4, 2)
    assert torch.allclose(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 2], torch.tensor([[1.0, 1], [2, 2], [3, 3], [4, 4]]), atol=1e-6)


def test_images_of_a_batch_do_not_see_one_another() -> None:
    attention = DeformableAttention(16, heads=2, levels=3, points=4)
    torch.nn.init.normal_(attention.offsets.weight, std=0.3)
    generator = torch.Generator().manual_seed(1)
    cells = torch.randn(3, sum(h * w for h, w in SIZES), 16, generator=generator)
    reference = torch.rand(cells.shape[1], 1, 2, generator=generator)
    together = attention(cells, reference, cells, SIZES)
    for i in range(3):
        alone = attention(cells[i : i + 1], reference, cells[i : i + 1], SIZES)
        assert torch.allclose(together[i], alone[0], atol=1e-5)
