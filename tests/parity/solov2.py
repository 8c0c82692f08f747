"""SOLOv2 against AdelaiDet. Every stored tensor of a case is compared; nothing is left out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskkit import zoo
from maskkit.config import change
from maskkit.data.loader import collate
from maskkit.engine.optim import learning_rate, make_optimizer
from maskkit.geometry.nms import mask_nms, matrix_nms
from maskkit.models.solov2 import Solov2, Solov2Config, Solov2Raw
from maskkit.nn import grid
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target
from maskkit.zoo.solov2 import rename
from tests.parity.goldens import Case, watched
from tests.parity.solo import decoded, official_masks

_PRESETS = {"R50_3x": "solov2-caffe-resnet50-3x", "R101_3x": "solov2-caffe-resnet101-3x"}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if "code" in case.manifest.get("inputs", {}):
        _matrix_nms(case)
    elif "gradnorm_names" in case.manifest:
        _train_step(case)
    elif "solver" in case.manifest:
        _optimizer(case)
    else:
        {"forward": _forward, "postprocess": _postprocess, "loss": _loss}[case.manifest["kind"]](case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _preset(case: Case) -> str:
    assert not case.config.get("overrides"), case.config
    return _PRESETS[case.config["file"].rpartition("/")[2].removesuffix(".yaml")]


def _model(case: Case, **knobs: Any) -> Solov2:
    config = zoo.preset(_preset(case)).model
    assert isinstance(config, Solov2Config)
    return Solov2(change(config, **knobs))


def _batch(case: Case, targets: list[Target]) -> Batch:
    """The images of a case, never resized, in the package's own batch."""
    given = case.manifest["inputs"]
    assert given["channel_order"] == "BGR"
    samples = []
    for i, (height, width) in enumerate(given["image_sizes_hw"]):
        image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed + i)).permute(2, 0, 1)
        target = targets[i] if targets else Target.of([], [])
        samples.append((image, target, ImageMeta(i, "", (height, width), (height, width))))
    preset = zoo.preset(_preset(case)).input
    assert preset.mean == tuple(given["mean"][::-1])
    assert preset.std == tuple(given["std"][::-1])
    return collate(samples, preset)


def _target(scene: dict[str, Any]) -> Target:
    return Target.of(scene["boxes"], scene["classes"], torch.from_numpy(scene["masks"]) > 0)


def _forward(case: Case) -> None:
    tolerance = case.manifest["tolerance"]
    close = (tolerance["rtol"], tolerance["atol"])
    model, images = case.filled(_preset(case)), _batch(case, []).images
    assert list(images.shape[2:]) == case.manifest["padded_hw"]
    with torch.no_grad(), watched(model.fpn) as seen:
        raw = model(images)
    levels = seen[0]
    for i, (level, split) in enumerate(zip(levels, grid.head_levels(levels), strict=True)):
        case.compare(f"fpn.p{i + 2}", level, *close)
        case.compare(f"split.{i}", split, *close)
    kernels = _levels(raw.kernels, model.config.grid.grids)
    for i, (scores, kernel) in enumerate(zip(_levels(raw.category, model.config.grid.grids), kernels, strict=True)):
        case.compare(f"cate.{i}", scores, *close)
        case.compare(f"kernel.{i}", kernel, *close)
    case.compare("mask_feature", raw.feature, *close)
    chosen = kernels[2][0, :, 3:6, 4:6].flatten(1)  # (D, 6)
    case.compare("mask_logits", torch.einsum("dn,dhw->nhw", chosen, raw.feature[0])[None], *close)


def _levels(cells: Tensor, grids: tuple[int, ...]) -> list[Tensor]:
    """(B, C, P) as a list of (B, C, S, S)."""
    return [p.unflatten(2, (s, s)) for p, s in zip(cells.split([s * s for s in grids], 2), grids, strict=True)]


def _raw(images: list[dict[str, Any]]) -> tuple[dict[str, list[Tensor]], Solov2Raw]:
    """The leaves of a case, and the raw output that they make."""
    leaves = {
        name: [
            torch.from_numpy(np.stack(level)).requires_grad_() for level in zip(*(p[name] for p in images), strict=True)
        ]
        for name in ("cate", "kernel")
    }
    leaves["feature"] = [torch.from_numpy(np.stack([p["feature"] for p in images])).requires_grad_()]
    flat = [torch.cat([t.flatten(2) for t in leaves[name]], 2) for name in ("cate", "kernel")]
    return leaves, Solov2Raw(flat[0], flat[1], leaves["feature"][0])


def _postprocess(case: Case) -> None:
    given, limits = case.manifest["inputs"], case.config["thresholds"]
    assert limits["mask"] == 0.5
    _, kernel, _, sigma = limits["nms"].split()
    model = _model(
        case,
        grid={
            "min_score": limits["score"],
            "candidates": 2 * limits["nms_pre"],
            "nms": kernel,
            "nms_sigma": float(sigma),
            "nms_top": limits["nms_pre"],
            "nms_min_score": limits["update"],
            "detections": limits["max_per_img"],
        },
    )
    scene = case.scenes.make_scene(case.seed, *given["image_hw"], case.numbers_in(given["scene"])[-1])
    _, raw = _raw([case.scenes.solov2_raw(case.seed, scene, *given["padded_hw"])])
    with torch.no_grad():
        scores = grid.cell_scores(raw.category, model.config.grid.grids)
        selected = model.select(raw)
    for i, part in enumerate(_levels(scores, model.config.grid.grids)):
        case.compare(f"point_nms.{i}", part.permute(0, 2, 3, 1), 1e-5, 1e-7)
    found = decoded(selected, given["image_hw"], given["output_hw"])
    case.compare("scores", found.scores, 0, case.manifest["tolerance"]["scores"])
    assert np.array_equal(case.stored("classes"), found.labels)
    assert not case.stored("boxes").any()  # officially there are none
    assert found.masks is not None
    official = case.unpacked("masks")
    twice = official_masks(selected, given["image_hw"], given["output_hw"])[: len(found)]
    once = found.masks.dense()  # ours: the border may run a pixel aside here and there
    for ours, slack in ((twice, 0), (once, 4)):
        apart, together = (ours ^ official).sum((1, 2)), (ours | official).sum((1, 2))
        allowed = (1 - case.manifest["tolerance"]["mask_iou"]) * together
        assert (apart <= np.maximum(allowed, slack)).all(), (apart, together)


def _matrix_nms(case: Case) -> None:
    made: dict[str, Any] = {"recipe": case.recipe, "scenes": case.scenes, "seed": case.seed}
    rng = case.recipe.rng_for("nms", case.seed)
    height, width, count = 60, 80, 40
    code = case.manifest["inputs"]["code"]
    assert f"{height}, {width}, {count}, num_classes=3" in code[1], code
    scene = made["scenes"].make_scene(case.seed + 8, height, width, count, num_classes=3)
    masks = np.concatenate([scene["masks"], np.roll(scene["masks"], 2, axis=2)])
    scores = np.sort(case.scenes.quantise(rng.uniform(0.1, 0.99, 2 * count)))[::-1].copy()
    order = rng.permutation(2 * count)
    masks, labels = (torch.from_numpy(a[order]) for a in (masks > 0, np.concatenate([scene["classes"]] * 2)))
    for kernel in ("gaussian", "linear"):
        decayed = matrix_nms(masks, labels, torch.from_numpy(scores), kernel=kernel)
        case.compare(kernel, decayed, 0, case.manifest["tolerance"]["scores"])
    assert np.array_equal(case.unpacked("mask_nms_keep"), mask_nms(masks, labels, 0.5))


def _scene_targets(case: Case, first_count: int, sizes: list[list[int]]) -> tuple[list[dict[str, Any]], list[Target]]:
    scenes = [case.scenes.make_scene(case.seed + 10 + i, h, w, first_count + i) for i, (h, w) in enumerate(sizes)]
    return scenes, [_target(s) for s in scenes]


def _loss(case: Case) -> None:
    model, given, relative = _model(case), case.manifest["inputs"], case.manifest["tolerance"]["rtol"]
    size, sizes = tuple(given["padded_hw"]), given["image_sizes_hw"]
    first = case.numbers_in(given["targets"].split("w_i,")[1])[0]
    scenes, targets = _scene_targets(case, first, sizes)
    leaves, raw = _raw([case.scenes.solov2_raw(case.seed + i, s, *size) for i, s in enumerate(scenes)])
    metas = [ImageMeta(i, "", (h, w), (size[0], size[1])) for i, (h, w) in enumerate(sizes)]
    batch = Batch(torch.zeros(len(sizes), 3, *size), torch.tensor(sizes), targets, metas)

    for b, target in enumerate(targets):
        lit = grid.assign_cells(target, (size[0], size[1]), model.config.grid)
        owner = grid.last_object(lit)
        assert np.array_equal(case.stored(f"cate_label.{b}"), torch.where(owner >= 0, target.labels[owner], 80))
        # officially level by level, ours object by object: the same pairs in another order
        levels = lit.split([s * s for s in model.config.grid.grids], 1)
        pairs = [torch.nonzero(part) for part in levels]
        assert [len(p) for p in pairs] == case.manifest["targets_per_level"][b]
        cells = torch.cat(
            [p[:, 1] + at for p, at in zip(pairs, grid.first_cells(model.config.grid.grids), strict=False)]
        )
        order = case.stored(f"grid_order.{b}")
        starts = np.repeat(grid.first_cells(model.config.grid.grids)[:-1], [len(p) for p in pairs])
        assert np.array_equal(order, cells) or np.array_equal(order, cells.numpy() - starts)
        shrunk = grid.shrink(target, batch.sizes[b], size[0], (raw.feature.shape[2], raw.feature.shape[3]))
        truth = shrunk[torch.cat([p[:, 0] for p in pairs])]
        assert np.array_equal(case.unpacked(f"ins_label.{b}"), truth.bool())

    losses = model.loss_terms(raw, batch)
    terms = {"loss_ins": ("mask", ("kernel", "feature")), "loss_cate": ("classification", ("cate",))}
    for official, (ours, groups) in terms.items():
        case.compare(official, losses[ours], relative, case.manifest["tolerance"]["atol"])
        for group in groups:
            gradients = torch.autograd.grad(losses[ours], leaves[group], retain_graph=True)
            norms = torch.stack([g.norm() for g in gradients])
            case.compare(f"gradnorm.{official}.{group}", norms, 10 * relative, 1e-6)


def _train_step(case: Case) -> None:
    model, tolerance = case.filled(_preset(case)).train(), case.manifest["tolerance"]
    given = case.manifest["inputs"]
    first = case.numbers_in(given["targets"].split("w_i,")[1])[0]
    _, targets = _scene_targets(case, first, given["image_sizes_hw"])
    batch = _batch(case, targets)
    losses = model.loss_terms(model(batch.images), batch)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    case.compare("loss_ins", losses["mask"], tolerance["losses_rtol"])
    case.compare("loss_cate", losses["classification"], tolerance["losses_rtol"])
    case.compare("loss_total", total, tolerance["losses_rtol"])
    parameters = dict(model.named_parameters())
    names = _ours(case.manifest["gradnorm_names"])
    assert set(names) == {n for n, p in parameters.items() if p.requires_grad}
    norms = np.array([_norm(parameters[n]) for n in names])
    assert np.allclose(norms, case.stored("gradnorm"), rtol=tolerance["gradnorm_rtol"], atol=1e-6)


def _norm(parameter: nn.Parameter) -> float:
    assert parameter.grad is not None
    return parameter.grad.norm().item()


def _ours(names: list[str]) -> list[str]:
    """Our names of official parameters; the state gets axes enough for a stem that is turned to RGB."""
    return list(rename({n: torch.zeros(1, 3) for n in names}))


def _optimizer(case: Case) -> None:
    solver, train = case.manifest["solver"], zoo.preset(_preset(case)).train
    model, total = _model(case), solver["MAX_ITER"]
    names = {p: n for n, p in model.named_parameters()}
    groups = make_optimizer(model, train).param_groups
    found = {names[p]: (train.lr * g["lr_factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    ours = _ours(case.manifest["names"])
    assert set(found) == set(ours)
    assert not set(found) & set(_ours(case.manifest["frozen"]))
    case.compare("lr", np.array([found[n][0] for n in ours]), 1e-6)
    case.compare("weight_decay", np.array([found[n][1] for n in ours]), 1e-6)
    factors = [learning_rate(step, total, train) / train.lr for step in case.manifest["iterations"]]
    case.compare("factor", np.array(factors), 1e-6)
    assert train.momentum == solver["MOMENTUM"]
    assert train.batch == solver["IMS_PER_BATCH"]
