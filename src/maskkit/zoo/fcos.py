"""FCOS: key maps of AdelaiDet, mmdetection and torchvision (BSD-3-Clause), and presets."""

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from maskkit.config import BackboneConfig, change
from maskkit.models.fcos import Fcos, FcosConfig
from maskkit.nn.fcos import FcosDetectorConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.key_maps import (
    ADELAIDET_FCOS_KEYS,
    MMDETECTION_FCOS_KEYS,
    TORCHVISION_PYRAMID_KEYS,
    Rules,
    as_rows,
    bgr_to_rgb,
    rename_by,
)
from maskkit.zoo.recipes import (
    ADELAIDET,
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
    mmdetection_file,
    small_presets,
    torchvision_detection,
)

_TORCHVISION: Rules = (
    *TORCHVISION_PYRAMID_KEYS,
    (r"head\.classification_head\.conv\.(.+)", r"head.class_tower.\1"),
    (r"head\.classification_head\.cls_logits\.(.+)", r"head.logits.\1"),
    (r"head\.regression_head\.conv\.(.+)", r"head.box_tower.\1"),
    (r"head\.regression_head\.bbox_reg\.(.+)", r"head.sides.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(.+)", r"head.quality.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name.

    The ResNets of AdelaiDet and mmdetection come from Caffe and read BGR. torchvision's first class is background,
    which is never read.
    """
    if any(name.startswith("head.classification_head.") for name in state):
        renamed = rename_by(_TORCHVISION, state, "FCOS")
        return {n: t[1:] if n.startswith("head.logits.") else t for n, t in renamed.items()}
    return bgr_to_rgb(as_rows(rename_by((*ADELAIDET_FCOS_KEYS, *MMDETECTION_FCOS_KEYS), state, "FCOS")))


# presets --------------------------------------------------------------------------------------------------------------


def _official(
    name: str,
    ap: float,
    times: int,
    layers: int = 50,
    quality: Literal["centerness", "iou"] = "centerness",
    weights: Weights = ADELAIDET,
) -> Preset:
    config = FcosConfig(backbone=caffe_resnet(layers), detector=FcosDetectorConfig(quality=quality))
    recipe = adelaidet(times, FLIP if times == 1 else MULTI_SCALE)
    return recipe.preset(name, config, f"COCO val box AP {ap}", weights=weights)


def _mmdetection(
    name: str,
    ap: float,
    file: str,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    layers: int = 50,
    *,
    deformable: bool = False,
    **knobs: Any,
) -> Preset:
    """mmdetection's models. Training takes our box loss, GIoU, for all of them."""
    times = 2 if "_2x_" in file else 1
    recipe = mmdetection(times, replace(MMDETECTION_INPUT, mean=mean, std=NO_STD))
    config = FcosConfig(
        backbone=caffe_resnet(layers),
        detector=FcosDetectorConfig(**MMDETECTION_FCOS, **knobs),
        deformable=deformable,
    )
    folder, _, end = file.rpartition("-")
    weights = mmdetection_file(f"v2.0/fcos/{folder}", f"-{end}")
    return recipe.preset(f"{name}-mmdet-{times}x", config, f"COCO val2017 box AP {ap}", weights=weights)


def _plain(layers: int, ap: float, kind: str, end: str) -> Preset:
    file = f"fcos_r{layers}_caffe_fpn_gn-head_{kind}_coco-{end}"
    return _mmdetection(f"fcos-plain-resnet{layers}", ap, file, PANET_MEAN, layers, **_PLAIN)


_PLAIN: dict[str, Any] = {
    "distance_activation": "exp",
    "distance_unit": "pixels",
    "quality_tower": "class",
    "tower_bias": False,
    "nms_threshold": 0.5,
    "radius": 1e6,  # all of the box is positive
}
"""Fields of FCOS as first published, without the later improvements."""

_TORCHVISION_FCOS = FcosDetectorConfig(
    level_scales=False,
    score_with_quality=True,
    min_score=0.04,  # of class times quality, whose root has to exceed 0.2
    clip=True,
)

METHOD = Method(
    title="FCOS",
    paper="Tian, Shen, Chen, He: FCOS: A Simple and Strong Anchor-free Object Detector. TPAMI 2021",
    model=Fcos,
    presets=(
        _official(
            "fcos-resnet50-1x",
            38.7,
            1,
            weights=ADELAIDET.at("https://huggingface.co/tianzhi/AdelaiDet-FCOS/resolve/main/FCOS_R_50_1x.pth"),
        ),
        _official("fcos-resnet50-2x", 41.0, 2),
        _official("fcos-resnet101-2x", 43.1, 2, 101),
        _official("fcos-iou-resnet50-1x", 39.4, 1, quality="iou"),
        _official("fcos-iou-resnet50-2x", 41.5, 2, quality="iou"),
        _official("fcos-iou-resnet101-2x", 43.5, 2, 101, quality="iou"),
        _plain(50, 36.6, "1x", "821213aa"),
        _plain(50, 38.5, "mstrain_640-800_2x", "d92ceeea"),
        _plain(101, 39.1, "1x", "0e37b982"),
        _plain(101, 40.8, "mstrain_640-800_2x", "511424d6"),
        _mmdetection(
            "fcos-resnet50",
            38.7,
            "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco-0a0d75a8",
        ),
        _mmdetection(
            "fcos-dcn-resnet50",
            42.3,
            "fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn_1x_coco-ae4d8b3d",
            deformable=True,
        ),
        torchvision_detection("FCOS_ResNet50_FPN_Weights.COCO_V1", lr=0.01).preset(
            "fcos-resnet50-torchvision",
            FcosConfig(90, BackboneConfig(frozen_stride=4), detector=_TORCHVISION_FCOS, spread=True),
            "COCO val2017 box AP 39.2 (torchvision)",
        ),
        *small_presets("fcos", lambda _: change(FcosConfig(backbone=FROZEN_MOBILENET), detector=SMALL_FCOS)),
    ),
    rename=rename,
    agreement="AdelaiDet, 5 cases; mmdetection, 4 cases; torchvision live",
)
