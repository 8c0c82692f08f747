"""CondInst: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import torch

from maskkit import zoo
from maskkit.models.condinst import CondInst
from maskkit.nn.dynamic_mask import some
from maskkit.nn.fcos_targets import Positives
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "detector": {
        "width": 32,
        "strides": (8, 16, 32, 64),
        "size_ranges": (16, 32, 64),
        "min_score": 1e-3,
        "detections": 20,
    },
    "masks": {"branch_width": 32, "mask_candidates": 40},
}


class TestCondInst(Conformance):
    preset = "condinst-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


class TestOnNanoDet(Conformance):
    """The built-in model's backbone and pyramid, on which other methods have presets too."""

    variant = True
    preset = "condinst-nanodet-320"
    knobs: ClassVar[dict[str, Any]] = SMALL


class TestCondInstSemantic(Conformance):
    """The auxiliary loss, and NMS of masks."""

    variant = True
    preset = "condinst-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {
        **SMALL,
        "masks": {**SMALL["masks"], "nms": "masks"},
        "semantic_weight": 1.0,
    }


def test_shapes_of_the_published_coco_model() -> None:
    with torch.device("meta"):
        net = CondInst(zoo.preset("condinst-semantic-resnet50-3x").model)  # type: ignore[arg-type]
        raw = net(torch.zeros(1, 3, 800, 1216))
    assert [tuple(level.shape) for level in raw.detector.extra[:2]] == [(1, 169, 100, 152), (1, 169, 50, 76)]
    assert raw.branch.features.shape == (1, 8, 100, 152)
    assert raw.branch.semantic.shape == (1, 80, 100, 152)
    assert sum(level.shape[2] * level.shape[3] for level in raw.detector.logits) == 20267


def test_no_more_positives_than_asked_for_are_taken() -> None:
    n = torch.arange(30)
    positives = Positives(n, n, n, n, torch.zeros(30, 4), torch.zeros(30))
    torch.manual_seed(0)
    taken = some(positives, 12)
    assert len(taken.label) == 12 == len(taken.label.unique())
    assert torch.equal(taken.image, taken.location)
    assert some(positives, 30) is positives
