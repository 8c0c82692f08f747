"""Cascade Mask R-CNN: key map of mmdetection (Apache-2.0), and presets."""

import re
from dataclasses import replace

from torch import Tensor

from maskkit.config import TrainConfig, change
from maskkit.models.cascade_rcnn import CascadeRcnn, CascadeRcnnConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.faster_rcnn import small_two_stage
from maskkit.zoo.key_maps import MMDETECTION_TWO_STAGE_KEYS, rename_by
from maskkit.zoo.recipes import mmdetection_resnet, mmdetection_two_stage, small_presets

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


def _mmdetection(layers: int, ap: float, *, schedule: str = "1x", caffe: bool = False) -> Preset:
    recipe = mmdetection_two_stage(3 if schedule == "3x" else 1, caffe)
    if schedule == "20e":
        recipe = replace(recipe, train=_TWENTY)
    config = CascadeRcnnConfig(backbone=mmdetection_resnet(layers, caffe))
    name = f"cascadercnn-resnet{layers}{'-caffe' if caffe else ''}-mmdet-{schedule}"
    return recipe.preset(name, config, f"COCO val mask AP {ap} (mmdetection)")


_TWENTY: TrainConfig = replace(mmdetection_two_stage(1).train, epochs=20, milestones=(16 / 20, 19 / 20))

METHOD = Method(
    title="Cascade Mask R-CNN",
    paper="Cai, Vasconcelos: Cascade R-CNN: High Quality Object Detection and Instance Segmentation. TPAMI 2019",
    model=CascadeRcnn,
    presets=(
        _mmdetection(50, 35.9),
        _mmdetection(50, 36.5, schedule="20e"),
        _mmdetection(101, 37.3),
        _mmdetection(101, 37.8, schedule="20e"),
        _mmdetection(50, 36.0, caffe=True),
        _mmdetection(101, 37.6, caffe=True),
        *small_presets(
            "cascadercnn",
            lambda size: change(CascadeRcnnConfig(mask_width=96, mask_convs=2), **small_two_stage(size)),
            sizes=(320,),
        ),
    ),
    rename=rename,
    agreement="mmdetection, 1 case",
)
