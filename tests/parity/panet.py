"""PANet against its authors' re-release. Every stored tensor of a case is compared; nothing is left out.

Official boxes end with the number of their last pixel: theirs plus `EDGE` are ours.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.decode import decode
from maskkit.geometry.boxes import has_area
from maskkit.models.base import to_arrays
from maskkit.models.panet import Panet
from maskkit.nn import roi, rpn
from maskkit.nn.mask_stage import MaskRegions, loss_from_masks
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Target
from tests.parity.goldens import Case, watched

PRESETS = {
    "e2e_panet_R-50-FPN_2x_mask": "panet-resnet50-2x",
    "e2e_panet_R-50-FPN_1x_det": "panet-resnet50-det-1x",
    "e2e_panet_R-50-FPN_1x_det_2fc": "panet-resnet50-det-2fc-1x",
}
EDGE = torch.tensor([0, 0, 1, 1])


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told_by = {"pyramid_N2": _forward, "decoded": _postprocess, "grad_mask": _losses}
    next(check for name, check in told_by.items() if name in case.outputs)(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _close(case: Case, name: str, ours: Tensor) -> None:
    share = case.manifest["tolerance"]["rtol"]
    case.compare(name, ours, share, share * case.manifest["outputs"][name]["std"])


def _stored(case: Case, name: str) -> Tensor:
    return torch.from_numpy(case.stored(name))


def _forward(case: Case) -> None:
    name = PRESETS[case.config["yaml"].rpartition("/")[2].removesuffix(".yaml")]
    official = case.weights()
    model = case.filled(name, official)
    height, width = case.config["image"]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed)).permute(2, 0, 1)
    images = (image - torch.tensor(zoo.preset(name).input.mean)[:, None, None])[None]
    caught: dict[str, Tensor] = {}
    hook = model.box_head.label.register_forward_pre_hook(lambda _, inputs: caught.update(features=inputs[0]))
    with torch.no_grad():
        features = list(model.backbone(images).values())
        with watched(model.fpn.fpn) as seen:
            levels = model.fpn(features)
        _close(case, "res5", features[-1])
        for i, level in enumerate(seen[0]):
            _close(case, f"fpn_middle_P{i + 2}", level)
        for i, level in enumerate(levels):
            objectness, deltas = model.rpn(level)
            _close(case, f"pyramid_N{i + 2}", level)
            _close(case, f"rpn_logits_lvl{i + 2}", objectness)
            _close(case, f"rpn_deltas_lvl{i + 2}", deltas)
        said, extents = model.anchored(levels, (height, width)), rpn.extents_of(images, None)
        _same_proposals(case, rpn.propose(said, extents, model.config.proposals, training=False).boxes[0])
        for name in ("rois", "fixed_rois"):
            rois = _stored(case, name) + F.pad(EDGE, (1, 0))
            pooled = model.pool(levels, rois, 7)
            logits, deltas = model.box_head(pooled)
            suffix = "fixed" if name == "fixed_rois" else "rois"
            # background is their first class and our last; ours has no box
            weight, bias = (official[f"Box_Outs.bbox_pred.{n}"][:4] for n in ("weight", "bias"))
            boxes = torch.cat([F.linear(caught["features"], weight, bias), deltas.flatten(1)], 1)
            _close(case, f"cls_prob_{suffix}", logits.softmax(1).roll(1, 1))
            _close(case, f"bbox_pred_{suffix}", boxes)
        for i, level in enumerate(pooled):
            _close(case, f"roialign_N{i + 2}", level)
        _close(case, "box_feature_fixed", caught["features"])
        if model.config.masks:
            _masks(case, model, model.pool(levels, rois, 14), official)
    hook.remove()


def _same_proposals(case: Case, ours: Tensor) -> None:
    """Nearly all of the official regions, and no others, are among ours; scores of random weights lie close."""
    official = _stored(case, "rois")[:, 1:] + EDGE
    ours = ours[has_area(ours)]
    assert abs(len(ours) - len(official)) <= 0.02 * len(official)
    near = (official[:, None] - ours).abs().amax(2).amin(1) < 0.05
    assert near.float().mean() > 0.95, near.float().mean()


def _masks(case: Case, model: Panet, pooled: Tensor, official: dict[str, Tensor]) -> None:
    head = model.mask_head
    features, foreground = head.features(pooled)
    _close(case, "mask_feat_fcn_fixed", features)
    _close(case, "mask_feat_ff_fixed", foreground)
    weight, bias = (official[f"Mask_Outs.classify.{n}"][:1] for n in ("weight", "bias"))
    background = F.conv2d(features, weight, bias)
    side = foreground.view(-1, 1, *features.shape[2:])
    logits = torch.cat([background, head.predictor(features)], 1) + side
    _close(case, "mask_prob_fixed", logits.sigmoid())
    labels = torch.arange(len(features)) * 7 % model.config.num_classes
    # the masks of one class each, as the model computes them
    assert torch.allclose(head(pooled, labels), logits[torch.arange(len(labels)), labels + 1], atol=1e-4)


def _postprocess(case: Case) -> None:
    config, classes = case.config, case.config["num_classes"] - 1
    height, width = config["image"]
    rois = _stored(case, "rois_in") + EDGE
    made = case.recipe.seeded_array
    deltas = torch.from_numpy(0.6 * made("deltas", (len(rois), 4 * classes + 4), case.seed)).unflatten(1, (-1, 4))
    logits = torch.from_numpy(2 * made("scores", (len(rois), classes + 1), case.seed)).roll(-1, 1)
    assert config["bbox_reg_weights"] == list(roi.BOX_WEIGHTS)
    limit = torch.tensor([width, height, width, height]) - 1
    decoded = rpn.decode(deltas, rois[:, None], roi.BOX_WEIGHTS) - EDGE
    close = case.manifest["tolerance"]["dets"]
    case.compare("decoded", torch.minimum(decoded.clamp(min=0), limit).flatten(1), 0, close)
    found = roi.detect(
        logits[None],
        deltas[None, :, 1:],
        rois[None],
        torch.tensor([[width, height]]).float(),
        roi.RegionConfig(
            min_score=config["score_thresh"],
            nms_threshold=config["nms"],
            candidates=len(rois) * classes,
            detections=config["detections"],
        ),
    )
    kept = found.scores[0] > 0
    boxes, labels, scores = (t[0][kept] for t in found)
    order = torch.from_numpy(np.lexsort((-scores.numpy(), labels.numpy())))
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    rows = torch.cat([boxes - EDGE, scores[:, None], labels[:, None] + 1], 1)
    case.compare("dets", rows, 0, close)

    small = torch.from_numpy(3 * made("mask_logits", (len(boxes), 7, 7), case.seed)).sigmoid()
    grids = F.interpolate(small[:, None], size=(28, 28), mode="bilinear")[:, 0]
    model = _without_weights("panet-resnet50-2x")
    size = torch.tensor([width, height])
    regions = MaskRegions(F.pad(boxes, (1, 0)), labels, scores)
    raw: Any = (SimpleNamespace(extents=size[None], size=size), regions, grids.logit())
    meta = ImageMeta(1, "", (height, width), (height, width))
    categories = Categories.of(map(str, range(classes)))
    final = decode(model.decoder, to_arrays(model.select(raw)), [meta], categories)[0].instances
    assert final is not None
    assert final.masks is not None
    place = np.argsort(-scores.numpy(), kind="stable")  # where `decode` puts each row
    ours = np.empty((len(boxes), height, width), bool)
    ours[place] = final.masks.dense()
    area = case.stored("mask_area").astype(np.int64)
    assert (np.abs(ours.sum((1, 2)) - area) <= 1 + 0.005 * area).all()
    packed = case.stored("masks_packed")
    masks = np.unpackbits(packed, axis=1)[:, : height * width].reshape(-1, height, width).astype(bool)
    mine = ours[: len(masks)]
    iou = (masks & mine).sum((1, 2)) / np.maximum((masks | mine).sum((1, 2)), 1)
    assert iou.min() > float(case.manifest["tolerance"]["masks"].split()[2]), iou.min()


def _without_weights(name: str) -> Panet:
    with torch.device("meta"):
        return Panet(zoo.preset(name).model)  # type: ignore[arg-type]


def _losses(case: Case) -> None:
    """Losses on given targets, packed into objects: a box that has the code, a mask of its region."""
    classes, n = case.config["num_classes"] - 1, case.config["n"]
    made, rng = case.recipe.seeded_array, case.recipe.rng_for("targets", case.seed)
    shapes = {"cls_score": (n, classes + 1), "bbox_pred": (n, 4 * classes + 4), "mask_pred": (n, classes + 1, 28, 28)}
    leaves = [torch.from_numpy(made(k, shape, case.seed)).requires_grad_() for k, shape in shapes.items()]
    labels = rng.integers(0, classes + 1, n)
    labels[n // 2 :] = 0
    codes = torch.from_numpy(rng.standard_normal((n, 4 * classes + 4))).unflatten(1, (-1, 4))
    positive = np.flatnonzero(labels)
    masks = torch.from_numpy(np.stack([rng.random((28, 28)) < 0.5 for _ in positive]))

    region = torch.tensor([0.0, 0, 28, 28], dtype=torch.float64)
    place = torch.from_numpy(positive)
    boxes = rpn.decode(codes[place, torch.from_numpy(labels[positive])], region, roi.BOX_WEIGHTS)
    targets = [Target.of(boxes, labels[positive] - 1, masks)]
    targets[0].boxes = boxes
    matched = torch.full((n,), -1)
    matched[place] = torch.arange(len(positive))
    rois = F.pad(region, (1, 0)).expand(n, 5)
    logits, deltas, mask_logits = leaves
    model = _without_weights("panet-resnet50-2x")
    sampled = roi.Sampled(rois, matched)
    label, box = roi.box_loss(
        logits.roll(-1, 1), deltas.unflatten(1, (-1, 4))[:, 1:], sampled, targets, model.config.regions.smooth_l1
    )
    mine = roi.Sampled(rois[place].float(), matched[place])
    known = torch.ones(len(place), dtype=torch.bool)
    mine_logits = mask_logits[place, torch.from_numpy(labels[positive])]
    mask = loss_from_masks(mine_logits, mine, known, targets, model.config.mask)
    limits = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    for name, term, leaf in zip(("cls", "bbox", "mask"), (label, box, mask), leaves, strict=True):
        case.compare(f"loss_{name}", term[None], *limits)
        case.compare(f"grad_{name}", torch.autograd.grad(term, leaf)[0], *limits)
    right = (logits.argmax(1).numpy() == labels).mean()
    case.compare("accuracy", np.array([right]), 0)
