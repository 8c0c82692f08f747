"""FCOS: key map of AdelaiDet's checkpoints, and presets."""

from typing import Literal

from torch import Tensor

from maskkit.config import change
from maskkit.models.fcos import Fcos, FcosConfig
from maskkit.nn.fcos import FcosDetectorConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.key_maps import ADELAIDET_FCOS_KEYS, bgr_to_rgb, rename_by
from maskkit.zoo.recipes import (
    FLIP,
    FROZEN_MOBILENET,
    MULTI_SCALE,
    SMALL_FCOS,
    adelaidet,
    caffe_resnet,
    small_presets,
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return bgr_to_rgb(rename_by(ADELAIDET_FCOS_KEYS, state, "FCOS"))


# presets --------------------------------------------------------------------------------------------------------------


def _official(
    name: str, ap: float, times: int, layers: int = 50, quality: Literal["centerness", "iou"] = "centerness"
) -> Preset:
    config = FcosConfig(backbone=caffe_resnet(layers), detector=FcosDetectorConfig(quality=quality))
    return adelaidet(times, FLIP if times == 1 else MULTI_SCALE).preset(name, config, f"COCO val box AP {ap}")


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
        *small_presets("fcos", lambda _: change(FcosConfig(backbone=FROZEN_MOBILENET), detector=SMALL_FCOS)),
    ),
    rename=rename,
    agreement="AdelaiDet, 5 cases",
)
