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


def test_masks_in_given_boxes_stay_near_them() -> None:
    model = TestNanoInst.model().eval()
    boxes = torch.tensor([[[0.1, 0.2, 0.6, 0.9], [0.5, 0.0, 1.0, 0.5], [0.25, 0.25, 0.5, 0.5]]])
    with torch.no_grad():
        raw = model(TestNanoInst.batch([1]).images)
        drawn = model.select_in(raw, boxes)
    assert drawn.masks.shape == (1, 3, 32, 32)
    for mask, box in zip(drawn.masks[0], boxes[0] * 32, strict=True):
        x1, y1, x2, y2 = box.tolist()
        far = torch.ones(32, 32, dtype=torch.bool)
        far[max(int(y1) - 3, 0) : int(y2) + 4, max(int(x1) - 3, 0) : int(x2) + 4] = False
        assert mask[far].max() < 1e-9
        assert mask[~far].max() > mask[far].max()
