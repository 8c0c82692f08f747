"""Cascade Mask R-CNN: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import torch

from maskkit.models.cascade_rcnn import CascadeRcnn
from maskkit.nn.cascade import Stage
from maskkit.nn.roi import Sampled
from maskkit.nn.rpn import encode
from maskkit.targets import Target
from tests.models.conformance import Conformance
from tests.models.test_mask_rcnn import SMALL


class TestCascadeRcnn(Conformance):
    variant = True
    preset = "cascadercnn-mobilenetv2-320"
    knobs: ClassVar[dict[str, Any]] = {**SMALL, "mask_convs": 1}
    overfit: ClassVar[dict[str, Any]] = {"steps": 80, "lr": 3e-3, "size": (160, 160)}

    def test_each_stage_has_its_own_code_and_its_own_objects(self) -> None:
        model = self.model()
        assert isinstance(model, CascadeRcnn)
        truth, size = torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([[128.0, 128]])
        start = torch.tensor([[0.0, 30, 20, 70, 60], [0, 80, 80, 120, 120]])
        target = Target.of(truth.tolist(), [1])
        for i, stage in enumerate(model.config.stages[:-1]):
            code = torch.stack([encode(truth[0], start[0, 1:], stage.box_weights), torch.zeros(4)])
            head = Stage(Sampled(start, torch.tensor([0, -1])), torch.zeros(2, 6), code[:, None].expand(-1, 5, -1))
            before = [head] * (i + 1)
            rois = model.refined(before, size, None).rois
            assert torch.allclose(rois[0, 1:], truth[0], atol=1e-3)
            sampled = model.refined(before, size, [target])
            positive = sampled.rois[sampled.matched >= 0]
            assert len(positive) == 2  # the corrected region, and the object's own box
            assert torch.allclose(positive[:, 1:], truth.expand(2, -1), atol=1e-3)
        assert model.config.third.box_weights[0] == 1 / 0.033
