"""RefineNet against DrSleep/refinenet-pytorch."""

import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.config import change
from maskkit.models.refinenet import Refinenet, RefinenetConfig
from tests.parity.goldens import Case
from tests.parity.semantic import batch, check, every_output_seen


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "refinenet-resnet101"
    preset = zoo.preset(name)
    assert isinstance(preset.model, RefinenetConfig)
    classes = case.config["num_classes"]
    model = Refinenet(change(preset.model, num_classes=classes)).eval()
    model.load_state_dict(published.convert(case.weights(), name, num_classes=classes))
    given = batch(case, preset.input, classes)
    seen: dict[str, Tensor] = {}
    layers = {}
    for i, block in enumerate(model.blocks, 1):
        layers |= {f"adapt_stage{i}_b": block.adapt, f"mflow_conv_g{i}_pool": block.pool}
        layers |= {f"mflow_conv_g{i}_b": block.refine, f"mflow_conv_g{i}_b3_joint_varout_dimred": block.out}
    for key in layers.keys() & case.outputs.keys():
        layers[key].register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    with torch.no_grad():
        features = model.backbone(given.images)
        raw = model(given.images)
    check(case, "layer1", features[4])
    check(case, "layer4", features[32])
    for key, value in seen.items():
        check(case, key, value)
    check(case, "logits", raw.logits)
    every_output_seen(case)
