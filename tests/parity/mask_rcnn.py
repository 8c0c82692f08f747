"""Faster R-CNN and Mask R-CNN against detectron2. Every stored tensor of a case is compared; nothing is left out."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.data.loader import collate
from maskkit.data.records import extent
from maskkit.data.transforms import Resize
from maskkit.decode import decode
from maskkit.decode.outputs import Boxes, ObjectMasks
from maskkit.engine.optim import learning_rate, param_groups
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.polygons import to_rle
from maskkit.models.base import to_arrays
from maskkit.models.faster_rcnn import FasterRcnn
from maskkit.models.mask_rcnn import MaskRcnn
from maskkit.nn import roi, rpn
from maskkit.nn.mask_stage import loss_from_masks
from maskkit.nn.two_stage import STRIDES
from maskkit.prediction import Categories, ImageMeta, Instances
from maskkit.targets import Batch, Target
from tests.parity.goldens import Case, watched

CATEGORIES = Categories.of(map(str, range(80)))


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if "replaced by the identity" in case.manifest["stubbed"]:
        monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    told_by = {
        "fpn.p2": _forward,
        "resized.0": _preprocess,
        "pooled7": _pooler,
        "logits": _proposals,
        "detections.boxes": _postprocess,
        "positives.0": _rpn_loss,
        "sampled.0.boxes": _roi_loss,
        "loss_total": _train_step,
        "lr": _optimizer,
        "targets28": _polygon_targets,
    }
    next(check for name, check in told_by.items() if name in case.outputs)(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _preset(case: Case) -> str:
    """The preset of ``mask_rcnn_R_50_FPN_3x.yaml`` is ``maskrcnn-resnet50-d2-3x``."""
    found = re.search(r"(mask|faster)_rcnn_R_(\d+)_FPN_(\dx)", case.config["file"])
    assert found is not None
    return "{}rcnn-resnet{}-d2-{}".format(*found.groups())


def _model(case: Case) -> FasterRcnn | MaskRcnn:
    """The model without weights, which the cases on single parts have none of."""
    name = _preset(case)
    with torch.device("meta"):
        return zoo.model_class(name)(zoo.preset(name).model)  # type: ignore[call-arg, return-value]


def _filled(case: Case) -> FasterRcnn | MaskRcnn:
    return case.filled(_preset(case))


def _limits(case: Case) -> tuple[float, float]:
    tolerance = case.manifest["tolerance"]
    return tolerance.get("rtol", 0.0), tolerance.get("atol", 0.0)


def _scene(case: Case, seed: int, size: Sequence[int], count: int) -> Target:
    made = case.scenes.make_scene(seed, *size, count)
    return Target.of(made["boxes"], made["classes"], torch.from_numpy(made["masks"]))


def _batch(case: Case, targets: list[Target] | None = None) -> Batch:
    """The images of a case, normalised and padded by the package's own code."""
    given = case.manifest["inputs"]
    samples = []
    for i, (height, width) in enumerate(given["image_sizes_hw"]):
        image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed + i)).permute(2, 0, 1)
        meta = ImageMeta(i, "", (height, width), (height, width))
        samples.append((image.float(), targets[i] if targets else Target.of([], []), meta))
    input = zoo.preset(_preset(case)).input
    assert np.allclose(input.mean[::-1], given["mean"])
    assert np.allclose(input.std[::-1], given["std"])
    return collate(samples, input)


# whole networks -------------------------------------------------------------------------------------------------------


def _forward(case: Case) -> None:
    model, batch, limits = _filled(case), _batch(case), _limits(case)
    size = (batch.images.shape[2], batch.images.shape[3])
    assert list(size) == case.manifest["padded_hw"]
    with torch.no_grad():
        with watched(model.backbone, model.fpn) as seen:
            raw = model(batch.images, batch.sizes)
        features, levels = seen
        selected = model.select(raw)
        anchored = model.anchored(levels, size)
        maps = [model.rpn(level) for level in levels]
        extents = rpn.extents_of(batch.images, batch.sizes)
        proposals = rpn.propose(anchored, extents, model.config.proposals, training=False)
    assert torch.equal(extents, torch.tensor(case.manifest["inputs"]["image_sizes_hw"]).flip(1).float())
    for i, level in enumerate(levels):
        case.compare(f"fpn.p{i + 2}", level, *limits)
        case.compare(f"rpn.objectness.{i}", maps[i][0], *limits)
        case.compare(f"rpn.deltas.{i}", maps[i][1], *limits)
        if f"anchors.{i}" in case.outputs:
            case.compare(f"anchors.{i}", anchored[i].anchors, *limits)
    for i, feature in enumerate(features.values()):
        if f"backbone.res{i + 2}" in case.outputs:
            case.compare(f"backbone.res{i + 2}", feature, *limits)
    for i, (boxes, scores) in enumerate(zip(*proposals, strict=True)):
        kept = scores.isfinite()
        assert abs(int(kept.sum()) - int(case.stored(f"proposals.{i}.count")[0])) <= 2
        official = case.stored(f"proposals.{i}.boxes"), case.stored(f"proposals.{i}.logits")
        _same_rows(official, (boxes[kept].numpy(), scores[kept].numpy()), misses=2)
    _compare_heads(case, model, levels)
    _compare_final(case, model, selected, batch)


def _compare_heads(case: Case, model: FasterRcnn | MaskRcnn, levels: list[Tensor]) -> None:
    """The heads on fixed boxes of the first image."""
    limits = _limits(case)
    boxes = torch.tensor(case.manifest["fixed_boxes"]["value"])
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    hidden = []
    hook = model.box_head.label.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        pooled = model.pool(levels, rois, 7)
        logits, deltas = model.box_head(pooled)
    hook.remove()
    case.compare("fixed.box_pooled", pooled, *limits)
    case.compare("fixed.box_features", hidden[0], *limits)
    case.compare("fixed.class_logits", logits, *limits)
    case.compare("fixed.box_deltas", deltas.flatten(1), *limits)
    if isinstance(model, MaskRcnn):
        with torch.no_grad():
            pooled = model.pool(levels, rois, 14)
            logits = model.mask_head.predictor(model.mask_head.features(pooled))
            labels = torch.arange(len(rois)) * 7 % logits.shape[1]
            alone = model.mask_head(pooled, labels)  # the masks of one class each, as the model computes them
        case.compare("fixed.mask_pooled", pooled, *limits)
        case.compare("fixed.mask_logits", logits, *limits)
        assert torch.allclose(alone, logits[torch.arange(len(rois)), labels], atol=1e-4)


def _compare_final(
    case: Case, model: FasterRcnn | MaskRcnn, selected: Boxes[Tensor] | ObjectMasks[Tensor], batch: Batch
) -> None:
    given = case.manifest["inputs"]
    metas = []
    for meta, (h, w), (height, width) in zip(batch.metas, given["image_sizes_hw"], given["output_hw"], strict=True):
        affine = np.array([[width / w, 0, 0], [0, height / h, 0]])
        metas.append(replace(meta, size=(height, width), affine=affine))
    found = decode(model.decoder, to_arrays(selected), metas, CATEGORIES)
    for i, prediction in enumerate(found):
        ours = prediction.instances
        assert ours is not None
        official = [case.stored(f"final.{i}.{name}") for name in ("boxes", "scores", "classes")]
        assert abs(len(ours) - len(official[0])) <= 2
        pairs = _same_rows(official, (ours.boxes, ours.scores, ours.labels), misses=2)
        if f"final.{i}.mask_area" in case.outputs:
            area = case.stored(f"final.{i}.mask_area")
            assert ours.masks is not None
            off = np.abs(ours.masks.areas()[pairs[:, 1]] - area[pairs[:, 0]])
            assert (off <= 2 + 0.002 * area[pairs[:, 0]]).all(), off.max()


def _same_rows(official: Sequence[np.ndarray], ours: Sequence[np.ndarray], misses: int) -> np.ndarray:
    """Pairs of rows with boxes within 0.05 pixels, scores within 1e-3 and one class, of all but ``misses`` rows.

    Scores of random weights lie so close that some change places.
    """
    pairs = []
    for i, box in enumerate(official[0]):
        near = np.abs(ours[0] - box).max(1, initial=0) < 0.05
        near &= np.abs(ours[1] - official[1][i]) < 1e-3 * max(1, abs(official[1][i]))
        if len(official) > 2:
            near &= ours[2] == official[2][i]
        pairs += [(i, int(np.flatnonzero(near)[0]))] if near.any() else []
    assert len(pairs) >= len(official[0]) - misses, f"{len(official[0]) - len(pairs)} rows have no partner"
    places = np.array(pairs)
    assert np.abs(np.diff(places, axis=1)).max() <= 5, "more than a change of places"
    return places


def _train_step(case: Case) -> None:
    model = _filled(case).train()
    sizes = case.manifest["inputs"]["image_sizes_hw"]
    batch = _batch(case, [_scene(case, case.seed + 10 + i, size, 4 + i) for i, size in enumerate(sizes)])
    losses = model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    official = {
        "classification": "cls",
        "box": "box_reg",
        "mask": "mask",
        "classification/objectness": "rpn_cls",
        "box/proposals": "rpn_loc",
    }
    close = case.manifest["tolerance"]["losses_rtol"]
    for ours, name in official.items():
        if ours in losses:
            case.compare(f"loss_{name}", losses[ours][None], close)
    assert not {n for n, v in losses.items() if n not in official and v.item()}
    case.compare("loss_total", total[None], close)
    names = _renamed(case, case.manifest["gradnorm_names"])
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    learnt = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(names) == learnt
    stored = case.stored("gradnorm")
    assert np.allclose([norms[n] for n in names], stored, rtol=case.manifest["tolerance"]["gradnorm_rtol"])


def _renamed(case: Case, names: list[str]) -> list[str]:
    """Our name of each official one."""
    source = "mask_rcnn" if _preset(case).startswith("mask") else "faster_rcnn"
    rename = importlib.import_module(f"maskkit.zoo.{source}").rename
    return [next(iter(rename({name: torch.zeros(1, 3)}))) for name in names]


# single parts ---------------------------------------------------------------------------------------------------------


def _levels(config: rpn.ProposalConfig, made: dict[str, list[Tensor]], size: Sequence[int]) -> list[rpn.RpnRaw]:
    """Raw maps (B, ., h, w) with their anchors."""
    anchors = rpn.detectron2_anchors(config, made["objectness"], STRIDES, (size[0], size[1]))
    each = zip(made["objectness"], made["deltas"], anchors, strict=True)
    return [rpn.RpnRaw(*rpn.flatten(objectness, deltas), mine) for objectness, deltas, mine in each]


def _rpn_raw(case: Case, seeds: Sequence[int], scenes: Sequence[Any], size: Sequence[int]) -> dict[str, list[Tensor]]:
    made = [case.scenes.rpn_raw(seed, scene, *size) for seed, scene in zip(seeds, scenes, strict=True)]
    return {
        name: [torch.from_numpy(np.stack(maps)) for maps in zip(*(m[name] for m in made), strict=True)]
        for name in ("objectness", "deltas")
    }


def _proposals(case: Case) -> None:
    given, limits = case.manifest["inputs"], case.manifest["config"]["thresholds"]
    height, width = given["image_hw"]
    count = case.numbers_in(given["scene"])[-1]
    scene = case.scenes.make_scene(case.seed, height, width, count)
    made = _rpn_raw(case, [case.seed], [scene], given["padded_hw"])
    levels = _levels(_model(case).config.proposals, made, given["padded_hw"])
    before, after = ((limits[name],) * 2 for name in ("pre_nms_topk", "post_nms_topk"))
    config = rpn.ProposalConfig(before=before, after=after, nms_threshold=limits["nms"])
    boxes, scores = rpn.propose(levels, torch.tensor([[width, height]]).float(), config, training=False)
    assert int(scores.isfinite().sum()) == int(case.stored("count")[0])
    rows = len(case.outputs["logits"])
    case.compare("logits", scores[0, :rows], 0, case.manifest["tolerance"]["logits"])
    # logits are multiples of 1/1024: equal ones may change places
    official = case.stored("boxes"), case.stored("logits")
    _same_rows(official, (boxes[0].numpy(), scores[0].numpy()), misses=0)


def _rpn_loss(case: Case) -> None:
    size = case.manifest["inputs"]["padded_hw"]
    first = case.numbers_in(case.manifest["inputs"]["targets"].partition("seed +")[2])[0]
    fewest = case.numbers_in(case.manifest["inputs"]["targets"].partition(", i =")[0])[-1]
    images = sum(name.startswith("positives.") for name in case.outputs)
    seeds = [case.seed + i for i in range(images)]
    scenes = [case.scenes.make_scene(s + first, *size, fewest + i) for i, s in enumerate(seeds)]
    targets = [_scene(case, s + first, size, fewest + i) for i, s in enumerate(seeds)]
    made = _rpn_raw(case, seeds, scenes, size)
    leaves = [t.requires_grad_() for maps in made.values() for t in maps]
    config = _model(case).config.proposals
    raw = rpn.joined(_levels(config, made, size))
    matched = [
        rpn.match_boxes(raw.anchors, t, config.low, config.high, best_too=True, crowd_overlap=config.crowd_overlap)
        for t in targets
    ]
    for i, mine in enumerate(matched):
        positive, negative = rpn.sample(mine, config.sampled, 0.5)
        labels = torch.full((len(raw.anchors),), -1.0)
        labels[positive], labels[negative] = 1, 0
        case.compare(f"labels.{i}", labels, 0)
        assert np.array_equal(case.stored(f"positives.{i}"), positive.sort().values)
        assert np.array_equal(case.stored(f"negatives.{i}"), negative.sort().values)
    terms = rpn.rpn_loss(raw, matched, targets, config)
    levels_count = len(leaves) // 2
    for name, term, mine in (("cls", terms[0], leaves[:levels_count]), ("loc", terms[1], leaves[levels_count:])):
        case.compare(f"loss_rpn_{name}", term[None], *_limits(case))
        grads = torch.autograd.grad(term, mine, retain_graph=True)
        leaf = {"cls": "objectness", "loc": "deltas"}[name]
        case.compare(f"gradnorm.loss_rpn_{name}.{leaf}", torch.stack([g.norm() for g in grads]), *_limits(case))


def _roi_loss(case: Case) -> None:
    given = case.manifest["inputs"]
    size = given["padded_hw"]
    first = case.numbers_in(given["targets"].partition("seed +")[2])[0]
    fewest = case.numbers_in(given["targets"].partition(", i =")[0])[-1]
    images = sum(bool(re.fullmatch(r"sampled\.\d\.boxes", name)) for name in case.outputs)
    config = _model(case).config
    targets, rois, matched = [], [], []
    for i in range(images):
        count = fewest + i
        scene = case.scenes.make_scene(case.seed + first + i, *size, count)
        targets.append(_scene(case, case.seed + first + i, size, count))
        boxes = torch.from_numpy(case.scenes.rcnn_raw(case.seed + i, scene, *size)["proposals"])[None]
        mine = roi.sample_rois(
            rpn.Proposals(boxes, torch.zeros(boxes.shape[:2])),
            targets[i:],
            config.regions,
        )
        classes = torch.where(mine.matched >= 0, targets[i].labels[mine.matched], config.num_classes)
        case.compare(f"sampled.{i}.boxes", mine.rois[:, 1:], *_limits(case))
        case.compare(f"sampled.{i}.classes", classes, 0)
        rois.append(mine.rois + torch.tensor([i, 0, 0, 0, 0]))
        matched.append(mine.matched)
    sampled = roi.Sampled(torch.cat(rois), torch.cat(matched))
    positive, objects = roi.objects_of(sampled, targets)
    labels = torch.cat([t.labels for t in targets])[objects]
    rows, quantise = len(sampled.rois), case.scenes.quantise

    logits = torch.from_numpy(quantise(1.5 * case.recipe.seeded_array("scores", (rows, 81), case.seed)))
    deltas = torch.from_numpy(quantise(0.4 * case.recipe.seeded_array("deltas", (rows, 320), case.seed)))
    shape = (len(positive), 80, 28, 28)
    masks = torch.from_numpy(quantise(2 * case.scenes.maps_raw("mask_logits", shape, case.seed, smooth=2)))
    leaves = [t.requires_grad_() for t in (logits, deltas, masks)]
    terms = roi.box_loss(logits, deltas.unflatten(1, (-1, 4)), sampled, targets, config.regions.smooth_l1)
    model = _model(case)
    assert isinstance(model, MaskRcnn)
    regions = roi.Sampled(sampled.rois[positive], sampled.matched[positive])
    truth = roi.crop_masks(targets, regions, 28, config.pooling.aligned) >= 0.5
    assert np.array_equal(case.unpacked("mask_targets"), truth)
    known = torch.ones(len(positive), dtype=torch.bool)
    mask = loss_from_masks(masks[torch.arange(len(positive)), labels], regions, known, targets, model.config.mask)
    names = ("cls", "box_reg", "mask"), ("class_logits", "box_deltas", "mask_logits")
    for name, leaf_name, term, leaf in zip(*names, (*terms, mask), leaves, strict=True):
        case.compare(f"loss_{name}", term[None], *_limits(case))
        gradient = torch.autograd.grad(term, leaf, retain_graph=True)[0]
        case.compare(f"gradnorm.loss_{name}.{leaf_name}", gradient.norm()[None], *_limits(case))


def _postprocess(case: Case) -> None:
    given, limits = case.manifest["inputs"], case.config["thresholds"]
    assert limits["mask"] == 0.5
    (h, w), (height, width) = given["image_hw"], given["output_hw"]
    scene = case.scenes.make_scene(case.seed, h, w, case.numbers_in(given["scene"])[-1])
    made = {k: torch.from_numpy(v) for k, v in case.scenes.rcnn_raw(case.seed, scene, h, w).items()}
    deltas = made["deltas"].unflatten(1, (-1, 4))
    found = roi.detect(
        made["scores"][None],
        deltas[None],
        made["proposals"][None],
        torch.tensor([[w, h]]).float(),
        roi.RegionConfig(min_score=limits["score"], nms_threshold=limits["nms"], detections=limits["detections"]),
    )
    kept = found.scores[0] > 0
    boxes, labels, scores = (t[0][kept] for t in found)
    assert len(boxes) == case.manifest["final_instances"]
    close = case.manifest["tolerance"]
    case.compare("detections.boxes", boxes, 0, close["boxes"])
    for row, (k, label) in enumerate(zip(case.stored("detections.kept").astype(int), labels, strict=True)):
        refined = rpn.decode(deltas[k, label], made["proposals"][k], roi.BOX_WEIGHTS)
        clipped = torch.minimum(refined.clamp(min=0), torch.tensor([w, h, w, h]))
        assert (clipped - boxes[row]).abs().max() <= close["boxes"]

    raw = case.scenes.maps_raw("mask_logits", (len(boxes), 80, 28, 28), case.seed, smooth=5)
    masks = torch.from_numpy(case.scenes.quantise(2.5 * raw))[torch.arange(len(boxes)), labels].sigmoid()
    case.compare("mask_probs", masks[:, None], 0, close["scores"])
    affine = np.array([[width / w, 0, 0], [0, height / h, 0]])
    meta = ImageMeta(1, "", (height, width), (h, w), affine)
    relative = boxes / torch.tensor([w, h, w, h])
    selected = ObjectMasks(*(t[None] for t in (relative, labels, scores, masks, scores)))
    final = decode(_model(case).decoder, to_arrays(selected), [meta], CATEGORIES)[0].instances
    assert isinstance(final, Instances)
    case.compare("boxes", final.boxes, 0, close["boxes"])
    case.compare("scores", final.scores, 0, close["scores"])
    case.compare("classes", final.labels, 0)
    assert final.masks is not None
    official, ours = case.unpacked("masks"), final.masks.dense()
    union = (official | ours).sum((1, 2))
    assert ((official & ours).sum((1, 2)) >= close["mask_iou"] * union).all()
    assert (official != ours).sum() <= 1e-4 * union.sum(), "ties alone may differ"


def _pooler(case: Case) -> None:
    given = case.manifest["inputs"]
    shapes = re.findall(r"\((\d+), (\d+), (\d+), (\d+)\)", given["features"])
    b, c, h, w = (int(n) for n in shapes[0])
    config = _model(case).config
    levels = [torch.from_numpy(case.scenes.maps_raw(f"p{i + 2}", (b, c, h >> i, w >> i), case.seed)) for i in range(4)]
    rois = torch.cat(
        [
            torch.cat([torch.full((len(boxes), 1), float(i)), torch.tensor(boxes)], 1)
            for i, boxes in enumerate(given["boxes"])
        ]
    )
    case.compare("levels", roi.pyramid_level(rois, (4, 8, 16, 32)), 0)
    for bins in (7, 14):
        pooled = roi.pool(levels, (4, 8, 16, 32), rois, bins, config.pooling)
        case.compare(f"pooled{bins}", pooled, *_limits(case))


# training recipe and data ---------------------------------------------------------------------------------------------


def _optimizer(case: Case) -> None:
    model, train = _model(case), zoo.preset(_preset(case)).train
    solver = case.manifest["solver"]
    ours = dict(model.named_parameters())
    names = _renamed(case, case.manifest["names"])
    assert {n for n, p in ours.items() if p.requires_grad} == set(names)
    frozen = _renamed(case, case.manifest["frozen"])
    assert not any(ours[n].requires_grad for n in frozen)
    groups = param_groups(model, train)
    of = {id(p): g for g in groups for p in g["params"]}
    case.compare("lr", np.array([train.lr * of[id(ours[n])]["lr_factor"] for n in names]), 1e-6)
    case.compare("weight_decay", np.array([of[id(ours[n])]["weight_decay"] for n in names]), 1e-6)
    total = solver["MAX_ITER"]
    factors = [learning_rate(step, total, train) / train.lr for step in case.manifest["iterations"]]
    case.compare("factor", np.array(factors), 1e-6)
    assert round(train.epochs * 117266 / train.batch, -3) == total, "117266 images of COCO train2017 have objects"
    assert (train.momentum, train.batch) == (solver["MOMENTUM"], solver["IMS_PER_BATCH"])


def _preprocess(case: Case) -> None:
    given = case.manifest["inputs"]
    height, width = case.numbers_in(given["image"])[:2]
    source = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed)).permute(2, 0, 1)
    input = zoo.preset(_preset(case)).input
    rng = np.random.default_rng(0)

    def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
        meta = ImageMeta(1, "", (image.shape[1], image.shape[2]), (image.shape[1], image.shape[2]))
        return Resize(size, input.resize, input.antialias)(image, Target.of([], []), meta, rng)[0]

    for i, one in enumerate(given["cases"]):
        image = resized(source, (one["shortest"], one["max"]))
        assert list(image.shape[1:]) == one["output_hw"]
        case.compare(f"resized.{i}", image.permute(1, 2, 0).flip(2), 0)
    pairs = re.findall(r"\((\d+), (\d+)\)", given["size_table"])
    shortest, longest = case.numbers_in(given["size_table"])[:2]
    sizes = [
        resized(torch.zeros(3, int(h), int(w), dtype=torch.uint8), (shortest, longest)).shape[1:] for h, w in pairs
    ]
    case.compare("size_table", np.array(sizes), 0)


def _polygon_targets(case: Case) -> None:
    """Polygons drawn on the grid of a box: the COCO rasteriser of ours. Training crops bitmaps instead."""
    polygons, boxes = case.manifest["inputs"]["polygons"], np.array(case.manifest["inputs"]["boxes"])
    for bins in (14, 28, 56):
        drawn = []
        for parts, (x1, y1, x2, y2) in zip(polygons, boxes, strict=True):
            scale = np.float32(bins) / np.maximum(np.array([x2 - x1, y2 - y1], np.float32), np.float32(0.1))
            moved = [((np.reshape(p, (-1, 2)) - (x1, y1)) * scale).reshape(-1).tolist() for p in parts]
            drawn.append(to_rle(moved, (bins, bins)))
        assert np.array_equal(case.unpacked(f"targets{bins}"), rle_codec.decode(drawn, (bins, bins)))
    case.compare("bounding_boxes", np.array([extent(p) for p in polygons]), 1e-6)
    areas = [sum(_area(np.reshape(part, (-1, 2))) for part in parts) for parts in polygons]
    case.compare("areas", np.array(areas), 1e-6)


def _area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
