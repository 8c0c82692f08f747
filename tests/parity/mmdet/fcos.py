"""FCOS, CondInst and BoxInst of mmdetection."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit.geometry.resample_tensors import resize
from maskkit.nn.dynamic_mask import DynamicMaskRaw, MaskBranchRaw, aligned_upsample, dynamic_masks, find
from maskkit.nn.fcos import FcosRaw
from maskkit.nn.fcos_targets import locate
from tests.parity.goldens import Case
from tests.parity.mmdet import official
from tests.parity.mmdet.official import near


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess}[case.manifest["kind"]](case)


def _knobs(case: Case) -> tuple[str, dict[str, Any]]:
    """The preset of the case, and what its official configuration says otherwise."""
    model = case.config["model"]
    head, test, depth = model["bbox_head"], case.config.get("test_cfg", model["test_cfg"]), model["backbone"]["depth"]
    detector: dict[str, Any] = {
        "width": head["feat_channels"],
        "tower_convs": head["stacked_convs"],
        "strides": tuple(head["strides"]),
        "min_score": test["score_thr"],
        "candidates": test["nms_pre"],
        "nms_threshold": test["nms"]["iou_threshold"],
        "detections": test["max_per_img"],
    }
    knobs: dict[str, Any] = {
        "num_classes": head["num_classes"],
        "backbone": {"name": f"resnet{depth}", "stride_in_1x1": model["backbone"]["style"] == "caffe"},
        "detector": detector,
    }
    if model["type"] == "FCOS":
        improved = head.get("norm_on_bbox", False)
        for name in ("centerness_on_reg", "center_sampling", "conv_bias"):
            assert head.get(name, improved) == improved
        return "fcos-resnet50-mmdet-1x" if improved else "fcos-plain-resnet50-mmdet-1x", knobs
    mask = model["mask_head"]
    knobs["masks"] = {
        "branch_width": mask["mask_feature_head"]["feat_channels"],
        "branch_convs": mask["mask_feature_head"]["num_stacked_convs"],
        "mask_channels": mask["mask_feature_head"]["out_channels"],
        "head_width": mask["feat_channels"],
        "head_convs": mask["num_layers"],
    }
    return f"{model['type'].lower()}-resnet50-mmdet-1x", knobs


def _forward(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = official.model_of(case, preset, **knobs)
    raw = official.run_on(case, model, official.image_batch(case, preset))
    found: FcosRaw = raw.detector if isinstance(raw, DynamicMaskRaw) else raw
    for i, stride in enumerate(model.config.detector.strides):
        case.compare(f"cls.{i}", found.logits[i], *near(case))
        case.compare(f"reg.{i}", found.distances[i] * stride, *near(case))
        case.compare(f"ctr.{i}", found.quality[i], *near(case))
    if not isinstance(raw, DynamicMaskRaw):
        return
    for i, parameters in enumerate(found.extra):
        case.compare(f"param.{i}", parameters, *near(case))
    case.compare("mask_feat", raw.branch.features, *near(case))
    strides, widths = model.config.detector.strides, model.config.masks.head_widths
    masks = []
    for level, row, column in case.manifest["instances"]:
        s = strides[level]
        xy = torch.tensor([[column * s + s // 2.0, row * s + s // 2.0]])
        filters = found.extra[level][0, :, row, column][None]
        masks.append(dynamic_masks(filters, xy, torch.tensor([float(s)]), raw.branch.features[0], strides[0], widths))
    with torch.no_grad():
        case.compare("mask_logits", aligned_upsample(torch.cat(masks)[None], 2)[0], *near(case))


def _postprocess(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = official.model_of(case, preset, fill=False, **knobs)
    given = case.manifest["input"]
    names: dict[str, Any] = {"scenes": case.scenes, "inputs": case.inputs, "seed": case.seed}
    for name in ("scene", "predictions", "parameters"):
        if name in given:
            exec(given[name], names)
    levels = {name: tuple(torch.from_numpy(level)[None] for level in made) for name, made in names["raw"].items()}
    extents = torch.tensor([given["meta"]["img_shape"][::-1]]).float()
    found = FcosRaw(levels["logits"], levels["reg"], levels["ctr"], levels["top"], extents)
    with torch.no_grad():
        if "mask_feat" not in given:
            official.compare_found(case, official.decoded(case, model, model.select(found)))
            return
        branch = MaskBranchRaw(torch.from_numpy(eval(given["mask_feat"], names)), None)
        _compare_masks(case, model, DynamicMaskRaw(found, branch))


def _compare_masks(case: Case, model: Any, raw: DynamicMaskRaw) -> None:
    tolerance, meta = case.manifest["tolerance"], case.manifest["input"]["meta"]
    found, soft = find(raw, model.config.detector, model.config.masks)
    kept = found.scores[0] > 0
    case.compare("detect.boxes", found.boxes[0, kept], 0, tolerance["boxes"])
    case.compare("detect.scores", found.scores[0, kept], 0, tolerance["scores"])
    assert np.array_equal(case.stored("detect.labels"), found.labels[0, kept])
    locations = locate(raw.detector.logits, model.config.detector.strides)
    where = found.locations[0, kept]
    assert np.array_equal(case.stored("detect.points"), locations.xy[where])
    assert np.array_equal(case.stored("detect.strides"), locations.stride[where])
    at, widths = (locations.xy[where], locations.stride[where]), model.config.masks.head_widths
    logits = dynamic_masks(found.extra[0, kept], *at, raw.branch.features[0], model.config.detector.strides[0], widths)
    case.compare("mask_logits", aligned_upsample(logits[None], 2)[0], 1e-5, 1e-5)

    chosen = official.decoded(case, model, model.select(raw))
    official.compare_found(case, chosen)
    official.compare_masks(case, _official_masks(soft[:, kept], meta)[: len(chosen)], 0.002)
    assert chosen.masks is not None
    # ours are interpolated once, not twice: the border may run a pixel aside here and there
    official.compare_masks(case, chosen.masks.dense(), 0.002, 0.0002)


def _official_masks(soft: Tensor, meta: dict[str, Any]) -> np.ndarray:
    """The masks of one image at its original size, interpolated as officially: to the input, then to that."""
    large = aligned_upsample(soft, 4)[:, :, : meta["img_shape"][0], : meta["img_shape"][1]]
    return (resize(large, tuple(meta["ori_shape"]))[0] > 0.5).numpy()
