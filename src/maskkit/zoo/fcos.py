"""FCOS: key maps of AdelaiDet and mmdetection, and presets."""

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from maskkit.config import change
from maskkit.models.fcos import Fcos, FcosConfig
from maskkit.nn.fcos import FcosDetectorConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.key_maps import ADELAIDET_FCOS_KEYS, MMDETECTION_FCOS_KEYS, as_rows, bgr_to_rgb, rename_by
from maskkit.zoo.recipes import (
    FLIP,
    FROZEN_MOBILENET,
    IMAGENET_MEAN,
    MMDETECTION_FCOS,
    MMDETECTION_INPUT,
    MULTI_SCALE,
    NO_STD,
    PANET_MEAN,
    SMALL_FCOS,
    adelaidet,
    caffe_resnet,
    mmdetection,
    small_presets,
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name.

    The ResNets of both zoos come from Caffe and read BGR.
    """
    return bgr_to_rgb(as_rows(rename_by((*ADELAIDET_FCOS_KEYS, *MMDETECTION_FCOS_KEYS), state, "FCOS")))


# presets --------------------------------------------------------------------------------------------------------------


def _official(
    name: str, ap: float, times: int, layers: int = 50, quality: Literal["centerness", "iou"] = "centerness"
) -> Preset:
    config = FcosConfig(backbone=caffe_resnet(layers), detector=FcosDetectorConfig(quality=quality))
    return adelaidet(times, FLIP if times == 1 else MULTI_SCALE).preset(name, config, f"COCO val box AP {ap}")


def _mmdetection(
    name: str, ap: float, times: int, mean: tuple[float, float, float], layers: int = 50, **knobs: Any
) -> Preset:
    """mmdetection's models. Training takes our box loss, GIoU, for all of them."""
    input = replace(MMDETECTION_INPUT, mean=mean, std=NO_STD)
    config = FcosConfig(backbone=caffe_resnet(layers), detector=FcosDetectorConfig(**MMDETECTION_FCOS, **knobs))
    return mmdetection(times, input).preset(f"{name}-mmdet", config, f"COCO val2017 box AP {ap}")


_PLAIN: dict[str, Any] = {
    "distance_activation": "exp",
    "distance_unit": "pixels",
    "quality_tower": "class",
    "tower_bias": False,
    "nms_threshold": 0.5,
    "radius": 1e6,  # all of the box is positive
}
"""Fields of FCOS as first published, without the later improvements."""

METHOD = Method(
    title="FCOS",
    paper="Tian, Shen, Chen, He: FCOS: A Simple and Strong Anchor-free Object Detector. TPAMI 2021",
    model=Fcos,
    presets=(
        _official("fcos-resnet50-1x", 38.7, 1),
        _official("fcos-resnet50-2x", 41.0, 2),
        _official("fcos-resnet101-2x", 43.1, 2, 101),
        _official("fcos-iou-resnet50-1x", 39.4, 1, quality="iou"),
        _official("fcos-iou-resnet50-2x", 41.5, 2, quality="iou"),
        _official("fcos-iou-resnet101-2x", 43.5, 2, 101, quality="iou"),
        _mmdetection("fcos-plain-resnet50-1x", 36.6, 1, PANET_MEAN, **_PLAIN),
        _mmdetection("fcos-plain-resnet50-2x", 38.5, 2, PANET_MEAN, **_PLAIN),
        _mmdetection("fcos-plain-resnet101-1x", 39.1, 1, PANET_MEAN, 101, **_PLAIN),
        _mmdetection("fcos-plain-resnet101-2x", 40.8, 2, PANET_MEAN, 101, **_PLAIN),
        _mmdetection("fcos-resnet50-1x", 38.7, 1, IMAGENET_MEAN),
        *small_presets("fcos", lambda _: change(FcosConfig(backbone=FROZEN_MOBILENET), detector=SMALL_FCOS)),
    ),
    rename=rename,
    agreement="AdelaiDet, 5 cases; mmdetection, 4 cases",
)
