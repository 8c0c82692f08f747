"""PolarMask: key map of xieenze/PolarMask (Apache-2.0, on mmdetection 1) with Caffe's ResNets, and presets."""

from torch import Tensor

from maskkit.config import InputConfig, TrainConfig, change
from maskkit.models.polarmask import PolarMask, PolarMaskConfig
from maskkit.zoo.card import Method, Weights
from maskkit.zoo.key_maps import MMDETECTION_KEYS, Rules, bgr_to_rgb, rename_by
from maskkit.zoo.recipes import (
    FLIP,
    FROZEN_MOBILENET,
    NO_STD,
    PANET_MEAN,
    SMALL_DETECTOR,
    Recipe,
    caffe_resnet,
    small_presets,
)

_RULES: Rules = (
    (r"neck\.fpn_convs\.3\.conv\.(.+)", r"fpn.extra.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.+)", r"fpn.extra.1.\1"),
    *MMDETECTION_KEYS,
    *(
        (rf"bbox_head\.{official}_convs\.{i}\.{layer}\.(.+)", rf"head.{ours}_tower.{3 * i + place}.\1")
        for official, ours in (("cls", "class"), ("reg", "box"), ("mask", "ray"))
        for i in range(4)
        for place, layer in enumerate(("conv", "gn"))
    ),
    (r"bbox_head\.polar_cls\.(.+)", r"head.logits.\1"),
    (r"bbox_head\.polar_centerness\.(.+)", r"head.centerness.\1"),
    (r"bbox_head\.polar_reg\.(.+)", r"head.sides.\1"),
    (r"bbox_head\.polar_mask\.(.+)", r"head.rays.\1"),
    (r"bbox_head\.scales_bbox\.(\d)\.scale", r"head.side_scales.\1"),
    (r"bbox_head\.scales_mask\.(\d)\.scale", r"head.ray_scales.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return bgr_to_rgb(rename_by(_RULES, state, "PolarMask"))


# presets --------------------------------------------------------------------------------------------------------------

_OFFICIAL = Recipe(
    InputConfig((768, 1280), mean=PANET_MEAN, std=NO_STD),
    FLIP,
    TrainConfig(
        epochs=12,
        batch=16,
        lr=0.01,
        weight_decay=1e-4,
        decay_norm=False,
        schedule="steps",
        milestones=(0.6667, 0.9167),  # epochs 8 and 11
        warmup=500,
        clip=35.0,
    ),
    Weights("github.com/xieenze/PolarMask", "Apache-2.0"),
)

METHOD = Method(
    title="PolarMask",
    paper="Xie et al.: PolarMask: Single Shot Instance Segmentation with Polar Representation. CVPR 2020",
    model=PolarMask,
    presets=(
        _OFFICIAL.preset("polarmask-resnet50-1x", PolarMaskConfig(backbone=caffe_resnet(50)), "COCO val mask AP 29.1"),
        _OFFICIAL.preset(
            "polarmask-resnet101-1x", PolarMaskConfig(backbone=caffe_resnet(101)), "COCO val mask AP 30.7"
        ),
        *small_presets(
            "polarmask",
            lambda _: change(
                PolarMaskConfig(backbone=FROZEN_MOBILENET), detector=SMALL_DETECTOR | {"distance_unit": "strides"}
            ),
        ),
    ),
    rename=rename,
    agreement="xieenze/PolarMask, 3 cases",
)
