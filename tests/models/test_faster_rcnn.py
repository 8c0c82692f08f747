"""Faster R-CNN: the shared conformance, and what is its own."""

from typing import Any, ClassVar

from tests.models.conformance import Conformance
from tests.models.test_mask_rcnn import SMALL


class TestFasterRcnn(Conformance):
    preset = "fasterrcnn-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {k: v for k, v in SMALL.items() if k != "mask_width"}
