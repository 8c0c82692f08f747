"""FCN under the suite that all semantic methods share, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
import torchvision

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.models.fcn import Enlarge, Fcn, FcnConfig, FcnRaw
from tests.models.semantic import SemanticConformance


class TestFcn8s(SemanticConformance):
    preset = "fcn8s-mobilenetv2-256"


class TestFcnStaged(SemanticConformance):
    variant = True
    preset = "fcn8s-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = {"staged": True}


def model(preset: str = "fcn8s-mobilenetv2-256", **knobs: Any) -> Fcn:
    torch.manual_seed(0)
    config = zoo.preset(preset).model
    assert isinstance(config, FcnConfig)
    return Fcn(replace(config, num_classes=3, **knobs)).eval()


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_enlarging_a_constant_keeps_it_inside(factor: int) -> None:
    enlarged = Enlarge(2, factor)(torch.full((1, 2, 6, 6), 3.0))[0]
    assert torch.allclose(enlarged[:, factor:-factor, factor:-factor], torch.tensor(3.0))


@pytest.mark.parametrize("preset", ["fcn8s-mobilenetv2-256", "fcn8s-vgg16"])
@pytest.mark.parametrize("skips", [0, 1, 2])
def test_output_is_as_large_as_the_image(preset: str, skips: int) -> None:
    net = model(preset, skips=skips, width=8)
    with torch.no_grad():
        for size in ((50, 77), (33, 64)):
            assert net(torch.zeros(1, 3, *size)).logits.shape == (1, 3, *size)


def test_skips_that_start_at_zero_change_nothing() -> None:
    net = model(staged=True)
    with torch.no_grad():
        raw = net(torch.randn(1, 3, 64, 96))
    assert len(raw.others) == 2
    for stage in raw.others:
        assert torch.equal(stage, raw.logits)


def test_stages_follow_the_progress_of_the_training() -> None:
    net = model(staged=True)
    suite = TestFcnStaged()
    batch = suite.batch([1])
    logits = [torch.zeros(1, 3, 96, 96, requires_grad=True) for _ in range(3)]
    raw = FcnRaw(logits[2], (logits[0], logits[1]))
    batch.targets = [replace(t, semantic=t.semantic.clamp(max=2)) for t in batch.targets]  # type: ignore[union-attr]
    for progress, stage in ((0.01, 0), (0.5, 1), (0.9, 2), (1.0, 2)):
        loss = net.loss_terms(raw, replace(batch, progress=progress))["semantic"]
        gradients = torch.autograd.grad(loss, logits, allow_unused=True)
        assert [g is not None for g in gradients] == [i == stage for i in range(3)], progress


def test_torchvision_checkpoints_give_the_same_scores() -> None:
    """The live oracle: torchvision's own network and its state dict under our names."""
    torch.manual_seed(0)
    official = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    ).eval()
    name = "fcn-resnet50-coco"
    preset = zoo.preset(name)
    assert isinstance(preset.model, FcnConfig)
    net = Fcn(preset.model).eval()
    net.load_state_dict(published.convert(official.state_dict(), name))
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        theirs, raw = official(images), net(images)
    for ours, key in ((raw.logits, "out"), (raw.others[0], "aux")):
        enlarged = F.interpolate(ours, size=images.shape[2:], mode="bilinear")
        assert torch.allclose(enlarged, theirs[key], atol=1e-4)
