"""Shared losses: masks from boxes against plain transcriptions, colours against the published values."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.utils import convert_to_fp32
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkit.config import BoxOnly
from maskkit.nn.losses import (
    ImageColours,
    box_cells,
    dice_loss,
    disagreement,
    in_fp32,
    lab_of_rgb,
    mask_loss_from_boxes,
    mean_lab,
    neighbours,
    normaliser,
    pairwise_loss,
    similarity,
    visible_cells,
)
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, full_sizes


def batch(pixels: torch.Tensor, sizes: torch.Tensor | None = None, progress: float = 1.0, height: int = 0) -> Batch:
    size = (pixels.shape[2], pixels.shape[3])
    sizes = full_sizes(pixels) if sizes is None else sizes
    metas = [ImageMeta(i, "", (height or size[0], size[1]), size) for i in range(len(pixels))]
    made = Batch((pixels - 100) / 50, sizes, [], metas, (100.0, 100.0, 100.0), (50.0, 50.0, 50.0), progress)
    made.images *= made.valid[:, None]
    return made


def filled(logit: float, box: tuple[int, int, int, int], size: int = 12) -> torch.Tensor:
    """Logits of a mask that is the box (in cells) and nothing else."""
    z = torch.full((1, size, size), -logit)
    z[:, box[1] : box[3], box[0] : box[2]] = logit
    return z


def test_dice_is_zero_for_equal_masks_and_one_for_disjoint_ones() -> None:
    a = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert dice_loss(a, a, 1e-5).item() == pytest.approx(0, abs=1e-5)
    assert dice_loss(a, 1 - a, 1e-5).item() == pytest.approx(1)
    assert dice_loss(torch.zeros(0, 4), torch.zeros(0, 4), 1e-5).shape == (0,)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)
def test_colours_have_their_published_values(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = lab_of_rgb(torch.tensor(rgb, dtype=torch.float32)[:, None, None]).flatten()
    assert found.tolist() == pytest.approx(lab, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(0, 1), (1, -1), (1, 0), (1, 1)]), st.integers(1, 3))
def test_neighbours_are_all_pairs_at_the_offset(h: int, w: int, offset: tuple[int, int], dilation: int) -> None:
    cells = torch.arange(h * w).reshape(h, w)
    near, far = neighbours(cells, offset, dilation)
    dy, dx = offset[0] * dilation, offset[1] * dilation
    wanted = {
        (y * w + x, (y + dy) * w + x + dx) for y in range(h) for x in range(w) if 0 <= y + dy < h and 0 <= x + dx < w
    }
    assert set(zip(near.flatten().tolist(), far.flatten().tolist(), strict=True)) == wanted


def test_disagreement_is_the_formula_and_stays_finite() -> None:
    a, b = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    p, q = a.sigmoid(), b.sigmoid()
    assert torch.allclose(disagreement(a, b), -(p * q + (1 - p) * (1 - q)).log())
    extreme = torch.tensor([50.0, -50.0])
    assert torch.isfinite(disagreement(extreme, -extreme)).all()
    assert disagreement(extreme, extreme).abs().max() < 1e-6


def test_pairwise_against_a_loop_over_cells_and_eight_neighbours() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor([[32, 40], [20, 30]])
    pixels = (
        torch.rand(2, 3, 8, 10, generator=generator).mul(20).add(90).repeat_interleave(4, 2).repeat_interleave(4, 3)
    )
    data, config, image = batch(pixels, sizes), BoxOnly(threshold=0.01, skip_bottom=4), torch.tensor([0, 1, 1])
    logits = torch.randn(3, 8, 10, generator=generator)
    inside = box_cells(torch.tensor([[2.0, 3, 30, 25], [0, 0, 39, 31], [8, 8, 12, 12]]), (32, 40), (8, 10))
    colours = ImageColours.of(data, config.skip_bottom)
    lab, seen = mean_lab(colours, (8, 10)), visible_cells(colours, (8, 10))
    p, total, count = logits.sigmoid(), 0.0, 0
    for n, b in enumerate(image.tolist()):
        for y in range(8):
            for x in range(10):
                for v, u in ((y + 2 * i, x + 2 * j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j):
                    if not (0 <= v < 8 and 0 <= u < 10 and inside[n, y, x] and seen[b, v, u]):
                        continue
                    if math.exp(-0.5 * float((lab[b, :, y, x] - lab[b, :, v, u]).norm())) < 0.01:
                        continue
                    same = p[n, y, x] * p[n, v, u] + (1 - p[n, y, x]) * (1 - p[n, v, u])
                    total, count = total - math.log(same), count + 1
    assert count > 100
    assert pairwise_loss(logits, inside, image, colours, config).item() == pytest.approx(total / count, rel=1e-4)


def test_a_mask_that_fills_its_box_has_no_projection_loss() -> None:
    data, image = batch(torch.full((1, 3, 48, 48), 90.0)), torch.zeros(1, dtype=torch.int64)
    boxes = torch.tensor([[8.0, 12, 31, 35]])  # cells 2 to 7 and 3 to 8
    full = mask_loss_from_boxes(filled(20.0, (2, 3, 8, 9)), boxes, image, data, BoxOnly())
    assert full.projection.item() == pytest.approx(0, abs=1e-4)
    cross = torch.full((1, 12, 12), -20.0)
    cross[:, 3:9, 4], cross[:, 5, 2:8] = 20, 20
    assert mask_loss_from_boxes(cross, boxes, image, data, BoxOnly()).projection.item() == pytest.approx(0, abs=1e-4)
    small = mask_loss_from_boxes(filled(20.0, (3, 4, 6, 7)), boxes, image, data, BoxOnly())
    assert small.projection.item() > 0.3


def test_colour_borders_pull_the_mask_into_place() -> None:
    """Gradient descent on the two terms finds a disc of which only the box is known."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = (y - 48) ** 2 + (x - 48) ** 2 < 32**2
    pixels = torch.where(disc, 200.0, 60.0).expand(1, 3, 96, 96)
    data, boxes = batch(pixels), torch.tensor([[16.0, 16, 80, 80]])
    logits = torch.zeros(1, 24, 24, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for step in range(150):
        data.progress = step / 150
        terms = mask_loss_from_boxes(logits, boxes, torch.zeros(1, dtype=torch.int64), data, BoxOnly())
        optimizer.zero_grad()
        (terms.projection.sum() + terms.pairwise).backward()
        optimizer.step()
    found, truth = logits[0] > 0, disc[2::4, 2::4]
    assert ((found & truth).sum() / (found | truth).sum()).item() > 0.8


def test_warm_up_and_switches() -> None:
    torch.manual_seed(0)
    logits, boxes, image = (
        torch.randn(1, 12, 12),
        torch.tensor([[8.0, 12, 31, 35]]),
        torch.zeros(1, dtype=torch.int64),
    )
    pixels = torch.full((1, 3, 48, 48), 90.0)

    def pairwise(progress: float, **change: float) -> float:
        data = batch(pixels, progress=progress)
        return mask_loss_from_boxes(logits, boxes, image, data, BoxOnly(warmup=0.2, **change)).pairwise.item()  # type: ignore[arg-type]

    assert pairwise(0.1) == pytest.approx(pairwise(1) / 2)
    assert pairwise(0.2) == pairwise(0.9) == pairwise(1)
    assert pairwise(1, pairwise=0.0) == 0


def test_no_object_keeps_the_graph() -> None:
    logits = torch.zeros(0, 12, 12, requires_grad=True)
    data = batch(torch.zeros(1, 3, 48, 48))
    terms = mask_loss_from_boxes(logits, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), data, BoxOnly())
    (terms.projection.sum() + terms.pairwise).backward()
    assert logits.grad is not None


def test_bottom_rows_and_padding_are_not_visible() -> None:
    data = batch(torch.zeros(1, 3, 48, 48), torch.tensor([[40, 44]]), height=20)
    seen = visible_cells(ImageColours.of(data, 4), (12, 12))  # 4 of 20 rows are 8 of 40
    assert seen[0, :8, :11].all()
    assert not seen[0, 8:].any()
    assert not seen[0, :, 11].any()


def test_similarity_of_equal_colours_is_one() -> None:
    assert (similarity(torch.ones(3, 5, 5), (1, 1), 2) == 1).all()


def test_a_normaliser_is_the_count_and_one_at_least() -> None:
    assert normaliser(3) == 3
    assert normaliser(0) == 1
    assert normaliser(0, 0) == 0
    assert normaliser(torch.tensor(0.0), 1e-6) == pytest.approx(1e-6)
    assert normaliser(torch.tensor(5)) == 5


@pytest.mark.parametrize(("mine", "other"), [(3, 1), (0, 5), (0, 0)])
def test_the_mean_over_processes_is_the_sum_over_the_whole_count(
    monkeypatch: pytest.MonkeyPatch, mine: int, other: int
) -> None:
    """Sums of 2 and 7 over two processes with so many objects: together 9 over all their objects."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    losses = []
    for total, count, elsewhere in ((2.0, mine, other), (7.0, other, mine)):
        monkeypatch.setattr("torch.distributed.all_reduce", lambda t, elsewhere=elsewhere: t.add_(elsewhere))
        losses.append(total / normaliser(count))
    assert sum(losses) / 2 == pytest.approx(9 / max(mine + other, 1))


class Inner(NamedTuple):
    logits: Any
    labels: Any


class Outer(NamedTuple):
    first: Any
    later: Any


@pytest.mark.parametrize("convert", [in_fp32, convert_to_fp32])
def test_raws_within_raws_keep_their_types_in_fp32(convert: Any) -> None:
    """Converted by the losses, and by accelerate, which wraps `forward` in a training with bf16."""
    inner = Inner(torch.ones(2, dtype=torch.bfloat16), torch.tensor([1, 2]))
    found = convert(Outer(inner, (inner, inner)))
    assert type(found) is Outer
    assert all(type(part) is Inner for part in (found.first, *found.later))
    assert found.first.logits.dtype == found.later[1].logits.dtype == torch.float32
    assert found.first.labels.dtype == torch.int64
    assert convert(Outer(inner, ())).later == ()
