"""FCN: key maps of wkentaro/pytorch-fcn (Caffe's layers, BGR images), torchvision and mmsegmentation, and presets."""

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from maskkit.config import BackboneConfig, InputConfig, TrainConfig, change
from maskkit.errors import DataError
from maskkit.models.fcn import Fcn, FcnConfig
from maskkit.nn.backbones.vgg import LAYOUT
from maskkit.zoo import mmsegmentation
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import VOC_SEMANTIC
from maskkit.zoo.key_maps import Rules
from maskkit.zoo.recipes import (
    FLIP,
    MOBILENET,
    NO_STD,
    TORCHVISION_SEMANTIC,
    TORCHVISION_WEIGHTS,
    Recipe,
    small_semantic,
)

_SKIPS = {"score_pool4": "skips.0", "score_pool3": "skips.1", "upscore2": "enlarge.0", "upscore_pool4": "enlarge.1"}
_HEAD = {"fc6": "fc.0", "fc7": "fc.3", "score_fr": "score", "upscore": "last", "upscore16": "last", "upscore8": "last"}
_LAYERS = _SKIPS | _HEAD
_MMSEGMENTATION: Rules = (
    *mmsegmentation.unit(r"convs\.(\d)", r"score.convs.\1"),
    *mmsegmentation.unit(r"conv_cat", "score.join"),
    (r"conv_seg\.(\w+)", r"score.score.1.\1"),
)


def vgg_layer(stage: int, number: int, per_conv: int = 2) -> int:
    """Index in ``features`` of convolution ``number`` of ``stage``, both from 1; two layers each, three with a norm."""
    before = sum(len(widths) * per_conv + 1 for widths in LAYOUT[: stage - 1])
    return before + (number - 1) * per_conv


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    if mmsegmentation.is_mmsegmentation(state):
        return mmsegmentation.rename(state, _MMSEGMENTATION, "FCN")
    renamed = {_name(n): t for n, t in state.items()}
    first = "backbone.body.features.0.weight"
    if first in renamed:
        renamed[first] = renamed[first].flip(1)  # Caffe's images are BGR
    return renamed


def _name(name: str) -> str:
    if m := re.fullmatch(r"conv(\d)_(\d)\.(\w+)", name):
        return f"backbone.body.features.{vgg_layer(int(m[1]), int(m[2]))}.{m[3]}"
    layer, _, leaf = name.rpartition(".")
    if layer in _LAYERS:
        return f"{_LAYERS[layer]}.{leaf}"
    if m := re.fullmatch(r"backbone\.((?:conv1|bn1|layer\d)\..+)", name):
        return f"backbone.body.{m[1]}"
    if m := re.fullmatch(r"(aux_)?classifier\.([014]\.\w+)", name):
        return f"{'auxiliary' if m[1] else 'score'}.{m[2]}"
    raise DataError(f"{name!r} is not a tensor in checkpoints of FCN")


# presets --------------------------------------------------------------------------------------------------------------

_CAFFE = Recipe(
    InputConfig((500, 500), "pad", mean=(122.67891434, 116.66876762, 104.00698793), std=NO_STD),
    replace(FLIP, flip=0.0),
    TrainConfig(steps=100_000, batch=1, momentum=0.99, decay_norm=False, milestones=(), schedule="steps"),
    Weights("fcn.berkeleyvision.org by wkentaro/pytorch-fcn", "BSD-2-Clause"),
    VOC_SEMANTIC,
)


def _caffe(name: str, miou: float, lr: float, **knobs: Any) -> Preset:
    config = FcnConfig(num_classes=21, backbone=BackboneConfig("vgg16"), reduction="sum", **knobs)
    return _CAFFE.preset(name, config, f"VOC 2011 seg11valid mIoU {miou}", train=replace(_CAFFE.train, lr=lr))


def _torchvision(layers: int, miou: float) -> Preset:
    config = FcnConfig(num_classes=21, backbone=BackboneConfig(f"resnet{layers}"), head="dilated", auxiliary=0.5)
    paper = f"COCO val2017, VOC's classes, mIoU {miou} (torchvision)"
    weights = replace(TORCHVISION_WEIGHTS, torchvision=f"FCN_ResNet{layers}_Weights.COCO_WITH_VOC_LABELS_V1")
    return TORCHVISION_SEMANTIC.preset(f"fcn-resnet{layers}-coco", config, paper, weights=weights)


def _mmsegmentation(data: str, layers: int, miou: float, end: str) -> Preset:
    config = FcnConfig(head="joined", **mmsegmentation.fields(layers, data))
    return mmsegmentation.preset("fcn", layers, data, config, miou, end)


def _small(name: str, size: tuple[int, int], ours: str | None = None, **knobs: Any) -> Preset:
    config = change(FcnConfig(num_classes=21, backbone=MOBILENET), **knobs)
    return small_semantic(name, config, size, ours)


METHOD = Method(
    title="FCN",
    paper="Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation. CVPR 2015",
    model=Fcn,
    presets=(
        _caffe("fcn32s-vgg16", 63.6, 1e-10, skips=0),
        _caffe("fcn16s-vgg16", 65.0, 1e-12, skips=1),
        _caffe("fcn8s-vgg16", 65.5, 1e-14, skips=2),
        _caffe("fcn8s-vgg16-at-once", 65.4, 1e-10, skips=2, skip_scales=(0.01, 0.0001)),
        _caffe("fcn8s-vgg16-staged", 65.5, 1e-10, skips=2, staged=True),
        _torchvision(50, 60.5),
        _torchvision(101, 63.7),
        _mmsegmentation("ade20k", 50, 35.94, "20200614_144016-f8ac5082"),
        _mmsegmentation("ade20k", 101, 39.61, "20200615_014143-bc1809f7"),
        _mmsegmentation("cityscapes", 50, 73.61, "20200606_113019-03aa804d"),
        _mmsegmentation("cityscapes", 101, 75.13, "20200606_113038-3fb937eb"),
        _mmsegmentation("voc", 50, 66.97, "20200613_161222-5e2dbf40"),
        _mmsegmentation("voc", 101, 69.91, "20200613_161240-4c8bcefd"),
        _small("fcn8s-mobilenetv2-320", (320, 320)),
        _small("fcn8s-mobilenetv2-256", (256, 256)),
        _small("fcn8s-mobilenetv2-camvid", (360, 480), "CamVid val mIoU 0.671, 20 min on 1 core", num_classes=11),
        _small("fcn32s-mobilenetv2-camvid", (360, 480), num_classes=11, skips=0),
    ),
    rename=rename,
    agreement="wkentaro/pytorch-fcn, 4 cases; mmsegmentation, 1 case; torchvision live",
)
