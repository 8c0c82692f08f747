"""FCOS against AdelaiDet. Every stored tensor of a case is compared; nothing is left out."""

import pytest
import torch

from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.nn.fcos import fcos_loss
from tests.parity import adelaidet as official
from tests.parity.goldens import Case, watched


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gradnorm_names" in case.manifest:
        third = "loss_fcos_iou" if "loss_fcos_iou" in case.outputs else "loss_fcos_ctr"
        official.train_step(case, {"loss_fcos_cls": "classification", "loss_fcos_loc": "box", third: "quality"})
    else:
        {"forward": _forward, "postprocess": _postprocess, "loss": _loss}[case.manifest["kind"]](case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _forward(case: Case) -> None:
    model = official.model_of(case, fill=True)
    images = official.image_batch(case).images
    assert list(images.shape[2:]) == case.manifest["padded_hw"]
    with torch.no_grad(), watched(model.fpn) as seen:
        raw = model(images)
    official.compare_detector(case, seen[0], raw)


def _loss(case: Case) -> None:
    model = official.model_of(case)
    scenes = official.scenes_of(case)
    raw, batch = official.raw_of(case, scenes), official.given_batch(case, scenes, with_masks=False)
    _, positives = fcos_loss(raw, batch, model.config.detector)
    official.compare_positives(case, positives, raw, batch)
    official.compare_fcos_terms(case, model.loss_terms(raw, batch), raw)


def _postprocess(case: Case) -> None:
    model = official.model_of(case)
    raw = official.raw_of(case, official.scenes_of(case))
    with torch.no_grad():
        chosen = to_arrays(model.select(raw))
    official.compare_final(case, decode(model.decoder, chosen, [official.meta_of(case)], official.CATEGORIES))
