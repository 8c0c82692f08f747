"""NanoDet-Plus: the shared conformance, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from maskkit import zoo
from maskkit.errors import DataError
from maskkit.models.nanodet import NanoDet
from maskkit.targets import Batch, Target
from maskkit.zoo.nanodet import rename
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "stage_widths": (32, 48, 64),
    "stage_units": (2, 2, 2),
    "width": 32,
    "batch_norm": True,
    "min_score": 1e-3,
    "candidates": 200,
    "detections": 20,
}


class TestNanoDet(Conformance):
    preset = "nanodet-plus-m-416"
    knobs: ClassVar[dict[str, Any]] = {"detector": SMALL}

    def test_gradient_reaches_every_parameter(self) -> None:
        every_level_teaches(self)


def every_level_teaches(case: Conformance) -> None:
    """One object for each level: boxes begin with sides of seven strides."""
    model = case.model().train()
    batch: Batch = case.batch([3], (1, 1))
    sides = (56, 112, 224, 448)
    masks = torch.zeros(4, 448, 448, dtype=torch.bool)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = True
    target = Target.of([[0, 0, side, side] for side in sides], [0, 1, 2, 0], masks)
    images = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    batch = replace(batch, images=images, sizes=torch.tensor([[448, 448]]), targets=[target])
    losses = model.loss_terms(model(images), batch)
    torch.stack(list(losses.values())).sum().backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still, still


def test_shapes_of_the_published_coco_model() -> None:
    with torch.device("meta"):
        net = NanoDet(zoo.preset("nanodet-plus-m-416").model)  # type: ignore[arg-type]
        raw = net(torch.zeros(1, 3, 416, 416))
    assert [tuple(level.shape[1:]) for level in raw.logits] == [(80, 52, 52), (80, 26, 26), (80, 13, 13), (80, 7, 7)]
    assert sum(p.numel() for p in net.parameters()) == 769_354 + 279_072 + 137_920


def test_names_of_other_networks_are_refused() -> None:
    with pytest.raises(DataError, match="is not a tensor in checkpoints of NanoDet-Plus"):
        rename({"backbone.conv9.weight": torch.zeros(1)})
    with pytest.raises(DataError, match="is not a tensor in checkpoints of NanoDet-Plus"):
        rename({"fpn.lateral_convs.0.conv.weight": torch.zeros(1)})


def test_a_training_leaves_its_average_and_what_serves_it_alone() -> None:
    """Lightning's checkpoint: the network, its average, and the auxiliary head."""
    state = {
        "head.gfl_cls.0.bias": torch.zeros(34),
        "avg_model.head.gfl_cls.0.bias": torch.ones(34),
        "avg_model.aux_head.gfl_cls.bias": torch.ones(2),
        "head.distribution_project.project": torch.ones(8),
    }
    found = rename(state)
    assert {n: t.shape[0] for n, t in found.items()} == {"head.logits.0.bias": 2, "head.sides.0.bias": 32}
    assert found["head.logits.0.bias"].all()
