"""MaskLab: the shared conformance, and each of its parts against a plain transcription of its formula."""

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from maskkit import zoo
from maskkit.config import change
from maskkit.data.shapes import CATEGORIES
from maskkit.models.masklab import (
    MaskHead,
    Masklab,
    MasklabConfig,
)
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.dilation import last_stage
from maskkit.nn.roi import BOX_WEIGHTS
from maskkit.nn.rpn import decode
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "proposals": {"anchor_sizes": ((16, 32, 64, 96),), "before": (200, 200), "after": (60, 60)},
    "rpn_width": 64,
    "regions": {"sampled": 32, "detections": 20},
    "box_crop": 7,
    "crop": 21,
    "low_width": 8,
    "refine_width": 16,
}


class TestMasklab(Conformance):
    preset = "masklab-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 160, "lr": 3e-3, "size": (192, 192)}


def small(**knobs: Any) -> Masklab:
    torch.manual_seed(0)
    config = zoo.preset("masklab-mobilenetv2-256").model
    return Masklab(change(change(config, num_classes=len(CATEGORIES), **SMALL), **knobs))  # type: ignore[arg-type]


# masks ----------------------------------------------------------------------------------------------------------------


def test_the_coarse_mask_is_a_sum_of_both_crops_and_low_layers_touch_only_the_refined_one() -> None:
    torch.manual_seed(0)
    head = MaskHead((4, 6), MasklabConfig(low_width=3, refine_width=64))
    nn.init.normal_(head.coarse.weight)
    semantic, direction = torch.randn(2, 21, 21), torch.randn(2, 21, 21)
    low = [torch.randn(2, 3, 21, 21) for _ in range(2)]
    with torch.no_grad():
        coarse, refined = head(semantic, direction, low).unbind(1)
        (a, b), bias = head.coarse.weight.flatten(), head.coarse.bias
        assert bias is not None
        assert torch.allclose(coarse, a * semantic + b * direction + bias, atol=1e-5)
        again = head(semantic, direction, [low[0], low[1] + 1]).unbind(1)
    assert torch.equal(again[0], coarse)
    assert not torch.allclose(again[1], refined)
    convs = [m for m in head.refine if isinstance(m, nn.Conv2d)]
    assert [(c.kernel_size[0], c.out_channels) for c in convs] == [(5, 64)] * 3 + [(1, 1)]
    assert convs[0].in_channels == 1 + 2 * 3


def test_pasted_masks_lie_where_they_were_sampled() -> None:
    """A ramp that was sampled from corner to corner has, in the middle of each cell that is pasted, its value there."""
    model = small().eval()
    with torch.no_grad():
        raw = model(torch.randn(1, 3, 128, 128))
    side = model.config.crop
    ramp = torch.linspace(0.1, 0.9, side).expand(raw.mask_logits.shape).logit()
    masks = model.select(raw._replace(mask_logits=ramp)).masks
    wanted = 0.1 + 0.8 * (torch.arange(side - 1) + 0.5) / (side - 1)
    assert torch.allclose(masks, wanted.expand(masks.shape), atol=1e-5)


# boxes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "same"), [("resnet26", False), ("mobilenetv2_100", True)])
def test_atrous_conv5_sees_the_same_on_a_denser_grid(name: str, same: bool) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, (16, 32), pad_same=same).eval()
    strided, atrous = (last_stage(backbone, atrous).eval() for atrous in (False, True))
    crops = torch.randn(1, backbone.channels[16], 41, 41)
    with torch.no_grad():
        coarse, dense = strided(crops), atrous(crops)
    assert dense.shape[1:] == (backbone.channels[32], 41, 41)
    assert torch.allclose(coarse, dense[:, :, ::2, ::2], atol=1e-4)


def test_the_box_heads_conv5_begins_as_the_backbones() -> None:
    model = small()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.normal_()
    model.adopt_backbone()
    theirs = model.backbone.body.blocks[5:].parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.box_head.stage.parameters(), theirs, strict=True))
    with torch.no_grad():
        next(model.box_head.stage.parameters()).zero_()
    assert next(iter(model.backbone.body.blocks[5:].parameters())).any(), "a copy, not the same"


def test_frozen_norm_stays_as_it_is_in_the_copy_too() -> None:
    model = small(backbone={"norm": "frozen"}).train()
    norms = [m for m in model.box_head.stage.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)


def test_boxes_are_regressed_again_by_the_code_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[[20.0, 20, 60, 60], [70, 70, 110, 120]]])
    logits = torch.full((2, 6), -9.0)
    logits[0, 3], logits[1, 1] = 3, 1
    deltas = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    sizes = torch.tensor([[128.0, 128]])
    for passes in (1, 2, 3):
        model = small(box_passes=passes, regions={"detections": 2})
        monkeypatch.setattr(model, "classify", lambda shared, rois: (logits, deltas))
        found = model.detect(torch.zeros(1), logits, deltas, boxes, sizes)
        wanted = boxes[0]
        for _ in range(passes):
            code = torch.stack([deltas[0, 3], deltas[1, 1]])
            wanted = decode(code, wanted, BOX_WEIGHTS).clamp(0, 128)
        assert found.labels[0].tolist() == [3, 1]
        assert torch.allclose(found.boxes[0], wanted, atol=1e-3)
