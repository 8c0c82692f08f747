"""Faster R-CNN, with PAFPN too, Mask R-CNN in both styles and Cascade Mask R-CNN of mmdetection."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.models.cascade_rcnn import CascadeRcnn
from maskkit.models.faster_rcnn import FasterRcnn
from maskkit.models.mask_rcnn import MaskRcnn
from maskkit.nn import roi, rpn
from maskkit.nn.mask_stage import final_regions, object_masks
from maskkit.nn.two_stage import STRIDES, BoxRaw
from tests.parity.goldens import Case, watched
from tests.parity.mask_rcnn import _same_rows as same_rows
from tests.parity.mmdet import official
from tests.parity.mmdet.official import near

Rcnn = FasterRcnn | MaskRcnn | CascadeRcnn


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess}[case.manifest["kind"]](case)


def _preset(case: Case) -> str:
    """The preset of ``mask-rcnn_r50-caffe_fpn_1x_coco`` is ``maskrcnn-resnet50-caffe-mmdet-1x``."""
    m = re.fullmatch(r"(cascade|mask|faster)-(?:mask-)?rcnn_r(\d+)(-caffe)?_(pa)?fpn_(\w+)_coco", case.config["name"])
    assert m is not None
    return f"{m[1]}rcnn-resnet{m[2]}{m[3] or ''}{'-pafpn' if m[4] else ''}-mmdet-{m[5]}"


def _forward(case: Case) -> None:
    preset = _preset(case)
    model: Rcnn = official.model_of(case, preset)
    _same_settings(case, model)
    batch = official.image_batch(case, preset)
    with watched(model.fpn) as seen:
        raw = official.run_on(case, model, batch)
    levels: list[Tensor] = seen[0]
    size = (batch.images.shape[2], batch.images.shape[3])
    with torch.no_grad():
        maps = [model.rpn(level) for level in levels]
        anchored = model.anchored(levels, size)
        extents = rpn.extents_of(batch.images, batch.sizes)
        proposals = rpn.propose(anchored, extents, model.config.proposals, training=False)
    for i, (objectness, deltas) in enumerate(maps):
        case.compare(f"rpn.cls.{i}", objectness, *near(case))
        case.compare(f"rpn.reg.{i}", deltas, *near(case))
        case.compare(f"priors.{i}", anchored[i].anchors, *near(case))
    for i, (boxes, logits) in enumerate(zip(*proposals, strict=True)):
        kept = logits.isfinite()
        _compare_proposals(case, f"proposals.{i}.", boxes[kept], logits[kept].sigmoid())
    _compare_heads(case, model, levels)
    found = decode(model.decoder, to_arrays(model.select(raw)), batch.metas, official.CATEGORIES)
    for i, prediction in enumerate(found):
        ours = prediction.instances
        assert ours is not None
        theirs = [case.stored(f"final.{i}.{name}") for name in ("boxes", "scores", "labels")]
        assert abs(len(ours) - int(case.stored(f"final.{i}.count")[0])) <= 2
        pairs = same_rows(theirs, (ours.boxes, ours.scores, ours.labels), misses=2)
        if f"final.{i}.mask_area" in case.outputs:
            assert ours.masks is not None
            area = case.stored(f"final.{i}.mask_area")[pairs[:, 0]]
            off = np.abs(ours.masks.areas()[pairs[:, 1]] - area)
            assert (off <= 2 + 0.002 * area).all(), off.max()


def _same_settings(case: Case, model: Rcnn) -> None:
    """Thresholds and numbers of the official configuration are those of the preset."""
    test = case.config["model"]["test_cfg"]
    proposals, regions = model.config.proposals, model.config.regions
    first, second = test["rpn"], test["rcnn"]
    assert (first["nms_pre"], first["max_per_img"]) == (proposals.before[1], proposals.after[1])
    assert first["nms"]["iou_threshold"] == proposals.nms_threshold
    assert (second["score_thr"], second["max_per_img"]) == (regions.min_score, regions.detections)
    assert second["nms"]["iou_threshold"] == regions.nms_threshold
    head = case.config["model"]["roi_head"]
    if isinstance(model, CascadeRcnn):
        for ours, theirs, weight in zip(
            model.config.stages, head["bbox_head"], head["stage_loss_weights"], strict=True
        ):
            wanted = [ours.centre_deviation] * 2 + [ours.size_deviation] * 2
            assert theirs["bbox_coder"]["target_stds"] == wanted
            assert weight == ours.weight


def _compare_proposals(case: Case, start: str, boxes: Tensor, scores: Tensor) -> None:
    assert abs(len(boxes) - int(case.stored(f"{start}count")[0])) <= 2
    theirs = case.stored(f"{start}boxes"), case.stored(f"{start}scores")
    same_rows(theirs, (boxes.numpy(), scores.numpy()), misses=2)


def _compare_heads(case: Case, model: Rcnn, levels: list[Tensor]) -> None:
    """The heads on fixed boxes of the first image."""
    boxes = torch.tensor(case.manifest["fixed_boxes"]["value"])
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    many = isinstance(model, CascadeRcnn)
    heads: list[Any] = [model.box_head, *(model.later_heads if isinstance(model, CascadeRcnn) else ())]
    masks: list[Any] = []
    if isinstance(model, MaskRcnn):
        masks = [model.mask_head]
    elif isinstance(model, CascadeRcnn):
        masks = list(model.mask_heads)
    with torch.no_grad():
        pooled = model.pool(levels, rois, 7)
        if "fixed.box_pooled" in case.outputs:
            case.compare("fixed.box_pooled", pooled, *near(case))
        for i, head in enumerate(heads):
            end = f".{i}" if many else ""
            logits, deltas = head(pooled)
            case.compare(f"fixed.cls{end}", logits, *near(case))
            case.compare(f"fixed.reg{end}", deltas[:, 0] if many else deltas.flatten(1), *near(case))
        if masks:
            pooled = model.pool(levels, rois, 14)
            if "fixed.mask_pooled" in case.outputs:
                case.compare("fixed.mask_pooled", pooled, *near(case))
            for i, head in enumerate(masks):
                end = f".{i}" if many else ""
                logits = head.predictor(head.features(pooled))
                case.compare(f"fixed.mask{end}", logits, *near(case))


def _postprocess(case: Case) -> None:
    model: MaskRcnn = official.model_of(case, _preset(case), fill=False)
    given = case.manifest["input"]
    height, width = given["meta"]["img_shape"]
    padded = given["meta"]["padded_hw"]
    extents = torch.tensor([[width, height]]).float()
    scene = case.scenes.make_scene(case.seed, height, width, 14)
    made = case.scenes.rpn_raw(case.seed, scene, *padded)
    maps = [[torch.from_numpy(m)[None] for m in made[name]] for name in ("objectness", "deltas")]
    anchors = rpn.detectron2_anchors(model.config.proposals, maps[0], STRIDES, (padded[0], padded[1]))
    levels = [rpn.RpnRaw(*rpn.flatten(o, d), mine) for o, d, mine in zip(*maps, anchors, strict=True)]
    boxes, logits = rpn.propose(levels, extents, model.config.proposals, training=False)
    kept = logits[0].isfinite()
    assert int(kept.sum()) == int(case.stored("proposals.count")[0])
    _equal_but_for_ties(case, "proposals", boxes[0, kept], logits[0, kept].sigmoid())

    scene = case.scenes.make_scene(case.seed, height, width, 16)
    raw = {n: torch.from_numpy(t)[None] for n, t in case.scenes.rcnn_raw(case.seed, scene, height, width).items()}
    deltas = raw["deltas"].unflatten(2, (-1, 4))
    found = roi.detect(raw["scores"], deltas, raw["proposals"], extents, model.config.regions)
    count = int((found.scores > 0).sum())
    close = case.manifest["tolerance"]
    case.compare("detect.boxes", found.boxes[0, :count], 0, close["boxes"])
    case.compare("detect.scores", found.scores[0, :count], 0, close["scores"])
    assert np.array_equal(case.stored("detect.labels"), found.labels[0, :count])

    shape = (count, model.config.num_classes, 28, 28)
    masks = torch.from_numpy(
        case.scenes.quantise(2.5 * case.scenes.maps_raw("mask_logits", shape, case.seed, smooth=5))
    )
    own = masks[torch.arange(count), found.labels[0, :count]]
    drawn = torch.cat([own, own.new_zeros(found.labels.shape[1] - count, 28, 28)])
    size = torch.tensor([padded[1], padded[0]]).float()
    boxes_raw = BoxRaw(*[None] * 4, extents, size)  # type: ignore[arg-type]
    selected = object_masks(boxes_raw, final_regions(found), drawn)
    instances = official.decoded(case, model, selected)
    official.compare_found(case, instances)
    assert instances.masks is not None
    official.compare_masks(case, instances.masks.dense(), 0.002)


def _equal_but_for_ties(case: Case, name: str, boxes: Tensor, scores: Tensor) -> None:
    """Logits are multiples of 1/1024: equal ones may change places."""
    theirs: Sequence[np.ndarray] = (case.stored(f"{name}.boxes"), case.stored(f"{name}.scores"))
    same_rows(theirs, (boxes.numpy(), scores.numpy()), misses=0)
