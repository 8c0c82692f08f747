"""FCN-32s, -16s and -8s against wkentaro/pytorch-fcn."""

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.models.fcn import Enlarge, Fcn, bilinear_kernel
from maskkit.nn.semantic import pixel_loss, truth_of
from tests.parity.goldens import Case, watched
from tests.parity.semantic import batch, check, every_output_seen

_PRESETS = {
    "FCN32s": "fcn32s-vgg16",
    "FCN16s": "fcn16s-vgg16",
    "FCN8s": "fcn8s-vgg16",
    "FCN8sAtOnce": "fcn8s-vgg16-at-once",
}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name, classes = _PRESETS[case.config["model"]], case.config["n_class"]
    preset = zoo.preset(name)
    model: Fcn = case.filled(name, num_classes=classes)
    given = batch(case, preset.input, classes)
    layers = {"score_fr": model.score, "relu7": model.fc[4], _last(model): model.last}
    layers |= dict(zip(("upscore2", "upscore_pool4"), model.enlarge, strict=False))
    with torch.no_grad(), watched(model.backbone, *layers.values()) as seen:
        raw = model(given.images)
    features, *found = seen
    for key, stride in (("pool3", 8), ("pool4", 16), ("pool5", 32)):
        check(case, key, features[stride])
    for key, value in zip(layers, found, strict=True):
        check(case, key, value)
    check(case, "logits", raw.logits)
    for reduction in ("mean", "sum"):
        check(case, f"loss_{reduction}", pixel_loss(raw.logits, truth_of(given), reduction=reduction))
    for enlarge in (*model.enlarge, model.last):
        assert isinstance(enlarge, Enlarge)
        enlarge.load_state_dict(Enlarge(classes, enlarge.stride[0]).state_dict())
    monkeypatch.setattr(model.backbone, "forward", lambda images: features)  # the new weights are behind these two
    monkeypatch.setattr(model.fc, "forward", lambda x: found[1])
    with torch.no_grad():
        check(case, "logits_bilinear_deconv", model(given.images).logits)
    for key in [n for n in case.outputs if n.startswith("bilinear_kernel_")]:
        assert np.allclose(case.stored(key), bilinear_kernel(int(key.rpartition("_")[2])), atol=1e-6)
    every_output_seen(case)


def _last(model: Fcn) -> str:
    return ("upscore", "upscore16", "upscore8")[model.config.skips]
