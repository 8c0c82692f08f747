"""SegNet against meetshah1995/pytorch-semseg."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.models.segnet import unpool
from tests.parity.goldens import Case
from tests.parity.semantic import batch, check, every_output_seen


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "segnet-vgg16"
    preset = zoo.preset(name)
    knobs = {"num_classes": case.config["n_classes"], "ceil": "ceil" in case.config["pooling"], "norm_scores": True}
    model = case.filled(name, **knobs)
    input = replace(preset.input, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    given = batch(case, input, case.config["n_classes"])
    seen: dict[str, Tensor] = {}
    for i, stage in enumerate(model.upsampling):
        key = f"up{5 - i}" if i < 4 else "output"
        stage.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    with torch.no_grad():
        for i, (pooled, places) in enumerate(model.backbone.walk(given.images), 1):
            check(case, f"down{i}", pooled)
            ours = case.part(f"down{i}_indices", places)
            assert np.array_equal(ours, case.stored(f"down{i}_indices").reshape(-1))
        model(given.images)
    for key, value in seen.items():
        check(case, key, value)
    given_array = torch.from_numpy(case.recipe.seeded_array("unpool_in", (1, 3, 7, 9), case.seed))
    pooled, places = F.max_pool2d(given_array, 2, 2, return_indices=True)
    check(case, "unit_pooled", pooled)
    assert np.array_equal(case.stored("unit_indices").reshape(-1), case.part("unit_indices", places))
    check(case, "unit_unpooled_doubled", unpool(2 * pooled, places, (7, 9)))
    every_output_seen(case)
