"""CondInst against AdelaiDet. Every stored tensor of a case is compared; nothing is left out."""

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.decode import decode
from maskkit.engine.optim import learning_rate, param_groups
from maskkit.geometry import polygons
from maskkit.models.base import to_arrays
from maskkit.nn.dynamic_mask import (
    DynamicMaskRaw,
    MaskBranchRaw,
    aligned_upsample,
    dynamic_masks,
    find,
    mask_centres,
    mask_targets,
    semantic_loss,
    some,
    split_parameters,
)
from maskkit.nn.fcos import fcos_loss, pick
from maskkit.nn.fcos_targets import locate
from maskkit.nn.losses import dice_loss
from maskkit.targets import RleMasks, Target
from tests.parity import adelaidet as official
from tests.parity.goldens import Case, watched


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "optimizer": _optimizer,
        "polygons": _polygons,
        "mask_head": _mask_head,
        "train_step": _train_step,
        "sem": _semantic,
        "forward": _forward,
        "loss": _loss,
        "postprocess": _postprocess,
    }
    kinds[_kind(case)](case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _kind(case: Case) -> str:
    """What a case checks, by what it stores."""
    marks = {
        "factor": "optimizer",
        "bitmasks": "polygons",
        "weight0": "mask_head",
        "gradnorm": "train_step",
        "pos_inds": "loss",
        "loss_sem": "sem",
    }
    return next((kind for mark, kind in marks.items() if mark in case.outputs), case.manifest["kind"])


def _forward(case: Case) -> None:
    model = official.model_of(case, fill=True)
    images = official.image_batch(case).images
    assert list(images.shape[2:]) == case.manifest["padded_hw"]
    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    with torch.no_grad(), watched(model.fpn) as seen:
        raw = model(images)
        official.compare_detector(case, seen[0], raw.detector)
        if "mask_feats" in case.outputs:
            case.compare("mask_feats", raw.branch.features, *near)
        if "sem_logits" in case.outputs:
            case.compare("sem_logits", raw.branch.semantic, *near)
        if "mask_logits" in case.outputs:
            strides, widths = model.config.detector.strides, model.config.masks.head_widths
            masks = []
            for b, level, row, column in case.manifest["picks"]["value"]:
                s = strides[level]
                xy = torch.tensor([[column * s + s // 2.0, row * s + s // 2.0]])
                filters = raw.detector.extra[level][b, :, row, column][None]
                features = raw.branch.features[b]
                masks.append(dynamic_masks(filters, xy, torch.tensor([float(s)]), features, strides[0], widths))
            case.compare("mask_logits", aligned_upsample(torch.stack(masks), 2), *near)


def _mask_head(case: Case) -> None:
    given = case.manifest["inputs"]
    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    config = official.model_of(case).config
    strides, widths = config.detector.strides, config.masks.head_widths
    features, parameters = official.maps_of(case, "mask_feats"), official.maps_of(case, "params")
    weights, biases = split_parameters(parameters, widths)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        case.compare(f"weight{i}", weight.flatten(0, 1)[..., None, None], 0, 0)
        case.compare(f"bias{i}", bias.flatten(), 0, 0)
    xy, image = torch.tensor(given["locations_xy"]), torch.tensor(given["im_inds"])
    stride = torch.tensor(strides)[given["fpn_levels"]].float()
    masks = torch.stack(
        [
            dynamic_masks(
                parameters[i : i + 1], xy[i : i + 1], stride[i : i + 1], features[image[i]], strides[0], widths
            )
            for i in range(len(parameters))
        ]
    )  # (n, 1, h, w)
    case.compare("logits_stride8", masks, *near)
    case.compare("logits_stride4", aligned_upsample(masks, 2), *near)
    for factor in (1, 2, 4):
        case.compare(f"aligned_x{factor}", aligned_upsample(official.maps_of(case, "aligned_in"), factor), *near)


def _loss(case: Case) -> None:
    model = official.model_of(case)
    scenes = official.scenes_of(case)
    raw = DynamicMaskRaw(official.raw_of(case, scenes), MaskBranchRaw(official.maps_of(case, "mask_feats"), None))
    batch = official.given_batch(case, scenes)
    size = (batch.images.shape[2], batch.images.shape[3])
    grid = (size[0] // 4, size[1] // 4)
    for i, target in enumerate(batch.targets):
        truth = mask_targets(target, torch.arange(len(target)), grid).bool()
        assert np.array_equal(case.unpacked(f"gt_bitmasks.{i}"), truth)

    _, positives = fcos_loss(raw.detector, batch, model.config.detector, [mask_centres(t, size) for t in batch.targets])
    order = official.compare_positives(case, positives, raw.detector, batch)
    locations = locate(raw.detector.logits, model.config.detector.strides)
    chosen = some(positives, model.config.masks_to_train)
    strides, widths = model.config.detector.strides, model.config.masks.head_widths
    dice = []
    for i in order.tolist():
        b, where = int(chosen.image[i]), chosen.location[i : i + 1]
        filters = pick(raw.detector.extra, chosen.image[i : i + 1], where)
        at = locations.xy[where], locations.stride[where]
        mask = dynamic_masks(filters, *at, raw.branch.features[b], strides[0], widths)
        truth = mask_targets(batch.targets[b], chosen.object[i : i + 1], grid)
        dice.append(dice_loss(aligned_upsample(mask[None], 2)[0].sigmoid(), truth, 1e-5))
    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    case.compare("dice_per_instance", torch.cat(dice), *near)

    losses = model.loss_terms(raw, batch)
    official.compare_fcos_terms(case, losses, raw.detector)
    official.compare_term(
        case, "loss_mask", losses["mask"], {"top": raw.detector.extra, "mask_feats": [raw.branch.features]}
    )
    assert not losses["mask/projection"].any()
    assert not losses["mask/pairwise"].any()


def _semantic(case: Case) -> None:
    logits = official.maps_of(case, "logits")
    batch = official.given_batch(case, official.scenes_of(case))
    weight = official.model_of(case).config.semantic_weight
    official.compare_term(case, "loss_sem", weight * semantic_loss(logits, batch), {"logits": [logits]})


def _train_step(case: Case) -> None:
    terms = {"loss_fcos_cls": "classification", "loss_fcos_loc": "box", "loss_fcos_ctr": "quality", "loss_mask": "mask"}
    if "loss_sem" in case.outputs:
        terms["loss_sem"] = "semantic"
    official.train_step(case, terms)


def _postprocess(case: Case) -> None:
    model = official.model_of(case)
    branch = MaskBranchRaw(official.maps_of(case, "mask_feats"), None)
    raw = DynamicMaskRaw(official.raw_of(case, official.scenes_of(case)), branch)
    tolerance = case.manifest["tolerance"]
    with torch.no_grad():
        found, masks = find(raw, model.config.detector, model.config.masks)
        kept = found.scores[0] > 0
        case.compare("detections.boxes", found.boxes[0, kept], 0, tolerance["boxes"])
        case.compare("detections.scores", found.scores[0, kept], 0, tolerance["scores"])
        assert np.array_equal(case.stored("detections.classes"), found.labels[0, kept])
        locations = locate(raw.detector.logits, model.config.detector.strides)
        where = found.locations[0, kept]
        assert np.array_equal(case.stored("detections.fpn_levels"), locations.level[where])
        assert np.array_equal(case.stored("detections.locations"), locations.xy[where])
        case.compare("mask_probs", masks[0, kept][:, None], 1e-3, 1e-4)
        chosen = to_arrays(model.select(raw))
    found = decode(model.decoder, chosen, [official.meta_of(case)], official.CATEGORIES)
    instances = official.compare_final(case, found)
    assert instances.masks is not None
    ours, theirs = instances.masks.dense(), case.unpacked("masks")
    for a, b in zip(ours, theirs, strict=True):
        union = (a | b).sum()
        assert union == 0 or (a & b).sum() / union >= tolerance["mask_iou"]


def _polygons(case: Case) -> None:
    size = tuple(case.manifest["inputs"]["hw"])
    masks = RleMasks(size, [polygons.to_rle(parts, size) for parts in case.manifest["inputs"]["polygons"]])
    assert np.array_equal(case.unpacked("bitmasks"), masks.dense())
    target = Target.of(masks.boxes(), [0] * len(masks), masks)
    sampled = mask_targets(target, torch.arange(len(masks)), (size[0] // 4, size[1] // 4)).bool()
    assert np.array_equal(case.unpacked("bitmasks_stride4"), sampled)


def _optimizer(case: Case) -> None:
    given = case.manifest["solver"]
    preset = zoo.preset(official.preset_of(case))
    train, model = preset.train, official.model_of(case)
    assert (train.momentum, train.batch) == (given["MOMENTUM"], given["IMS_PER_BATCH"])
    assert train.epochs * 117_266 / train.batch == pytest.approx(given["MAX_ITER"], rel=1e-3)  # images with objects
    groups = {p: group for group in param_groups(model, train) for p in group["params"]}
    parameters = official.trained(case, model, "names")
    near = case.manifest["tolerance"]["rtol"]
    case.compare("lr", np.array([train.lr * groups[p]["lr_factor"] for p in parameters]), near)
    case.compare("weight_decay", np.array([groups[p]["weight_decay"] for p in parameters]), near)
    factors = [learning_rate(i, given["MAX_ITER"], train) / train.lr for i in case.manifest["iterations"]]
    case.compare("factor", np.array(factors), near)
