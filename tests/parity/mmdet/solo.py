"""SOLO, Decoupled SOLO and SOLOv2 of mmdetection."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit.geometry.resample_tensors import resize
from maskkit.models.solov2 import Solov2Raw
from maskkit.nn import grid
from tests.parity.goldens import Case
from tests.parity.mmdet import official
from tests.parity.mmdet.official import near

_PRESETS = {
    "SOLOHead": "solo-resnet50-3x",
    "DecoupledSOLOHead": "solo-decoupled-resnet50-3x",
    "DecoupledSOLOLightHead": "solo-decoupled-light-resnet50-512",
    "SOLOV2Head": "solov2-resnet50-3x",
}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess}[case.manifest["kind"]](case)


def _knobs(case: Case) -> tuple[str, dict[str, Any]]:
    """The preset of the case, and what its official configuration says otherwise."""
    backbone, given = (case.config["model"][part] for part in ("backbone", "mask_head"))
    knobs: dict[str, Any] = {
        "backbone": {"name": f"resnet{backbone['depth']}"},
        "num_classes": given["num_classes"],
        "head_convs": given["stacked_convs"],
        "head_width": given["feat_channels"],
        "grid": {
            "grids": tuple(given["num_grids"]),
            "scale_ranges": tuple(tuple(r) for r in given["scale_ranges"]),
            "min_area": tuple(given["strides"]),
            "centre": given["pos_scale"],
        },
    }
    if "dcn" in backbone:
        assert backbone["dcn"]["type"] == given["dcn_cfg"]["type"] == "DCNv2"
        knobs["deformable"] = "v2"
    if feature := given.get("mask_feature_head"):
        knobs |= {
            "kernel": feature["out_channels"],
            "feature_width": feature["feat_channels"],
            "deformable_last": "dcn" in backbone and not given.get("dcn_apply_to_all_conv", True),
            "deformable_feature": "conv_cfg" in feature,
        }
    return _PRESETS[given["type"]], knobs


def _forward(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = official.model_of(case, preset, **knobs)
    batch = official.image_batch(case, preset)
    raw = official.run_on(case, model, batch)
    grids = knobs["grid"]["grids"]
    logits = _levels(raw.category, grids)
    if isinstance(raw, Solov2Raw):
        for i, (part, kernels) in enumerate(zip(logits, _levels(raw.kernels, grids), strict=True)):
            case.compare(f"cls.{i}", part, *near(case))
            case.compare(f"kernel.{i}", kernels, *near(case))
        case.compare("mask_feat", raw.feature, *near(case))
        kernels = _levels(raw.kernels, grids)[2][0, :, 3:6, 4:6].flatten(1)  # as the manifest describes `mask_logits`
        case.compare("mask_logits", torch.einsum("dm,dhw->mhw", kernels, raw.feature[0])[None], *near(case))
        return
    for i, (part, scores) in enumerate(zip(logits, _levels(grid.cell_scores(raw.category, grids), grids), strict=True)):
        case.compare(f"train.cls.{i}", part, *near(case))
        _compare_scores(case, f"eval.cls.{i}", scores)
    axes = ("",) if model.config.head == "vanilla" else ("_x", "_y")
    channels = [s * s if axes == ("",) else 2 * s for s in grids]
    for mode, levels in (("train", raw.masks), ("eval", model.soft_masks(raw).split(channels, 1))):
        for i, masks in enumerate(levels):
            for axis, part in zip(axes, masks.chunk(len(axes), 1), strict=True):
                case.compare(f"{mode}.mask{axis}.{i}", part, *near(case))


def _levels(cells: Tensor, grids: tuple[int, ...]) -> list[Tensor]:
    """(B, C, P) as a list of (B, C, S, S)."""
    return [p.unflatten(2, (s, s)) for p, s in zip(cells.split([s * s for s in grids], 2), grids, strict=True)]


def _compare_scores(case: Case, name: str, ours: Tensor) -> None:
    """Scores after point NMS: all near, but for single ones that a tie has switched on or off, as the manifest says."""
    described, (relative, absolute) = case.manifest["outputs"][name], near(case)
    assert list(ours.shape) == described["shape"]
    off = np.abs(case.part(name, ours) - case.stored(name).reshape(-1)) > relative * described["absmax"] + absolute
    assert off.sum() <= 1e-3 * off.size, f"{name}: {off.sum()} of {off.size} differ"


def _postprocess(case: Case) -> None:
    preset, knobs = _knobs(case)
    test = case.config["test_cfg"]
    assert test["mask_thr"] == 0.5
    given = case.manifest["input"]
    names = {"scenes": case.scenes, "inputs": case.inputs, "seed": case.seed}
    names["sc"] = eval(given["scene"].removeprefix("sc = "), names)
    made = eval(given["predictions"], names)
    cells = {name: _cells(made[name]) for name in ("cate", "cls", "kernel") if name in made}
    scores = grid.cell_scores(cells["cate"], knobs["grid"]["grids"]) if "cate" in cells else cells["cls"]
    knobs["grid"] |= {
        "min_score": test["score_thr"],
        "candidates": int((scores > test["score_thr"]).sum()),  # the official code has no limit
        "nms": test["kernel"],
        "nms_sigma": test["sigma"],
        "nms_top": test["nms_pre"],
        "nms_min_score": test["filter_thr"],
        "detections": test["max_per_img"],
    }
    model = official.model_of(case, preset, fill=False, **knobs)
    with torch.no_grad():
        if "feature" in made:
            raw = Solov2Raw(cells["cate"], cells["kernel"], torch.from_numpy(made["feature"])[None])
            selected = model.select(raw)
        else:
            parts = (
                made["mask"] if "mask" in made else [p for pair in zip(made["x"], made["y"], strict=True) for p in pair]
            )
            selected = model.select_from(scores, torch.from_numpy(np.concatenate(parts))[None])
    found = official.decoded(case, model, selected)
    official.compare_found(case, found)
    official.compare_masks(case, _official_masks(selected, given["meta"])[: len(found)], 0.001)
    assert found.masks is not None
    # ours are interpolated once, not twice: the border may run a pixel aside here and there
    official.compare_masks(case, found.masks.dense(), 0.001, 0.0002)


def _cells(levels: list[np.ndarray]) -> Tensor:
    """(C, S, S) per level as (1, C, P)."""
    return torch.cat([torch.from_numpy(level).flatten(1) for level in levels], 1)[None]


def _official_masks(selected: Any, meta: dict[str, Any]) -> np.ndarray:
    """The masks of one image at its original size, interpolated as officially: to the input, then to that."""
    height, width = selected.masks.shape[2:]
    large = resize(selected.masks, (4 * height, 4 * width))[:, :, : meta["img_shape"][0], : meta["img_shape"][1]]
    return (resize(large, tuple(meta["ori_shape"]))[0] > 0.5).numpy()
