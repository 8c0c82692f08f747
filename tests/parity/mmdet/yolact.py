"""YOLACT of mmdetection."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit.geometry.boxes import to_corners
from maskkit.models.yolact import YolactRaw
from tests.parity.goldens import Case
from tests.parity.mmdet import official
from tests.parity.mmdet.official import near

ANCHORS = 3


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess}[case.manifest["kind"]](case)


def _knobs(case: Case) -> tuple[str, dict[str, Any]]:
    """The preset of the case, and what its official configuration says otherwise."""
    model = case.config["model"]
    head, test = model["bbox_head"], case.config.get("test_cfg", model["test_cfg"])
    anchors = head["anchor_generator"]
    knobs: dict[str, Any] = {
        "backbone": {"name": f"resnet{model['backbone']['depth']}"},
        "num_classes": head["num_classes"],
        "prototypes": head["num_protos"],
        "scales": tuple((float(base * anchors["octave_base_scale"]),) for base in anchors["base_sizes"]),
        "ratios": tuple(1 / ratio for ratio in anchors["ratios"]),  # officially height / width
        "level_candidates": test["nms_pre"],
        "final_score": test["score_thr"],
        "nms_threshold": test["iou_thr"],
        "nms_top": test["top_k"],
        "detections": test["max_per_img"],
    }
    return "yolact-resnet50-mmdet", knobs


def _forward(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = official.model_of(case, preset, **knobs)
    batch = official.image_batch(case, preset)
    raw = official.run_on(case, model, batch)
    sides = [case.manifest["outputs"][f"cls.{i}"]["shape"][2:] for i in range(len(model.config.scales))]
    counts = [rows * columns * ANCHORS for rows, columns in sides]

    def levels(rows: Tensor) -> list[Tensor]:
        """(B, P, c) as the maps (B, 3 c, h, w) of all levels."""
        return [
            part.unflatten(1, (*side, ANCHORS)).flatten(3).permute(0, 3, 1, 2)
            for part, side in zip(rows.split(counts, 1), sides, strict=True)
        ]

    for name, rows in (("cls", raw.conf.roll(-1, 2)), ("reg", raw.loc), ("coeff", raw.mask)):
        for i, part in enumerate(levels(rows)):
            case.compare(f"{name}.{i}", part, *near(case))
    case.compare("proto", raw.proto.permute(0, 3, 1, 2), *near(case))
    case.compare("segm", raw.segm, *near(case))
    height, width = batch.images.shape[2:]
    corners = to_corners(raw.priors) * torch.tensor([width, height, width, height])
    for i, part in enumerate(corners.split(counts)):
        case.compare(f"priors.{i}", part, *near(case))


def _postprocess(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = official.model_of(case, preset, fill=False, **knobs)
    given, tolerance = case.manifest["input"], case.manifest["tolerance"]
    made = eval(given["predictions"], {"inputs": case.inputs, "seed": case.seed})

    def rows(maps: list[np.ndarray]) -> Tensor:
        """Maps (3 c, h, w) of all levels as (1, P, c)."""
        parts = [torch.from_numpy(m).permute(1, 2, 0).unflatten(2, (ANCHORS, -1)).flatten(0, 2) for m in maps]
        return torch.cat(parts)[None]

    size = (given["meta"]["padded_hw"][0], given["meta"]["padded_hw"][1])
    priors = model.priors([level.shape[1:] for level in made["cls"]], size)
    proto = torch.from_numpy(made["proto"]).permute(1, 2, 0)[None]
    raw = YolactRaw(rows(made["reg"]), rows(made["cls"]).roll(1, 2), rows(made["coeff"]), priors, proto, torch.zeros(1))
    with torch.no_grad():
        detected, selected = model.detect(raw), model.select(raw)
    kept = detected.scores[0] > 0
    extent = torch.tensor([size[1], size[0], size[1], size[0]])
    case.compare("detect.boxes", detected.boxes[0, kept] * extent, 0, tolerance["boxes"])
    case.compare("detect.scores", detected.scores[0, kept], 0, tolerance["scores"])
    assert np.array_equal(case.stored("detect.labels"), detected.labels[0, kept])
    case.compare("detect.coeffs", detected.coefficients[0, kept], 0, 1e-6)
    found = official.decoded(case, model, selected)
    official.compare_found(case, found)
    assert found.masks is not None
    official.compare_masks(case, found.masks.dense(), 0.001)
