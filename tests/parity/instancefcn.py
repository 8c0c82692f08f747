"""InstanceFCN against a loop written from the paper. Every stored tensor of a case is compared."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit.models.instancefcn import (
    STRIDE,
    assemble,
    in_a_row,
    part_edges,
    part_of,
    window_boxes,
    window_losses,
    window_places,
)
from tests.parity.goldens import Case


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    k, m, (height, width) = (case.config[name] for name in ("k", "m", "feature"))
    maps, objectness = (
        torch.from_numpy(case.recipe.seeded_array(name, shape, case.seed))
        for name, shape in (("instance_maps", (k * k, height, width)), ("objectness", (height, width)))
    )
    bottom, right = height - m, width - m
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2), (3, 2), (5, 7)]
    slack = case.manifest["tolerance"]["atol"]

    def cut(corners: list[tuple[int, int]], part: Tensor) -> Tensor:
        places = torch.tensor([[y * width + x, height * width, width] for y, x in corners])
        return assemble(maps.flatten()[None], torch.zeros(len(corners), dtype=torch.int64), places, part)

    for rounding in ("floor", "round"):
        case.compare(f"edges_{rounding}", torch.tensor(part_edges(m, k, rounding)), 0)
        case.compare(f"windows_{rounding}", cut(corners, part_of(m, k, rounding)), 0, slack)

    # the windows of the model that lie in the map as a whole, by the way that the model goes
    boxes = window_boxes([(height, width)], (height * STRIDE, width * STRIDE), m)
    limit = torch.tensor([width, height]) * STRIDE
    whole = torch.nonzero(((boxes[:, :2] >= 0) & (boxes[:, 2:] <= limit)).all(1))[:, 0]
    every = assemble(
        in_a_row([maps[None]], m), torch.zeros_like(whole), window_places([(height, width)], m, k)[whole], part_of(m, k)
    )
    case.compare("all_windows_prob_floor", every.sigmoid(), 0, slack)
    case.compare("all_objectness", objectness.flatten()[whole], 0, slack)

    truth = torch.zeros(1, m, m)
    truth[:, 4:17, 6:15] = 1
    loss = window_losses(cut([(4, 3)], part_of(m, k)), truth)
    case.compare("loss_one_window", loss, slack, slack)
    centre = objectness[4 + m // 2, 3 + m // 2]
    case.compare("loss_objectness_positive", F.binary_cross_entropy_with_logits(centre, torch.ones(())), 0, slack)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"
