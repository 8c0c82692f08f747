"""SOLO, Decoupled SOLO and SOLOv2 against WXinlong/SOLO. Every stored tensor of a case is compared."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.config import InputConfig, change
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops
from maskkit.decode import OverInput, decode
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import to_arrays
from maskkit.models.solo import Solo, SoloRaw
from maskkit.models.solov2 import Solov2, Solov2Raw
from maskkit.nn import grid
from maskkit.prediction import Categories, ImageMeta, Instances
from maskkit.targets import Batch, Target, full_sizes
from tests.parity.goldens import Case, watched

CLOSE = (5e-4, 1e-5)
_HEADS = {"SOLOHead": "vanilla", "DecoupledSOLOHead": "decoupled", "DecoupledSOLOLightHead": "decoupled-light"}
_DCN = {"DCN": "v1", "DCNv2": "v2"}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess, "LOSS": _loss}[case.manifest["kind"]](case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _knobs(case: Case) -> tuple[str, dict[str, Any]]:
    """The preset nearest to the case, and what its manifest says otherwise."""
    given = case.config
    head, backbone = given["bbox_head"], given.get("backbone", {"depth": 50})
    knobs: dict[str, Any] = {
        "backbone": {"name": f"resnet{backbone['depth']}"},
        "num_classes": head["num_classes"] - 1,
        "width": head["in_channels"],
        "grid": {
            "grids": tuple(head["num_grids"]),
            "scale_ranges": tuple(map(tuple, head["scale_ranges"])),
            "min_area": tuple(head["strides"]),
            "centre": head["sigma"],
        },
        "mask_weight": head["loss_ins"]["loss_weight"],
        "head_width": head["seg_feat_channels"],
        "head_convs": head["stacked_convs"],
        "deformable": _DCN[backbone["dcn"]["type"]] if backbone.get("dcn") else "none",
    }
    assert bool(head.get("use_dcn_in_tower")) == (knobs["deformable"] != "none")
    if head["type"] != "SOLOv2Head":
        return "solo-resnet50-1x", {**knobs, "head": _HEADS[head["type"]]}
    knobs["kernel"] = head["ins_out_channels"]
    if branch := given.get("mask_feat_head"):
        knobs |= {"feature_width": branch["out_channels"], "deformable_feature": "conv_cfg" in branch}
    return "solov2-resnet50-1x", knobs


def _model(preset: str, **knobs: Any) -> Any:
    return zoo.model_class(preset)(change(zoo.preset(preset).model, **knobs))  # type: ignore[call-arg]


def _forward(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = case.filled(preset, **knobs)
    images = _input(case, replace(zoo.preset(preset).input, size=tuple(sorted(case.manifest["input"]["img_scale"]))))
    case.compare("input", images, 1e-4, 1e-5)
    grids = knobs["grid"]["grids"]
    with torch.no_grad(), watched(model.backbone, model.fpn) as seen:
        trained, raw = model.train()(images), model.eval()(images)
    features, levels = seen
    for i, feature in enumerate(features.values()):
        case.compare(f"c{i + 2}", feature, 1e-4, 1e-5)
    for i, level in enumerate(levels):
        case.compare(f"p{i + 2}", level, 1e-4, 1e-5)
    for i, part in enumerate(_levels(trained.category, grids)):
        case.compare(f"train.cate_pred.{i}", part, *CLOSE)
    for i, part in enumerate(_levels(grid.cell_scores(raw.category, grids), grids)):
        _compare_scores(case, f"eval.cate_pred.{i}", part.permute(0, 2, 3, 1))
    if isinstance(model, Solov2):
        for mode, made in (("train", trained), ("eval", raw)):
            for i, part in enumerate(_levels(made.kernels, grids)):
                case.compare(f"{mode}.kernel_pred.{i}", part, *CLOSE)
        case.compare("mask_feat", raw.feature, *CLOSE)
        return
    axes = ("",) if knobs["head"] == "vanilla" else ("_x", "_y")
    channels = [s * s if knobs["head"] == "vanilla" else 2 * s for s in grids]
    soft = model.soft_masks(raw).split(channels, 1)
    for mode, made in (("train", trained.masks), ("eval", soft)):
        for i, masks in enumerate(made):
            for axis, part in zip(axes, masks.chunk(len(axes), 1), strict=True):
                case.compare(f"{mode}.ins_pred{axis}.{i}", part, *CLOSE)


def _levels(cells: Tensor, grids: tuple[int, ...]) -> list[Tensor]:
    """(B, C, P) as a list of (B, C, S, S)."""
    return [p.unflatten(2, (s, s)) for p, s in zip(cells.split([s * s for s in grids], 2), grids, strict=True)]


def _compare_scores(case: Case, name: str, ours: Tensor) -> None:
    """Scores after point NMS: all near, but for single ones that a tie has switched on or off."""
    described = case.manifest["outputs"][name]
    assert list(ours.shape) == described["shape"]
    official = case.stored(name).reshape(-1)
    off = np.abs(case.part(name, ours) - official) > CLOSE[0] * described["absmax"]
    assert off.sum() <= 1e-3 * len(official), f"{name}: {off.sum()} of {len(official)} differ"


def _input(case: Case, given: InputConfig) -> Tensor:
    """The network's input, by the package's own path."""
    height, width, seed = case.numbers_in(case.manifest["input"]["image"])[:3]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, seed)).permute(2, 0, 1)
    sample = (image, Target.of([], []), ImageMeta(1, "", (height, width), (height, width)))
    batch = collate([apply(eval_ops(given), sample, np.random.default_rng(0))], given)
    rows, columns, _ = case.manifest["input"]["resized"]
    assert batch.sizes[0].tolist() == [rows, columns]
    return batch.images


def _postprocess(case: Case) -> None:
    given = case.config
    test, grids = given["test_cfg"], tuple(given["num_grids"])
    assert test["mask_thr"] == 0.5
    knobs = {
        "grids": grids,
        "min_area": tuple(given["strides"]),
        "min_score": test["score_thr"],
        "candidates": 2 * case.manifest["input"]["candidates_above_score_thr"],
        "nms": test["kernel"],
        "nms_sigma": test["sigma"],
        "nms_top": test["nms_pre"],
        "nms_min_score": test["update_thr"],
        "detections": test["max_per_img"],
    }
    call = case.manifest["input"]["predictions"]
    made = eval(call, {"inputs": case.inputs})
    if "solov2" in call:
        scores, kernels, feature = made
        raw = Solov2Raw(torch.zeros(0), _cells(kernels), torch.from_numpy(feature))
        select = lambda: _model("solov2-resnet50-1x", grid=knobs).select_from(_scores(scores), raw)  # noqa: E731
    elif "decoupled" in call:
        x, y, scores = made
        soft = torch.from_numpy(np.concatenate([part for pair in zip(x, y, strict=True) for part in pair], 1))
        select = lambda: _model("solo-decoupled-resnet50-1x", grid=knobs).select_from(_scores(scores), soft)  # noqa: E731
    else:
        soft, scores = torch.from_numpy(np.concatenate(made[0], 1)), made[1]
        select = lambda: _model("solo-resnet50-1x", grid=knobs).select_from(_scores(scores), soft)  # noqa: E731
    with torch.no_grad():
        selected = select()
    found = decoded(selected, given["img_shape"], given["ori_shape"])
    assert len(found) == int(case.stored("final_count")[0])
    case.compare("score", found.scores, 0, 1e-5)
    assert np.array_equal(case.stored("label"), found.labels)
    assert found.masks is not None
    _compare_masks(case, official_masks(selected, given["img_shape"], given["ori_shape"])[: len(found)], 0)
    # ours are interpolated once, not twice: the border may run a pixel aside here and there
    _compare_masks(case, found.masks.dense(), 0.0002)


def _compare_masks(case: Case, masks: np.ndarray, share: float) -> None:
    """A tenth of a percent of a mask, or ``share`` of the whole image, may differ."""
    allowed = np.maximum(0.001 * case.stored("masks_area"), share * masks[0].size)
    assert (np.abs(masks.sum((1, 2)) - case.stored("masks_area")) <= allowed).all()
    assert (np.abs(masks.sum(2) - case.stored("masks_rows")).sum(1) <= allowed).all()
    assert (np.abs(masks.sum(1) - case.stored("masks_cols")).sum(1) <= allowed).all()
    sample = case.sample("masks_sample", masks)
    assert ((sample != case.stored("masks_sample").astype(bool)).sum((1, 2)) <= allowed).all()


def official_masks(selected: ObjectMasks[Tensor], seen: list[int], original: list[int]) -> np.ndarray:
    """The masks of one image at its original size, interpolated as officially: to the input, then to that."""
    height, width = selected.masks.shape[2:]
    large = grid.resize(selected.masks, (4 * height, 4 * width))[:, :, : seen[0], : seen[1]]
    return (grid.resize(large, (original[0], original[1]))[0] > 0.5).numpy()


def decoded(selected: ObjectMasks[Tensor], seen: list[int], original: list[int]) -> Instances:
    """What `decode` makes of the masks of one image, whose input of size ``seen`` was padded to a multiple of 32."""
    height, width = selected.masks.shape[2:]
    scale = np.diag([original[1] / seen[1], original[0] / seen[0]])
    meta = ImageMeta(
        1, "", (original[0], original[1]), (4 * height, 4 * width), np.concatenate([scale, np.zeros((2, 1))], 1)
    )
    categories = Categories.of(map(str, range(80)))
    found = decode(OverInput(), to_arrays(selected), [meta], categories)[0].instances
    assert found is not None
    return found


def _scores(levels: list[np.ndarray]) -> Tensor:
    """(1, S, S, C) per level as (1, C, P)."""
    return torch.cat([torch.from_numpy(level).flatten(1, 2) for level in levels], 1).transpose(1, 2)


def _cells(levels: list[np.ndarray]) -> Tensor:
    """(B, C, S, S) per level as (B, C, P)."""
    return torch.cat([torch.from_numpy(level).flatten(2) for level in levels], 2)


def _loss(case: Case) -> None:
    preset, knobs = _knobs(case)
    model = _model(preset, **knobs)
    made = eval(case.manifest["input"]["predictions"], {"inputs": case.inputs})
    leaves: dict[str, list[Tensor]]
    if isinstance(model, Solov2):
        leaves = dict(zip(("cate", "kernel", "feature"), (*made[:2], [made[2]]), strict=True))
    else:
        leaves = dict(zip(("ins", "cate") if len(made) == 2 else ("ins_x", "ins_y", "cate"), made, strict=True))
    leaves = {n: [torch.from_numpy(t).requires_grad_() for t in tensors] for n, tensors in leaves.items()}
    category = torch.cat([t.flatten(2) for t in leaves["cate"]], 2)
    raw: Any
    if isinstance(model, Solov2):
        raw = Solov2Raw(category, torch.cat([t.flatten(2) for t in leaves["kernel"]], 2), leaves["feature"][0])
    elif "ins" in leaves:
        raw = SoloRaw(category, *leaves["ins"])
    else:
        raw = SoloRaw(category, *(torch.cat(p, 1) for p in zip(leaves["ins_x"], leaves["ins_y"], strict=True)))
    batch = _batch(*eval(case.manifest["input"]["targets"], {"inputs": case.inputs}))

    _compare_targets(case, model, raw, batch)
    losses = model.loss_terms(raw, batch)
    assert losses["mask/projection"] == 0
    assert losses["mask/pairwise"] == 0
    case.compare("loss_ins", losses["mask"], 1e-4)
    case.compare("loss_cate", losses["classification"], 1e-4)
    flat = [(n, i) for n, tensors in leaves.items() for i in range(len(tensors))]
    gradients = [
        torch.autograd.grad(losses[term], [leaves[n][i] for n, i in flat], retain_graph=True, allow_unused=True)
        for term in ("mask", "classification")
    ]
    for (name, level), *parts in zip(flat, *gradients, strict=True):
        both = [torch.zeros(1) if g is None else g for g in parts]
        norms = np.array([g.norm().item() for g in both])
        official = case.stored(f"grad_norm.{name}.{level}")
        assert np.allclose(norms, official, rtol=1e-3, atol=1e-9), (name, level, norms, official)
        if f"grad.{name}.{level}" in case.outputs:
            case.compare(f"grad.{name}.{level}", both[0] + both[1], 1e-3)


def _compare_targets(case: Case, model: Solo | Solov2, raw: Any, batch: Batch) -> None:
    config = model.config.grid
    size = (batch.images.shape[2], batch.images.shape[3])
    first = grid.first_cells(config.grids)
    lit = [grid.assign_cells(t, size, config) for t in batch.targets]
    for level, side in enumerate(config.grids):
        part = slice(first[level], first[level + 1])
        classes, areas, order = [], [], []
        for b, target in enumerate(batch.targets):
            owner = grid.last_object(lit[b])[part]
            classes.append(torch.where(owner >= 0, target.labels[owner] + 1, 0).view(side, side))
            if isinstance(model, Solov2):
                objects, cells = torch.nonzero(lit[b][:, part], as_tuple=True)
                shape = raw.feature.shape[2:]
                order += [(b, int(cell)) for cell in cells]
            else:
                objects = owner[owner >= 0]
                shape = raw.masks[level].shape[2:]
            truth = grid.shrink(target, batch.sizes[b], size[0], (shape[0], shape[1]))[objects]
            areas += [(b, i, float(mask.sum())) for i, mask in enumerate(truth)]
        assert np.array_equal(case.stored(f"target.cate.{level}"), torch.stack(classes))
        assert np.array_equal(case.stored(f"target.mask_area.{level}"), np.array(areas).reshape(-1, 3))
        if isinstance(model, Solov2):
            assert np.array_equal(case.stored(f"target.grid_order.{level}"), np.array(order).reshape(-1, 2))


def _batch(boxes: list[np.ndarray], labels: list[np.ndarray], masks: list[np.ndarray]) -> Batch:
    targets = [
        Target.of(b, torch.from_numpy(k) - 1, torch.from_numpy(m) > 0)
        for b, k, m in zip(boxes, labels, masks, strict=True)
    ]
    size = (masks[0].shape[1], masks[0].shape[2])
    metas = [ImageMeta(i, "", size, size) for i in range(len(targets))]
    return Batch(torch.zeros(len(targets), 3, *size), full_sizes(torch.zeros(len(targets), 3, *size)), targets, metas)
