"""FCIS against the official code. Every stored tensor of a case is compared; nothing is left out.

Official boxes end with the number of their last pixel: theirs plus `EDGE` are ours.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.decode import Votes, decode
from maskkit.decode.outputs import RegionVotes
from maskkit.models.base import to_arrays
from maskkit.models.fcis import (
    BOX_WEIGHTS,
    MASK_WEIGHT,
    STRIDE,
    Fcis,
    FcisConfig,
    RegionLosses,
    Regions,
    hardest,
    region_losses,
    region_targets,
)
from maskkit.nn import rpn
from maskkit.nn.position_sensitive import corner_sums, pool
from maskkit.nn.roi import Sampled
from maskkit.prediction import Categories, ImageMeta, Instances
from maskkit.targets import Target
from tests.parity.goldens import Case, watched

PRESET = "fcis-resnet101"
EDGE = torch.tensor([0, 0, 1, 1])
BOX_STDS = torch.tensor([0.2, 0.2, 0.5, 0.5])


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by = {
        "pooled": _assembly,
        "base_anchors": _proposals,
        "gpu_dets": _voting,
        "kept": _hard_examples,
        "fcis_cls_seg": _forward,
        "labels_ohem": _train_step,
    }
    next(check for name, check in told_by.items() if name in case.outputs)(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _limits(case: Case, name: str) -> tuple[float, float]:
    tolerance = case.manifest["tolerance"]
    share, slack = tolerance.get("rtol", 0.0), tolerance["atol"]
    if isinstance(slack, str):
        slack = float(slack.split()[0]) * case.manifest["outputs"][name]["std"]
    return share, slack


def _close(case: Case, name: str, ours: Tensor) -> None:
    case.compare(name, ours, *_limits(case, name))


def _made(case: Case, name: str, *shape: int) -> Tensor:
    return torch.from_numpy(case.recipe.seeded_array(name, shape, case.seed))


def _ours(boxes: np.ndarray) -> Tensor:
    """Official regions or boxes, in edges."""
    return torch.from_numpy(boxes) + (EDGE if boxes.shape[1] == 4 else F.pad(EDGE, (1, 0)))


def _meta(height: int, width: int) -> ImageMeta:
    return ImageMeta(1, "", (height, width), (height, width))


def _without_weights(**knobs: Any) -> Fcis:
    with torch.device("meta"):
        return Fcis(FcisConfig(**knobs))


# single parts ---------------------------------------------------------------------------------------------------------


def _assembly(case: Case) -> None:
    config = case.config
    groups, bins, classes = config["group_size"], config["pooled_size"], config["num_classes"]
    assert config["spatial_scale"] * STRIDE == 1
    maps = _made(case, "maps", 1, groups**2 * 2 * classes, *config["feature"]).requires_grad_()
    boxes = _made(case, "bbox_maps", 1, 8 * groups**2, *config["feature"])
    rois = _ours(case.stored("rois"))
    sums = corner_sums(maps, groups)
    pooled = pool(sums, rois, bins, STRIDE).permute(0, 3, 1, 2)  # (N, 2 C, s, s)
    _close(case, "pooled", pooled)
    outgoing = _made(case, "grad_out", *pooled.shape)
    _close(case, "grad_maps", torch.autograd.grad((pooled * outgoing).sum(), maps, retain_graph=True)[0])
    scores = pooled.unflatten(1, (classes, 2)).amax(2).mean((2, 3))
    _close(case, "cls_score", scores)
    _close(case, "cls_prob", scores.softmax(1))
    _close(case, "group_softmax", pooled.unflatten(1, (classes, 2)).softmax(2).flatten(1, 2))
    codes = pool(corner_sums(boxes, groups), rois, bins, STRIDE).mean((1, 2))
    _close(case, "bbox_pred", codes)

    # what the model makes of the same maps, background first there and last here
    model = _without_weights(num_classes=classes - 1, parts=groups, bins=bins)
    turned = corner_sums(maps.roll(-2 * groups**2, 1), groups)
    code = corner_sums(boxes[:, 4 * groups**2 :], groups)
    best = model.read(turned, code, rois)
    _close(case, "cls_score", best.class_logits.roll(1, 1))
    assert torch.allclose(best.box_deltas, codes[:, 4:], atol=1e-5)
    inside = best.mask_logits.sigmoid()
    _close(case, "seg_pred_score_pick", torch.stack([1 - inside, inside], 1))
    labels = torch.arange(len(rois)) % (classes + 1) - 1
    mine = model.read(turned, code, rois, (labels - 1) % classes).mask_logits
    pairs = pooled.unflatten(1, (classes, 2))[torch.arange(len(rois)), labels.clamp(min=0)]
    picked = pairs * (labels >= 0)[:, None, None, None]
    _close(case, "seg_pred_label_pick", picked)
    assert torch.allclose(mine[labels >= 0], (pairs[:, 1] - pairs[:, 0])[labels >= 0], atol=1e-4)

    # bins whose edges lie on cells: rounding decides
    official = case.stored("borderline_pooled")
    ours = pool(sums, _ours(case.stored("borderline_rois")), bins, STRIDE).permute(0, 3, 1, 2)
    off = np.abs(case.part("borderline_pooled", ours) - official.reshape(-1))
    words = case.manifest["tolerance"]["borderline_pooled"].split()
    assert (off < float(words[-1])).mean() >= float(words[2]) / 100


def _proposals(case: Case) -> None:
    config, given = case.config, case.manifest["inputs"]
    cells = rpn.window_cell_anchors(STRIDE, config["scales"], config["ratios"])
    case.compare("base_anchors", cells - EDGE, 0, 1e-4)
    h, w = (int(n) for n in given.partition("fh,fw=")[2].partition(";")[0].split(","))
    height, width = (float(n) for n in given.partition("im_info=[[")[2].split(",")[:2])
    background, foreground = (2 * _made(case, "rpn_cls_score", 1, 2, len(cells) * h, w)).chunk(2, 1)
    deltas = 0.25 * _made(case, "rpn_bbox_pred", 1, 4 * len(cells), h, w)
    objectness = (foreground - background).view(1, len(cells), h, w)
    level = rpn.RpnRaw(*rpn.flatten(objectness, deltas), rpn.grid_anchors(cells, (h, w), (STRIDE, STRIDE)))
    images = torch.tensor([[width, height]])
    before, after = ((config[name],) * 2 for name in ("pre_nms", "post_nms"))
    proposals = rpn.ProposalConfig(before=before, after=after, nms_threshold=config["nms"])
    model = _without_weights(proposals=proposals, least_side=config["min_size"])
    found = model.propose(level, images, training=False)
    assert found.scores.isfinite().all()
    official = _ours(case.stored("rois"))[:, 1:]
    far, place = (official[:, None] - found.boxes[0]).abs().amax(2).min(1)
    assert far.max() <= case.manifest["tolerance"]["atol"]
    # softmax rounds scores near 1 to the same number: neighbours may change places
    assert (place - torch.arange(len(place))).abs().max() <= 2
    assert np.allclose(config["stds"], 1 / np.array(BOX_WEIGHTS))
    code = 0.5 * _made(case, "bbox_delta", config["post_nms"], 8)[:, 4:]
    refined = model.refine(official[None], code, images)
    _close(case, "rois_iter2", F.pad(refined[0] - EDGE, (1, 0)))


def _voting(case: Case) -> None:
    config = case.config
    height, width = config["image"]
    scores = torch.from_numpy(case.stored("scores_in"))
    boxes, rows = _ours(case.stored("boxes_in")), config["rois"]
    shape = _made(case, "mask_shape", rows, 3).double()[:, :, None, None]
    y, x = torch.from_numpy(np.mgrid[:21, :21] / 20 - 0.5)
    radius = ((1 + 0.2 * shape[:, 1]) * x**2 + y**2 + 0.3 * shape[:, 2] * x * y).sqrt()
    masks = (8 * (0.45 + 0.05 * shape[:, 0] - radius)).float()
    model = _without_weights(
        num_classes=config["num_classes"] - 1,
        vote_iou=config["merge_thresh"],
        regions=replace(
            FcisConfig().regions,
            nms_threshold=config["nms"],
            detections=config["max_per_image"],
            candidates=scores.numel(),
        ),
    )
    decoder = model.decoder
    assert isinstance(decoder, Votes)
    assert config["binary_thresh"] == decoder.cut
    size = torch.tensor([width, height])
    raw: Any = SimpleNamespace(
        sampled=Sampled(F.pad(boxes, (1, 0)), torch.full((len(boxes),), rpn.BACKGROUND)),
        read=Regions(scores.log().roll(-1, 1), torch.zeros(len(boxes), 4), masks),
        extents=size[None],
        size=size,
    )
    selected = to_arrays(model.select(raw))
    categories = Categories.of("abcdefghij"[: config["num_classes"] - 1])
    found = decode(decoder, selected, [_meta(height, width)], categories)[0].instances
    assert found is not None
    assert found.masks is not None
    order = np.lexsort((-found.scores, found.labels))
    found = found[order]
    ours = np.column_stack([found.boxes - EDGE.numpy(), found.scores, found.labels + 1])
    share, slack = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    for kind in ("gpu", "cpu"):
        official = case.stored(f"{kind}_dets")
        assert ours.shape == official.shape
        far = np.abs(ours[:, :4] - official[:, :4]).max()
        assert far == 0 if kind == "gpu" else far <= 1  # resampled otherwise
        assert np.allclose(ours[:, 4:], official[:, 4:], atol=slack, rtol=share)
    out = RegionVotes(**{name: values[0] for name, values in selected.items()})
    _voted_maps(case, decoder, out, found)


def _voted_maps(case: Case, decoder: Votes, out: RegionVotes[np.ndarray], found: Instances) -> None:
    """The official code keeps what was voted on a grid over the new box; ours is cut in place, and sampled here."""
    mean_of = decoder._voting(out, _meta(*case.config["image"]))
    for i, (box, score, label) in enumerate(zip(found.boxes.astype(int), found.scores, found.labels, strict=True)):
        row = int(np.flatnonzero((out.scores == score) & (out.labels == label))[0])
        voted, top, left = mean_of(row)
        box = box - (left, top, left, top)
        x, y = ((np.arange(21) + 0.5) * (box[a + 2] - box[a]) / 21 - 0.5 for a in (0, 1))
        cut = voted[box[1] : box[3], box[0] : box[2]]
        columns = np.stack([np.interp(x, np.arange(cut.shape[1]), line) for line in cut])
        grid = np.stack([np.interp(y, np.arange(cut.shape[0]), line) for line in columns.T], 1)
        off = [np.abs(grid - case.stored(f"{kind}_masks")[i]) for kind in ("cpu", "gpu")]
        assert off[0].max() <= case.manifest["tolerance"]["atol"]
        # float32 on the GPU puts single pixels of a voter on the other side of the cut
        assert (off[1] > case.manifest["tolerance"]["atol"]).mean() <= 0.1


def _hard_examples(case: Case) -> None:
    config = case.config
    n, classes, keep = config["rois"], config["num_classes"], config["keep"]
    assert config["loss_weight"] == [1, MASK_WEIGHT, 1]
    leaves = {
        "cls_score": 2 * _made(case, "cls_score", n, classes),
        "seg_pred": _made(case, "seg_pred", n, 2, 21, 21),
        "bbox_pred": _made(case, "bbox_pred", n, 8),
    }
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    rng = case.recipe.rng_for("targets", case.seed)
    labels = torch.from_numpy(np.where(rng.random(n) < 0.25, rng.integers(1, classes, n), 0))
    masks = torch.from_numpy(rng.random((n, 1, 21, 21)) < 0.5).float()[:, 0]
    codes = torch.from_numpy(rng.standard_normal((n, 8))).float()[:, 4:]
    masks[labels == 0] = -1
    outside, inside = leaves["seg_pred"].unbind(1)
    regions = Regions(leaves["cls_score"].roll(-1, 1), leaves["bbox_pred"][:, 4:], inside - outside)
    each = region_losses(regions, (labels - 1) % classes, masks, codes, FcisConfig().regions.smooth_l1)
    chosen = hardest(each, torch.ones(n, dtype=torch.bool), keep)
    kept = torch.zeros(n, dtype=torch.bool).index_fill(0, chosen, True)
    case.compare("kept", kept.byte(), 0)
    case.compare("mask_kept", (kept & (labels > 0)).byte(), 0)
    case.compare("labels_ohem", labels.masked_fill(~kept, -1).float(), 0)
    weights = F.pad((kept & (labels > 0)).float()[:, None].expand(-1, 4), (4, 0))
    case.compare("bbox_weights_ohem", weights, 0)
    terms = _weighted(each, chosen, keep)
    names = {"cls": "cls_score", "seg": "seg_pred", "bbox": "bbox_pred"}
    for (name, leaf), term in zip(names.items(), terms, strict=True):
        _close(case, f"loss_{name}", term[None])
        _close(case, f"grad_{leaf}", torch.autograd.grad(term, leaves[leaf], retain_graph=True)[0])


def _weighted(each: RegionLosses, chosen: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    label, mask, box = (term[chosen].sum() for term in each)
    return label / len(chosen), MASK_WEIGHT * mask / keep, box / keep


# whole networks -------------------------------------------------------------------------------------------------------


def _filled(case: Case) -> tuple[Fcis, Tensor]:
    """The model with official weights, and the image."""
    model = case.filled(PRESET)
    height, width = case.config["image"]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed)).permute(2, 0, 1)
    return model, (image - torch.tensor(zoo.preset(PRESET).input.mean)[:, None, None])[None]


def _forward(case: Case) -> None:
    model, images = _filled(case)
    official, body = case.weights(), model.backbone.body
    caught: dict[str, Tensor] = {}
    parts = {"conv1": body.conv1, "res2c": body.layer1, "res3b3": body.layer2, "hidden": model.rpn.conv}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, y, name=name: caught.update({name: y.clone()}))
    with torch.no_grad(), watched(model.backbone, model.squeeze, model.score, model.deltas) as seen:
        raw = model(images)
        features, squeezed, maps, boxes = seen
        shallow, deep = features.values()
        squeezed = F.relu(squeezed)
        level = model.anchored(shallow, (images.shape[2], images.shape[3]))
        objectness, deltas = model.rpn(shallow)
    for name in ("conv1", "res2c", "res3b3"):
        _close(case, name, caught[name])
    _close(case, "res4b22", shallow)
    _close(case, "res5c", deep)
    pair = F.conv2d(F.relu(caught["hidden"]), official["rpn_cls_score_weight"], official["rpn_cls_score_bias"])
    _close(case, "rpn_cls_score", pair)
    background, foreground = pair.chunk(2, 1)
    assert torch.allclose(objectness, foreground - background, atol=1e-4)
    _close(case, "rpn_bbox_pred", deltas)
    assert level.objectness.shape[1] == len(level.anchors) == objectness.numel()
    _close(case, "conv_new_1", squeezed)
    _close(case, "fcis_cls_seg", maps.roll(2 * 49, 1))
    weight, bias = (official[f"fcis_bbox_{n}"][: 4 * 49] for n in ("weight", "bias"))
    unread = F.conv2d(squeezed, weight, bias)
    every = torch.cat([unread, boxes], 1)
    _close(case, "fcis_bbox", every)

    rois = _ours(case.stored("rois"))
    half = case.config["rpn_post_nms_top_n"]
    for part in (slice(0, half), slice(half, None)):
        near = (rois[part, None, 1:] - raw.sampled.rois[part, 1:]).abs().amax(2).amin(1) < 0.05
        assert near.float().mean() >= 0.95, near.float().mean()
    with torch.no_grad():
        regions = model.read(corner_sums(maps, 7), corner_sums(boxes, 7), rois)
        code = pool(corner_sums(every, 7), rois, 21, STRIDE).mean((1, 2))
    sure = case.stored("bins_stable").astype(bool)
    inside = regions.mask_logits.sigmoid()
    ours = {
        "cls_prob": regions.class_logits.softmax(1).roll(1, 1),
        "bbox_pred": torch.cat([code[:, :4], regions.box_deltas], 1),
        "seg_pred": torch.stack([1 - inside, inside], 1),
    }
    for name, values in ours.items():
        described = case.manifest["outputs"][name]
        share, slack = _limits(case, name)
        certain = case.part(name, np.broadcast_to(sure.reshape(-1, *[1] * (values.ndim - 1)), values.shape))
        off = np.abs(case.part(name, values) - case.stored(name).reshape(-1))
        assert off[certain].max() <= share * described["absmax"] + slack, (name, off[certain].max())


def _objects(case: Case) -> Target:
    """Ellipses inside of the boxes that the manifest names."""
    text = case.manifest["inputs"].partition("= [[")[2].partition("]]")[0]
    rows = np.array([[float(n) for n in row.split(",")] for row in text.split("], [")])
    height, width = case.config["image"]
    y, x = np.mgrid[:height, :width]
    masks = [
        ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
        for x1, y1, x2, y2, _ in rows
    ]
    return Target.of(rows[:, :4] + EDGE.numpy(), rows[:, 4] - 1, np.stack(masks))


def _train_step(case: Case) -> None:
    model, images = _filled(case)
    config, target, keep = model.config, _objects(case), case.config["batch_rois_ohem"]
    with watched(model.backbone) as seen:
        proposed = model(images).sampled.rois
    shallow, deep = seen[0].values()
    level = model.anchored(shallow, (images.shape[2], images.shape[3]))
    squeezed = F.relu(model.squeeze(deep))
    rois = _ours(case.stored("rois"))
    ours = proposed[: config.proposals.after[1], 1:].detach()
    near = (rois[:, None, 1:] - torch.cat([ours, target.boxes])).abs().amax(2).amin(1) < 0.05
    assert near.float().mean() >= 0.95

    matched = rpn.match_boxes(rois[:, 1:], target, config.regions.iou, config.regions.iou)
    sampled = Sampled(rois, matched)
    labels = model.labels(sampled, [target])
    case.compare("labels", ((labels + 1) % (config.num_classes + 1)).float(), 0)
    masks, codes = region_targets(sampled, [target], config.bins)
    _close(case, "bbox_targets", F.pad(codes, (4, 0)))
    _close(case, "bbox_weights", F.pad((matched >= 0).float()[:, None].expand(-1, 4), (4, 0)))
    _close(case, "mask_targets", masks[:, None])

    maps, boxes = (corner_sums(layer(squeezed), 7) for layer in (model.score, model.deltas))
    regions = model.read(maps, boxes, rois, labels)
    each = region_losses(regions, labels, masks, codes, config.regions.smooth_l1)
    chosen = hardest(each, rois[:, 0] == 0, keep)
    kept = torch.zeros(len(rois), dtype=torch.bool).index_fill(0, chosen, True)
    theirs = ((labels + 1) % (config.num_classes + 1)).masked_fill(~kept, -1).numpy()
    assert (theirs != case.stored("labels_ohem")).sum() <= 2, "near-ties may change places"
    terms = dict(zip(("cls", "seg", "bbox"), _weighted(each, chosen, keep), strict=True))
    terms |= _rpn_terms(case, level)
    total = torch.stack(list(terms.values())).sum()
    for name, term in {**terms, "total": total}.items():
        _close(case, f"loss_{name}", term[None])
    body: Any = model.backbone.body
    leaves = {
        "conv_new_1_weight": model.squeeze.weight,
        "fcis_cls_seg_bias": model.score.bias,
        "fcis_bbox_bias": model.deltas.bias,
        "rpn_conv_3x3_bias": model.rpn.conv.bias,
        "res5c_branch2c_weight": body.layer4[2].conv3.weight,
        "res3a_branch1_weight": body.layer2[0].downsample[0].weight,
    }
    gradients = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    gradients["fcis_cls_seg_bias"] = gradients["fcis_cls_seg_bias"].roll(2 * 49)
    gradients["fcis_bbox_bias"] = F.pad(gradients["fcis_bbox_bias"], (4 * 49, 0))
    for name, gradient in gradients.items():
        _close(case, f"grad.{name}", gradient)


def _rpn_terms(case: Case, level: rpn.RpnRaw) -> dict[str, Tensor]:
    """The loss of the proposals on random targets, whose labels and boxes do not belong together: each comes alone."""
    h, w = (n // STRIDE for n in case.config["image"])
    count = len(level.anchors)
    anchors = count // (h * w)
    rng = case.recipe.rng_for("gt", case.seed)

    def in_order(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).view(anchors, -1, h, w).permute(2, 3, 0, 1).reshape(count, -1)

    labels = in_order(rng.integers(-1, 2, (1, count)))[:, 0]
    codes = in_order(rng.standard_normal((1, 4 * anchors, h, w)))
    weighted = in_order(rng.random((1, anchors, 1, h, w)) < 0.3)[:, 0]
    wanted = rpn.decode(codes, level.anchors.double())
    target = Target.of(wanted, torch.zeros(count))
    target.boxes = wanted
    config = FcisConfig().proposals
    assert config.smooth_l1 == 1 / 9
    place = torch.arange(count)
    named = torch.where(labels == 1, place, torch.where(labels == 0, rpn.BACKGROUND, rpn.NEITHER))
    boxed = torch.where(weighted, place, rpn.NEITHER)
    first = rpn.rpn_loss(level, [named], [target], replace(config, sampled=int((labels >= 0).sum())), share=1.0)
    second = rpn.rpn_loss(level, [boxed], [target], replace(config, sampled=int(weighted.sum())), share=1.0)
    return {"rpn_cls": first.objectness, "rpn_bbox": second.box * weighted.sum() / 256}
