"""DeepLab under the suite that all semantic methods share, and what is its own."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.config import change
from maskkit.data.dataset import Dataset
from maskkit.eval.numbers import rank
from maskkit.eval.semantic.metric import SemanticResult, count
from maskkit.models.base import Model
from maskkit.models.deeplab import Aspp, Deeplab, DeeplabConfig
from maskkit.nn.semantic import truth_of
from maskkit.targets import Batch
from tests.models.semantic import CLASSES, SemanticConformance


class TestDeeplabV3Plus(SemanticConformance):
    preset = "deeplabv3plus-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {"width": 32, "low_width": 16}


class TestDeeplabV3(SemanticConformance):
    variant = True
    preset = "deeplabv3-mobilenetv2-320"
    knobs: ClassVar[dict[str, Any]] = {"width": 32, "auxiliary": 0.4, "output_stride": 8}


class OnCells(SemanticConformance):
    """v1 and v2 learn, as published, the label at the centre of each cell of eight pixels: that is what they know."""

    def agreement(self, model: Model, batch: Batch, data: Dataset) -> float:
        found = model(batch.images).logits.argmax(1)
        truth = F.interpolate(truth_of(batch)[:, None].float(), size=found.shape[1:], mode="nearest-exact")[:, 0].long()
        counts = sum(count(t.numpy(), f.numpy(), len(CLASSES)) for t, f in zip(truth, found, strict=True))
        assert isinstance(counts, np.ndarray)
        return rank(SemanticResult(CLASSES.names, counts, np.zeros((len(CLASSES), 3), int)).main["mIoU"])


class TestDeeplabV2(OnCells):
    variant = True
    preset = "deeplabv3-mobilenetv2-320"
    knobs: ClassVar[dict[str, Any]] = {"version": "v2", "output_stride": 8, "scales": (0.5, 0.75)}


class TestDeeplabV1(OnCells):
    variant = True
    preset = "deeplabv3-mobilenetv2-320"
    knobs: ClassVar[dict[str, Any]] = {"version": "v1", "output_stride": 8}


def model(**knobs: Any) -> Deeplab:
    torch.manual_seed(0)
    preset = zoo.preset("deeplabv3-mobilenetv2-320")
    assert isinstance(preset.model, DeeplabConfig)
    return Deeplab(change(preset.model, num_classes=3, width=16, **knobs)).eval()


def test_an_atrous_kernel_is_one_with_zeros_between() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 15, 15), torch.randn(3, 2, 3, 3)
    stretched = torch.zeros(3, 2, 7, 7)
    stretched[:, :, ::3, ::3] = weight
    assert torch.allclose(F.conv2d(x, weight, padding=3, dilation=3), F.conv2d(x, stretched, padding=3), atol=1e-5)


def test_a_rate_beyond_the_map_leaves_the_centre_alone() -> None:
    aspp = model(rates=(8,)).aspp
    assert isinstance(aspp, Aspp)
    branch = next(m for m in aspp.branches[1].modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(1, branch.in_channels, 8, 8)
    assert torch.allclose(branch(x), F.conv2d(x, branch.weight[:, :, 1:2, 1:2]), atol=1e-5)


def test_every_size_of_input_is_taken() -> None:
    for size in ((97, 64), (33, 50)):
        for version in ("v1", "v2", "v3", "v3+"):
            net = model(version=version)
            assert net.select(net(torch.zeros(1, 3, *size))).logits.isfinite().all()


def test_vgg_keeps_a_stride_of_eight() -> None:
    preset = zoo.preset("deeplabv1-vgg16")
    assert isinstance(preset.model, DeeplabConfig)
    net = Deeplab(change(preset.model, width=16)).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 97, 129)).logits.shape == (1, 21, 13, 17)


def test_the_lite_version_learns_on_the_grid_of_its_finer_features() -> None:
    model = TestDeeplabV3.model(version="lite", low_stride=4, auxiliary=0.0)
    batch = TestDeeplabV3.batch([1, 2])
    raw = model(batch.images)
    assert raw.logits.shape == (2, len(CLASSES), 24, 24)
    loss = model.loss(raw, batch)["semantic"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("backbone", ["resnet50"])
def test_torchvision_checkpoints_give_the_same_scores(backbone: str) -> None:
    """The live oracle: torchvision's own network and its state dict under our names."""
    torch.manual_seed(0)
    official = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    ).eval()
    name = f"deeplabv3-{backbone}-coco"
    preset = zoo.preset(name)
    net = zoo.model_class(name)(preset.model).eval()  # type: ignore[call-arg]
    net.load_state_dict(published.convert(official.state_dict(), name))
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        theirs, raw = official(images), net(images)
    for ours, key in ((raw.logits, "out"), (raw.others[0], "aux")):
        enlarged = F.interpolate(ours, size=images.shape[2:], mode="bilinear")
        assert torch.allclose(enlarged, theirs[key], atol=1e-4)
