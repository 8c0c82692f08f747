"""FCOS: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import numpy as np
import torch

from maskkit.data.shapes import CATEGORIES
from maskkit.decode import BoxesOnly, decode
from maskkit.export.graph import trace
from maskkit.prediction import ImageMeta
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "detector": {"width": 32, "strides": (8, 16, 32, 64), "size_ranges": (16, 32, 64), "min_score": 1e-3}
}


class TestFcos(Conformance):
    preset = "fcos-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


def test_boxes_that_are_cut_at_the_image_export_with_any_batch_and_its_sizes() -> None:
    first = {"clip": True, "score": "product", "distance_activation": "exp", "distance_unit": "pixels"}
    model = TestFcos.model(detector={**first, "quality_tower": "class", "tower_bias": False}).eval()
    images, sizes = torch.randn(3, 3, 64, 96), torch.tensor([[40, 70], [64, 96], [64, 30]])
    graph = trace(model, images[:2], ("batch",), sized=True)
    assert graph.inputs == ("images", "sizes")
    with torch.no_grad():
        found = graph.program.module()(images, sizes)
        wanted = model.select(model(images, sizes))
    for name, field in found.items():
        assert torch.allclose(field.float(), getattr(wanted, name).float(), atol=1e-5)
    limits = sizes.flip(1) / torch.tensor([96, 64])
    assert (wanted.boxes[..., 2:] <= limits[:, None] + 1e-6).all()


def test_a_detector_predicts_boxes_without_masks() -> None:
    """The third box lies in the padding, the fourth row is padding of the selection."""
    affine = np.array([[2.0, 0, 0], [0, 2.0, 0]])
    meta = ImageMeta(7, "", (100, 200), (64, 128), affine)
    selected = {
        "boxes": np.array([[[0, 0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.75], [0.1, 0.8, 0.2, 1], [0, 0, 1, 1]]], np.float32),
        "labels": np.array([[0, 1, 0, 2]]),
        "scores": np.array([[0.5, 0.9, 0.4, 0]], np.float32),
    }
    (prediction,) = decode(BoxesOnly(), selected, [meta], CATEGORIES)
    found = prediction.instances
    assert found is not None
    assert found.masks is None
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[64, 32, 128, 96], [0, 0, 128, 64]]
    assert all("segmentation" not in row for row in prediction.to_coco())
