"""DeepLab v3 and v3+ against VainF/DeepLabV3Plus-Pytorch.

The stored logits of v3+ are not those of its decoder. In v3 they are what the layers after ASPP give; the cases of v3+
were made in the same way, by the layers ``classifier.classifier[1:]``, which there leave out the 3x3 convolution and
the features of stride 4: norm and scores of ASPP's output. So they check these layers, and the decoder is checked by a
plain transcription under the official names.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.nn.semantic import pixel_loss, truth_of
from tests.parity.goldens import Case, watched
from tests.parity.semantic import batch, check, every_output_seen

_BACKBONES = {"mobilenet": "mobilenetv2_100"}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    version, _, official = case.config["model"].partition("_")
    name = f"{version}-{_BACKBONES.get(official, official)}"
    preset = zoo.preset(name)
    stride, classes = case.config["output_stride"], case.config["num_classes"]
    knobs = {"num_classes": classes, "output_stride": stride, "rates": tuple(r * 16 // stride for r in (6, 12, 18))}
    model = case.filled(name, **knobs)
    given = batch(case, replace(preset.input, mean=(123.675, 116.28, 103.53)), classes)
    with torch.no_grad(), watched(model.backbone, model.aspp) as seen:
        raw = model(given.images)
    features, aspp = seen
    check(case, "feature_out", features[32])
    if "feature_low_level" in case.outputs:
        check(case, "feature_low_level", features[4])
    check(case, "aspp", aspp)
    logits = raw.logits
    if version == "deeplabv3plus":
        assert torch.allclose(logits, decoder(case.weights(), features[4], aspp), atol=1e-3)
        with torch.no_grad():
            _, norm, relu = model.refine[0]  # type: ignore[misc]
            logits = model.score(relu(norm(aspp)))
    check(case, "logits_low", logits)
    check(case, "logits", F.interpolate(logits, size=given.images.shape[2:], mode="bilinear"))
    check(case, "loss", pixel_loss(logits, truth_of(given)))
    every_output_seen(case)


def decoder(weights: dict[str, Tensor], low: Tensor, aspp: Tensor) -> Tensor:
    """Logits (B, K, H/4, W/4) of the features of stride 4 and of ASPP's output."""

    def conv_norm(x: Tensor, conv: str, norm: str, padding: int = 0) -> Tensor:
        x = F.conv2d(x, weights[f"classifier.{conv}.weight"], padding=padding)
        mean, var, scale, shift = (
            weights[f"classifier.{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift).relu()

    low = conv_norm(low, "project.0", "project.1")
    aspp = F.interpolate(aspp, size=low.shape[2:], mode="bilinear", align_corners=False)
    joined = conv_norm(torch.cat([low, aspp], 1), "classifier.0", "classifier.1", padding=1)
    return F.conv2d(joined, weights["classifier.classifier.3.weight"], weights["classifier.classifier.3.bias"])
