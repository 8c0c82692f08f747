"""DeepLab v1 and v2 against kazuto1011/deeplab-pytorch, the fully connected CRF against pydensecrf."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskkit import zoo
from maskkit.models.deeplab import SummedAspp
from maskkit.nn.crf import CrfConfig, mean_field
from tests.parity.goldens import Case, watched
from tests.parity.semantic import batch, check, every_output_seen


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    (_crf if case.manifest["kind"] == "POSTPROCESS" else _forward)(case)
    every_output_seen(case)


def _forward(case: Case) -> None:
    config = case.config
    name = "deeplabv1-resnet101" if config["name"].startswith("DeepLabV1") else "deeplabv2-resnet101"
    preset = zoo.preset(name)
    knobs: dict[str, Any] = {"num_classes": config["n_classes"]}
    if "atrous_rates" in config:
        knobs |= {"rates": tuple(config["atrous_rates"]), "scales": tuple(config["scales"])}
    model = case.filled(name, **knobs)
    # the manifest's means, in the order of its BGR images
    given = batch(case, replace(preset.input, mean=(122.675, 116.669, 104.008)), config["n_classes"])
    with torch.no_grad():
        raw = model(given.images)
        if name.startswith("deeplabv1"):
            check(case, "logits", raw.logits)
            return
        body: Any = model.backbone.body
        with watched(body.maxpool, body.layer2) as seen:
            features = model.backbone(given.images)
        stem, second = seen
        assert isinstance(model.score, SummedAspp)
        branches = [branch(features[32]) for branch in model.score.branches]
    check(case, "stem", stem)
    check(case, "layer3", second)
    check(case, "layer5", features[32])
    check(case, "aspp_c0", branches[0])
    check(case, "aspp_c3", branches[-1])
    for key, logits in zip(("logits_single", "logits_half", "logits_075"), raw.others, strict=True):
        check(case, key, logits)
    check(case, "logits_msc_max", raw.logits)
    prob = F.interpolate(raw.logits, size=given.images.shape[2:], mode="bilinear").softmax(1)
    check(case, "prob", prob)
    assert (case.part("labelmap", prob.argmax(1)) == case.stored("labelmap").reshape(-1)).mean() > 0.999
    losses = model.loss_terms(raw, given)
    check(case, "losses", torch.stack([losses[k] for k in ("semantic/0", "semantic/1", "semantic/2", "semantic")]))
    check(case, "loss_total", torch.stack(list(losses.values())).sum())


def _crf(case: Case) -> None:
    config, seed = case.config, case.seed
    classes, height, width = case.manifest["outputs"]["prob_in"]["shape"]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, seed)).permute(2, 0, 1)
    rng = case.recipe.rng_for("target", seed)
    truth = rng.integers(0, classes, (1, -(-height // 8), -(-width // 8))).repeat(8, 1).repeat(8, 2)
    truth = truth[:, :height, :width]
    truth[rng.random((1, height, width)) < 0.1] = 0
    logits = case.recipe.seeded_array("logits", (classes, height, width), seed)
    logits += 1.5 * (np.arange(classes)[:, None, None] == truth)
    probabilities = torch.from_numpy(logits).softmax(0)
    assert np.abs(case.stored("prob_in").reshape(-1) - case.part("prob_in", probabilities)).max() < 1e-5
    base = config["voc"]
    for name, given in config.items():
        values = {**base, "iter": 1} if given == "same, 1 iteration" else given
        crf = CrfConfig(
            iterations=values["iter"],
            smoothness=values["pos_w"],
            smoothness_pixels=values["pos_xy_std"],
            appearance=values["bi_w"],
            appearance_pixels=values.get("bi_xy_std", 1),
            appearance_colour=values.get("bi_rgb_std", 1),
        )
        q = mean_field(probabilities, image.float(), crf)
        off = np.abs(case.part(f"q_{name}", q) - case.stored(f"q_{name}").reshape(-1))
        same = (case.part(f"label_{name}", q.argmax(0)) == case.stored(f"label_{name}").reshape(-1)).mean()
        assert off.mean() < 0.02, (name, off.mean())
        assert same >= 0.97, (name, same)
