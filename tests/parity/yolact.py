"""YOLACT against dbolya/yolact. Every stored tensor of a case is compared; nothing is left out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints.outline import build
from maskkit.config import InputConfig, RunConfig, change
from maskkit.data.loader import collate
from maskkit.data.transforms import eval_ops
from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.models.yolact import Yolact, YolactDetections, YolactRaw
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from maskkit.zoo.yolact import rename
from tests.parity.goldens import Case, watched

_PRESETS = {
    "yolact_base_config": "yolact-resnet101",
    "yolact_im400_config": "yolact-resnet101-400",
    "yolact_im700_config": "yolact-resnet101-700",
    "yolact_resnet50_config": "yolact-resnet50",
    "yolact_resnet50_pascal_config": "yolact-resnet50-pascal",
    "yolact_darknet53_config": "yolact-darknet53",
    "yolact_plus_base_config": "yolact-plus-resnet101",
    "yolact_plus_resnet50_config": "yolact-plus-resnet50",
}
_NMS = {"fast": "fast", "cross_class": "cross-class", "traditional": "traditional"}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess, "LOSS": _loss}[case.manifest["kind"]](case, monkeypatch)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _knobs(case: Case) -> tuple[str, dict[str, Any]]:
    """The preset of the case, and what its manifest says otherwise."""
    given, knobs = case.config, dict[str, Any]()
    knobs["num_classes"] = given["num_classes"] - 1
    if "pred_scales" in given:
        knobs["scales"] = tuple(tuple(float(s) for s in level) for level in given["pred_scales"])
        knobs["ratios"] = tuple(float(r) for r in given["pred_aspect_ratios"][0][0])
        knobs["square_anchors"] = given["use_square_anchors"]
    return _PRESETS[given["name"]], knobs


def _model(case: Case, **more: Any) -> Yolact:
    """The model with weights of any value; the mask-IoU net has those of the case, where there are some."""
    name, knobs = _knobs(case)
    model: Any = build(RunConfig(name, change(zoo.preset(name).model, **knobs, **more)))
    if model.maskiou is not None:
        model.maskiou.load_state_dict({n.removeprefix("maskiou."): t for n, t in rename(case.weights()).items()})
    return model


def _priors(model: Yolact, size: int) -> Tensor:
    sides = [size]
    for _ in range(7):
        sides.append(-(-sides[-1] // 2))
    return model.priors([(s, s) for s in sides[3 : 3 + len(model.config.scales)]], (size, size))


def _forward(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name, knobs = _knobs(case)
    model: Yolact = case.filled(name, **knobs)
    given = zoo.preset(name).input
    size = case.config["max_size"]
    height, width, seed = case.numbers_in(case.manifest["input"]["image"])[:3]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, seed)).permute(2, 0, 1)
    images = _preprocess(image, replace(given, size=(size, size))).images
    case.compare("input", images, 1e-4, 1e-5)

    with torch.no_grad(), watched(model.backbone, model.fpn) as seen:
        raw = model(images)
    features, levels = seen
    close = (1e-4, 1e-5)
    for key, stride in (("c3", 8), ("c4", 16), ("c5", 32)):
        case.compare(f"eval.{key}", features[stride], *close)
    for i, level in enumerate(levels):
        case.compare(f"eval.p{i + 3}", level, *close)
    case.compare("eval.loc", raw.loc, *close)
    case.compare("eval.conf", raw.conf.softmax(2), *close)
    case.compare("eval.mask", raw.mask, *close)
    case.compare("eval.proto", raw.proto, *close)
    case.compare("eval.priors", raw.priors, 0, 1e-6)
    case.compare("eval.priors_first", raw.priors[:12], 0, 1e-6)
    case.compare("eval.priors_last", raw.priors[-12:], 0, 1e-6)
    if "eval.maskiou" in case.outputs:
        assert model.maskiou is not None
        masks = case.recipe.seeded_array("maskiou_input", (6, 1, *raw.proto.shape[1:3]), case.seed)
        with torch.no_grad():
            case.compare("eval.maskiou", model.maskiou(torch.from_numpy(np.clip(0.5 + 0.3 * masks, 0, 1))), *close)
    if any(n.startswith("train.") for n in case.outputs):
        model.train()  # batch norm of the preset is frozen
        with torch.no_grad():
            raw = model(images)
        case.compare("train.conf", raw.conf, *close)
        case.compare("train.segm", raw.segm, *close)
    if any(n.startswith("trainbn.") for n in case.outputs):
        model = case.filled(name, **knobs, backbone={"norm": "train"}).train()
        with torch.no_grad():
            raw = model(torch.cat([images, images.flip(3)]))
        for field in ("loc", "conf", "mask", "proto", "segm"):
            case.compare(f"trainbn.{field}", getattr(raw, field), 1e-3)
        state = model.state_dict()
        for key in [n for n in case.outputs if "running_" in n]:
            official = {key.removeprefix("trainbn."): torch.zeros(1)}
            (ours,) = published_name(official)
            case.compare(key, state[ours], 1e-3)


def published_name(state: dict[str, Tensor]) -> list[str]:
    return list(rename(state))


def _preprocess(image: Tensor, given: InputConfig) -> Batch:
    """The package's own evaluation path: operations, then collate."""
    height, width = image.shape[1:]
    sample = (image, Target.of([], []), ImageMeta(1, "", (height, width), (height, width)))
    for operation in eval_ops(given):
        sample = operation(*sample, np.random.default_rng(0))
    return collate([sample], given)


def _postprocess(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case.config
    size = given["max_size"]
    model = _model(
        case,
        nms=_NMS[given["nms"]],
        nms_top=given["nms_top_k"],
        min_score=given["nms_conf_thresh"],
        nms_threshold=given["nms_thresh"],
        detections=given["max_num_detections"],
        rescore=given["rescore_mask"],
    )
    seed, count = case.numbers_in(case.manifest["input"]["predictions"])[:2]
    priors = _priors(model, size)
    made = case.inputs.detections(priors.numpy(), seed=seed, count=count, num_classes=given["num_classes"])
    tensors = {k: torch.from_numpy(v) for k, v in made.items()}
    raw = YolactRaw(
        loc=tensors["loc"],
        conf=tensors["conf"].log(),  # the official detection step gets probabilities
        mask=tensors["mask"],
        priors=priors,
        proto=tensors["proto"],
        segm=torch.zeros(1, given["num_classes"] - 1, 1, 1),
    )
    with torch.no_grad():
        found = model.detect(raw)
        selected = model.select(raw)
    kept = found.scores[0] > 0
    found = YolactDetections(*(t[0][kept] for t in found))
    assert len(found.scores) == int(case.stored("detect.count")[0])
    # detections of a score below 1e-3 may swap where scores are almost equal
    order = _order_like(case.stored("detect.score"), case.stored("detect.class"), found)
    case.compare("detect.score", found.scores[order], 0, 1e-5)
    assert np.array_equal(case.stored("detect.class"), found.labels[order])
    case.compare("detect.box", found.boxes[order], 0, 1e-5)
    case.compare("detect.mask", found.coefficients[order], 0, 1e-5)

    shape = (given["image_height"], given["image_width"])
    scale = np.diag([shape[1] / size, shape[0] / size])
    meta = ImageMeta(1, "", shape, (size, size), np.concatenate([scale, np.zeros((2, 1))], 1))
    categories = Categories.of(map(str, range(given["num_classes"] - 1)))
    found = decode(model.decoder, to_arrays(selected), [meta], categories, given["score_threshold"])[0].instances
    assert found is not None
    assert found.masks is not None
    assert len(found) == len(case.stored("final.score"))
    case.compare("final.score", found.scores, 0, 1e-5)
    if "final.mask_score" in case.outputs:
        assert found.mask_scores is not None
        case.compare("final.mask_score", found.mask_scores, 0, 1e-5)
    assert np.array_equal(case.stored("final.class"), found.labels)
    assert np.abs(case.stored("final.box") - np.trunc(found.boxes)).max() <= 1  # official boxes are whole pixels
    masks = found.masks.dense()
    area = case.stored("final.masks_area")
    allowed = np.maximum(0.001 * area, 1)
    assert (np.abs(masks.sum((1, 2)) - area) <= allowed).all()
    assert (np.abs(masks.sum(2) - case.stored("final.masks_rows")).sum(1) <= allowed).all()
    assert (np.abs(masks.sum(1) - case.stored("final.masks_cols")).sum(1) <= allowed).all()
    sample = case.sample("final.masks_sample", masks)
    assert ((sample != case.stored("final.masks_sample").astype(bool)).sum((1, 2)) <= allowed).all()


def _order_like(scores: np.ndarray, labels: np.ndarray, found: YolactDetections) -> list[int]:
    """The order of ours that follows the official one where near-ties below 1e-3 have swapped."""
    order = list(range(len(scores)))
    for i in range(len(scores)):
        if int(found.labels[order[i]]) == labels[i] or scores[i] >= 1e-3:
            continue
        for j in range(i + 1, len(scores)):
            near = abs(float(found.scores[order[j]]) - scores[i]) <= 1e-5
            if near and int(found.labels[order[j]]) == labels[i]:
                order[i], order[j] = order[j], order[i]
                break
    return order


def _loss(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case.config
    size = given["max_size"]
    model = _model(
        case,
        positive_iou=given["positive_iou_threshold"],
        negative_iou=given["negative_iou_threshold"],
        negatives_per_positive=given["ohem_negpos_ratio"],
        crowd_overlap=given["crowd_iou_threshold"],
        masks_to_train=given["masks_to_train"],
        box_weight=given["bbox_alpha"],
        mask_weight=given["mask_alpha"],
        semantic_weight=given["semantic_segmentation_alpha"],
        rescore=given["use_maskiou"],
        rescore_weight=given["maskiou_alpha"],
        rescore_min_area=given["discard_mask_area"],
    )
    if any("randperm" in stub for stub in case.manifest["stubs"]):
        monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))

    call = case.manifest["input"]
    batch_size, _, seed, classes, proto_size, segm_size = case.numbers_in(call["predictions"])[:6]
    priors = _priors(model, size)
    made = case.inputs.raw_predictions(batch_size, len(priors), seed, classes, 32, proto_size, segm_size)
    leaves = {k: torch.from_numpy(v).requires_grad_() for k, v in made.items()}
    raw = YolactRaw(priors=priors, **leaves)
    targets = eval(f"inputs.{call['targets'].removeprefix('inputs.')}", {"inputs": case.inputs})
    batch = _batch(*targets)

    matches = [model.assign(t, priors) for t in batch.targets]
    official = torch.from_numpy(case.stored("match.conf_t"))
    ours = torch.stack([m.classes for m in matches])
    assert torch.equal(ours, official)
    where = torch.nonzero(ours > 0)
    assert np.array_equal(where, case.stored("match.pos_index"))
    b, p = where.T
    objects = torch.tensor([int(matches[i].objects[j]) for i, j in where])
    assert np.array_equal(objects, case.stored("match.pos_gt"))
    from maskkit.geometry.boxes import encode

    boxes = torch.stack([batch.targets[i].boxes[o] for i, o in zip(b, objects, strict=True)])
    case.compare("match.pos_loc_t", encode(boxes, priors[p]), 1e-4)

    losses = model.loss_terms(raw, batch)
    rows = {"B": "box", "M": "mask", "C": "classification", "S": "semantic", "I": "quality"}
    order = case.manifest["outputs"]["grad_norms"]["meaning"]
    letters = [c for c in order.split("rows [")[1].split("]")[0] if c in rows]
    norms = np.zeros((len(letters), 5))
    names = ("loc", "conf", "mask", "proto", "segm")
    total = {n: torch.zeros_like(leaves[n]) for n in names}
    for i, letter in enumerate(letters):
        term = losses[rows[letter]]
        official_term = float(case.stored(f"loss.{letter}")[0])
        assert abs(term.item() - official_term) <= 1e-4 * abs(official_term), letter
        gradients = torch.autograd.grad(term, [leaves[n] for n in names], allow_unused=True, retain_graph=True)
        for j, gradient in enumerate(gradients):
            if gradient is not None:
                total[names[j]] += gradient
                norms[i, j] = gradient.norm()
    assert np.allclose(norms, case.stored("grad_norms"), rtol=1e-3, atol=1e-7)
    case.compare("grad.loc_pos", total["loc"][b, p], 1e-4)
    case.compare("grad.conf", total["conf"][b, p], 1e-4)
    case.compare("grad.conf_rows", total["conf"].abs().sum(2), 1e-4)
    case.compare("grad.mask_pos", total["mask"][b, p], 1e-4)
    case.compare("grad.proto", total["proto"], 1e-4)
    case.compare("grad.segm", total["segm"], 1e-4)


def _batch(targets: list[np.ndarray], masks: list[np.ndarray], crowds: list[int]) -> Batch:
    """A batch whose input is one pixel large, so that boxes in pixels are the golden's relative ones, unrounded."""
    made = []
    for rows, dense, crowd in zip(targets, masks, crowds, strict=True):
        flags = np.arange(len(rows)) >= len(rows) - crowd
        made.append(Target.of(rows[:, :4], rows[:, 4], torch.from_numpy(dense) > 0, flags))
    metas = [ImageMeta(i, "", (1, 1), (1, 1)) for i in range(len(made))]
    return Batch(torch.zeros(len(made), 3, 1, 1), full_sizes(torch.zeros(len(made), 3, 1, 1)), made, metas)
