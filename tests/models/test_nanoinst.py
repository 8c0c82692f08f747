"""NanoInst: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import torch

from maskkit import zoo
from maskkit.models.nanoinst import NanoInst
from tests.models.conformance import Conformance
from tests.models.test_nanodet import SMALL, every_level_teaches


class TestNanoInst(Conformance):
    preset = "nanoinst-416"
    knobs: ClassVar[dict[str, Any]] = {"detector": SMALL, "masks": {"branch_width": 32}}

    def test_gradient_reaches_every_parameter(self) -> None:
        every_level_teaches(self)


def test_shapes_of_the_coco_model() -> None:
    with torch.device("meta"):
        net = NanoInst(zoo.preset("nanoinst-416").model)  # type: ignore[arg-type]
        raw = net(torch.zeros(1, 3, 416, 416))
    assert [tuple(level.shape[1:]) for level in raw.detector.extra[:2]] == [(169, 52, 52), (169, 26, 26)]
    assert raw.features.shape == (1, 8, 104, 104)
