"""PolarMask against xieenze/PolarMask. Every stored tensor of a case is compared; nothing is left out."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.models.polarmask import PolarMask, PolarMaskConfig, PolarMaskRaw
from maskkit.nn.fcos_targets import assign_locations, find_positives, locate
from maskkit.nn.polar import corners, outlines, polar_centerness, ray_targets
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from maskkit.zoo.polarmask import rename
from tests.parity.goldens import Case


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD+LOSS": _head, "LOSS": _targets, "POSTPROCESS": _postprocess}[case.manifest["kind"]](case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _model(**knobs: Any) -> PolarMask:
    preset = zoo.preset("polarmask-resnet50-1x")
    assert isinstance(preset.model, PolarMaskConfig)
    return PolarMask(change(preset.model, **knobs))


def _batch(case: Case) -> Batch:
    """The ellipses that the manifest writes down; their boxes end at the last pixel, as all of mmdetection 1 has it."""
    text, (height, width) = case.manifest["inputs"], case.config["image"]
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    masks = []
    for numbers in re.findall(r"\(([\d.]+(?:,-?[\d.]+){4})\)", text):
        cy, cx, ry, rx, t = (float(n) for n in numbers.split(","))
        cy, cx = cy * height / 256, cx * width / 256
        u = (x - cx) * np.cos(t) + (y - cy) * np.sin(t)
        v = -(x - cx) * np.sin(t) + (y - cy) * np.cos(t)
        masks.append((u / rx) ** 2 + (v / ry) ** 2 <= 1)
    labels = [int(n) - 1 for n in re.findall(r"labels ([\d,]+)", text)[0].split(",")]
    target = Target.of(np.zeros((len(masks), 4)), labels, np.stack(masks))
    assert target.masks is not None
    target.boxes = target.masks.boxes() - torch.tensor([0, 0, 1, 1])
    images = torch.zeros(1, 3, height, width)
    return Batch(images, full_sizes(images), [target], [ImageMeta(0, "", (height, width), (1, 1))])


def _head(case: Case) -> None:
    config = case.config
    model = _model(num_classes=config["num_classes"] - 1, detector={"strides": tuple(config["strides"])})
    official = rename({f"bbox_head.{n}": t for n, t in case.weights().items()})
    model.head.load_state_dict({n.removeprefix("head."): t for n, t in official.items()})
    height, width = config["image"]
    features = [
        torch.from_numpy(case.recipe.seeded_array(f"feat{i}", (1, 256, height // s, width // s), case.seed))
        for i, s in enumerate(config["strides"])
    ]
    raw = model.head(features)
    fields = {"cls": raw.logits, "bbox": raw.distances, "centerness": raw.centerness, "mask": raw.rays}
    for name, levels in fields.items():
        for i, level in enumerate(levels):
            case.compare(f"{name}_{i}", level, 0, 1e-3 * case.manifest["outputs"][f"{name}_{i}"]["std"])
    losses = model.loss_terms(raw, _batch(case))
    for official, name in (("cls", "classification"), ("bbox", "box"), ("mask", "mask"), ("centerness", "quality")):
        case.compare(f"loss_{official}", losses[name], case.manifest["tolerance"]["rtol"])


def _targets(case: Case) -> None:
    config = case.config
    close = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    model = _model(detector={"strides": tuple(config["strides"]), "radius": config["radius"]})
    batch = _batch(case)
    target, (height, width) = batch.targets[0], config["image"]
    locations = locate([torch.zeros(1, 1, height // s, width // s) for s in config["strides"]], config["strides"])
    detector, truth = model.config.detector, outlines(target)
    case.compare("mass_centers", truth.centres, 0)
    matches = assign_locations(target, truth.centres, locations, detector.size_ranges, detector.radius)
    case.compare("labels", matches.classes, 0)
    positives = find_positives([matches], [target], locations)
    case.compare("positive_index", positives.location, 0)
    case.compare("bbox_targets", positives.distances * locations.stride[positives.location, None], *close)
    rays = ray_targets(positives, [truth], locations.xy, model.config.rays)
    case.compare("mask_targets", rays, *close)
    case.compare("centerness", polar_centerness(rays), *close)


def _postprocess(case: Case) -> None:
    config = case.config
    close = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    model = _model(
        detector={
            "candidates": config["nms_pre"],
            "min_score": config["score_thr"],
            "nms_threshold": config["nms"],
            "detections": config["max_per_img"],
            "score_offset": config["centerness_offset"],
        },
    )
    height, width = config["img_shape"]
    fields: dict[str, list[torch.Tensor]] = {"pc": [], "pb": [], "pt": [], "pm": []}
    for i, s in enumerate(model.config.detector.strides):
        grid = (-(-height // 32) * 32 // s, -(-width // 32) * 32 // s)
        for name, channels in (("pc", 80), ("pb", 4), ("pt", 1), ("pm", 36)):
            made = torch.from_numpy(case.recipe.seeded_array(f"{name}{i}", (1, channels, *grid), case.seed))
            if name in ("pb", "pm"):
                made = 12 * 2**i * torch.exp(0.3 * made)
            fields[name].append(made - 4.5 if name == "pc" else made)
    raw = PolarMaskRaw(*(tuple(levels) for levels in fields.values()))
    last = height - 1, width - 1  # the official code clips to the number of the last pixel
    found = model.detect(raw, last)
    scale = config["scale_factor"]
    case.compare("dets", torch.cat([found.boxes[0] / scale, found.scores[0, :, None]], 1), *close)
    case.compare("labels", found.labels[0], 0)
    xy = locate(raw.logits, model.config.detector.strides).xy[found.locations[0]]
    points = corners(xy, found.extra[0]).clamp(min=0).minimum(torch.tensor([last[1], last[0]]))
    case.compare("contours", points.transpose(1, 2) / scale, *close)
