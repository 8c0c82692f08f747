"""Cascade Mask R-CNN: key map of mmdetection (Apache-2.0), and presets."""

import re
from dataclasses import replace

from torch import Tensor

from maskkit.config import change
from maskkit.models.cascade_rcnn import CascadeRcnn, CascadeRcnnConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.faster_rcnn import small_two_stage
from maskkit.zoo.key_maps import MMDETECTION_TWO_STAGE_KEYS, rename_by
from maskkit.zoo.recipes import mmdetection_file, mmdetection_resnet, mmdetection_two_stage, small_presets

_STAGE = re.compile(r"(roi_head\.(?:bbox|mask)_head)\.(\d)\.(.+)")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From mmdetection's names to ours. Raises `DataError` for an unknown name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stage = _STAGE.fullmatch(name)
        plain = f"{stage[1]}.{stage[3]}" if stage else name
        (ours,) = rename_by(MMDETECTION_TWO_STAGE_KEYS, {plain: tensor}, "Cascade Mask R-CNN")
        if stage:
            ours = ours.replace("mask_head.", f"mask_heads.{stage[2]}.", 1)
            if stage[2] != "0":
                ours = ours.replace("box_head.", f"later_heads.{int(stage[2]) - 1}.", 1)
        renamed[ours] = tensor
    return renamed


# presets --------------------------------------------------------------------------------------------------------------


def _mmdetection(layers: int, schedule: str, ap: float, end: str, *, caffe: bool = False) -> Preset:
    """A preset, whose published file is called as there, plus ``end``."""
    style, training = "-caffe" if caffe else "", "mstrain_3x" if schedule == "3x" else schedule
    file = f"v2.0/cascade_rcnn/cascade_mask_rcnn_r{layers}{style.replace('-', '_')}_fpn_{training}_coco"
    recipe = mmdetection_two_stage(3 if schedule == "3x" else 1, caffe, mmdetection_file(file, end))
    if schedule == "20e":
        recipe = replace(recipe, train=replace(recipe.train, epochs=20, milestones=(16 / 20, 19 / 20)))
    config = CascadeRcnnConfig(backbone=mmdetection_resnet(layers, caffe))
    name = f"cascadercnn-resnet{layers}{style}-mmdet-{schedule}"
    return recipe.preset(name, config, f"COCO val mask AP {ap} (mmdetection)")


METHOD = Method(
    title="Cascade Mask R-CNN",
    paper="Cai, Vasconcelos: Cascade R-CNN: High Quality Object Detection and Instance Segmentation. TPAMI 2019",
    model=CascadeRcnn,
    presets=(
        _mmdetection(50, "1x", 35.9, "_20200203-9d4dcb24"),
        _mmdetection(50, "20e", 36.5, "_bbox_mAP-0.419__segm_mAP-0.365_20200504_174711-4af8e66e"),
        _mmdetection(50, "3x", 38.5, "_20210628_164719-5bdc3824"),
        _mmdetection(101, "1x", 37.3, "_20200203-befdf6ee"),
        _mmdetection(101, "20e", 37.8, "_bbox_mAP-0.434__segm_mAP-0.378_20200504_174836-005947da"),
        _mmdetection(50, "1x", 36.0, "_bbox_mAP-0.412__segm_mAP-0.36_20200504_174659-5004b251", caffe=True),
        _mmdetection(50, "3x", 38.1, "_20210707_002651-6e29b3a6", caffe=True),
        _mmdetection(101, "1x", 37.6, "_bbox_mAP-0.432__segm_mAP-0.376_20200504_174813-5c1e9599", caffe=True),
        _mmdetection(101, "3x", 39.5, "_20210707_002620-a5bd2389", caffe=True),
        *small_presets(
            "cascadercnn",
            lambda size: change(CascadeRcnnConfig(mask_width=96, mask_convs=2), **small_two_stage(size)),
            sizes=(320,),
        ),
    ),
    rename=rename,
    agreement="mmdetection, 1 case",
)
