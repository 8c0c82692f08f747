"""Every name that a card says loads, from state dicts that the installed libraries build."""

import pytest
import torch
import torchvision
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.models.mask2former import Mask2FormerConfig

TORCHVISION = [p for p in zoo.presets() if p.weights is not None and p.weights.torchvision]
OFFICIAL = [p for p in zoo.presets() if p.weights is not None and "Mask2Former" in p.weights.source]
MASK2FORMER = list({p.model.backbone.name: p for p in reversed(OFFICIAL)}.values())  # type: ignore[attr-defined]
"""One of each backbone: the task and the data change a number in one shape."""


def fits(state: dict[str, Tensor], preset: str) -> None:
    """Every tensor of a library finds its place in the preset's model, in its shape, and none is left without."""
    published.convert({name: tensor.to("meta") for name, tensor in state.items()}, preset)


@pytest.mark.parametrize("preset", TORCHVISION, ids=lambda p: p.name)
def test_torchvision(preset) -> None:
    weights = preset.weights.torchvision
    names = torchvision.models.list_models()
    name = next(n for n in names if torchvision.models.get_model_weights(n).__name__ == weights.partition(".")[0])
    detects = "rcnn" in name or "fcos" in name
    options = {} if detects or "lraspp" in name else {"aux_loss": True}  # as the published files have it
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    classes = len(torchvision.models.get_weight(weights).meta["categories"])
    assert classes == len(preset.classes) + detects
    fits(model.state_dict(), preset.name)


@pytest.mark.parametrize("preset", MASK2FORMER, ids=lambda p: p.name)
def test_transformers(preset) -> None:
    transformers = pytest.importorskip("transformers")
    model: Mask2FormerConfig = preset.model
    stages = [f"stage{i}" for i in range(1, 5)]
    swins = {"tiny": (96, 6), "small": (96, 18), "base": (128, 18), "large": (192, 18)}
    size = next((size for size in swins if f"swin_{size}" in model.backbone.name), None)
    if size is None:
        depths = [3, 4, {"resnet50": 6, "resnet101": 23}[model.backbone.name], 3]
        backbone = transformers.ResNetConfig(depths=depths, out_features=stages)
    else:
        width, blocks = swins[size]
        window = 12 if size in ("base", "large") else 7
        heads = [width // 32 * 2**i for i in range(4)]
        backbone = transformers.SwinConfig(
            embed_dim=width, depths=[2, 2, blocks, 2], num_heads=heads, window_size=window, out_features=stages
        )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=model.num_classes, num_queries=model.query_decoder.queries
    )
    with torch.device("meta"):
        state = transformers.Mask2FormerForUniversalSegmentation(config).state_dict()
    fits(state, preset.name)
