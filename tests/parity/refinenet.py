"""RefineNet against DrSleep/refinenet-pytorch."""

import pytest
import torch
from torch import Tensor

from maskkit import zoo
from tests.parity.goldens import Case, watched
from tests.parity.semantic import batch, check, every_output_seen


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "refinenet-resnet101"
    classes = case.config["num_classes"]
    model = case.filled(name, num_classes=classes)
    given = batch(case, zoo.preset(name).input, classes)
    seen: dict[str, Tensor] = {}
    layers = {}
    for i, block in enumerate(model.blocks, 1):
        layers |= {f"adapt_stage{i}_b": block.adapt, f"mflow_conv_g{i}_pool": block.pool}
        layers |= {f"mflow_conv_g{i}_b": block.refine, f"mflow_conv_g{i}_b3_joint_varout_dimred": block.out}
    for key in layers.keys() & case.outputs.keys():
        layers[key].register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    with torch.no_grad(), watched(model.backbone) as outputs:
        raw = model(given.images)
    (features,) = outputs
    check(case, "layer1", features[4])
    check(case, "layer4", features[32])
    for key, value in seen.items():
        check(case, key, value)
    check(case, "logits", raw.logits)
    every_output_seen(case)
