"""DeepLab v3 and v3+ against VainF/DeepLabV3Plus-Pytorch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskkit import published, registry
from maskkit.models.deeplab import Deeplab, DeeplabConfig
from maskkit.nn.semantic import pixel_loss, truth_of
from tests.parity.goldens import Case
from tests.parity.semantic import batch, check, every_output_seen

_BACKBONES = {"mobilenet": "mobilenetv2_100"}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    version, _, official = case.config["model"].partition("_")
    name = f"{version}-{_BACKBONES.get(official, official)}"
    preset = registry.preset(name)
    assert isinstance(preset.model, DeeplabConfig)
    stride, classes = case.config["output_stride"], case.config["num_classes"]
    knobs = {"num_classes": classes, "output_stride": stride, "rates": tuple(r * 16 // stride for r in (6, 12, 18))}
    model = Deeplab(replace(preset.model, **knobs)).eval()
    model.load_state_dict(published.convert(case.weights(), name, **knobs))
    given = batch(case, replace(preset.input, mean=(123.675, 116.28, 103.53)), classes)
    with torch.no_grad():
        features = model.backbone(given.images)
        raw = model(given.images)
        aspp = model.aspp(features[32])
    check(case, "feature_out", features[32])
    if "feature_low_level" in case.outputs:
        check(case, "feature_low_level", features[4])
    check(case, "aspp", aspp)
    check(case, "logits_low", raw.logits)
    check(case, "logits", F.interpolate(raw.logits, size=given.images.shape[2:], mode="bilinear"))
    check(case, "loss", pixel_loss(raw.logits, truth_of(given)))
    every_output_seen(case)
