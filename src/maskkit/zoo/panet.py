"""PANet: key map of ShuLiu1993/PANet (MIT), whose names extend those of Detectron.pytorch, and presets.

Images are BGR. Batch norm is stored as a scale and a shift per channel. The official lists of lateral, output and
top-down layers start with the coarsest level, those of the heads with the finest. Background is the first class; its
box and mask outputs are never read and are dropped.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskkit.config import InputConfig
from maskkit.models.panet import Panet, PanetConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.faster_rcnn import background_last, small_two_stage
from maskkit.zoo.key_maps import Rules, bgr_to_rgb, rename_by
from maskkit.zoo.recipes import FLIP, NO_STD, PANET_MEAN, Recipe, caffe_resnet, detectron2_train, small_presets

_BODY, _MASK = r"Conv_Body\.", r"Mask_Head\."
_RULES: Rules = (
    (_BODY + r"conv_body\.res1\.(.+)", r"backbone.body.\1"),
    *((_BODY + rf"conv_body\.res{i + 1}\.(.+)", rf"backbone.body.layer{i}.\1") for i in range(1, 5)),
    (_BODY + r"conv_top\.(.+)", r"fpn.fpn.lateral.3.\1"),
    *((_BODY + rf"topdown_lateral_modules\.{i}\.conv_lateral\.(.+)", rf"fpn.fpn.lateral.{2 - i}.\1") for i in range(3)),
    *((_BODY + rf"posthoc_modules\.{i}\.(.+)", rf"fpn.fpn.output.{3 - i}.\1") for i in range(4)),
    (_BODY + r"panet_buttomup_conv1_modules\.(.+)", r"fpn.down.\1"),
    (_BODY + r"panet_buttomup_conv2_modules\.(.+)", r"fpn.output.\1"),
    (r"RPN\.FPN_RPN_conv\.(\w+)", r"rpn.conv.\1"),
    (r"RPN\.FPN_RPN_cls_score\.(\w+)", r"rpn.objectness.\1"),
    (r"RPN\.FPN_RPN_bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"Box_Head\.conv1_head\.(.+)", r"box_head.first.\1"),
    *(
        (rf"Box_Head\.convs\.{3 * i + part}\.(\w+)", rf"box_head.rest.{i}.0.{part}.\1")
        for i in range(3)
        for part in range(2)
    ),
    (r"Box_Head\.fc\.(\w+)", r"box_head.rest.4.\1"),
    *((rf"Box_Head\.fc1\.(\d)\.{part}\.(\w+)", rf"box_head.first.\1.{part + 1}.\2") for part in range(2)),
    (r"Box_Head\.fc2\.(\d\.\w+)", r"box_head.rest.\1"),
    (r"Box_Outs\.cls_score\.(\w+)", r"box_head.label.\1"),
    (r"Box_Outs\.bbox_pred\.(\w+)", r"box_head.deltas.\1"),
    (_MASK + r"mask_conv1\.(.+)", r"mask_head.first.\1"),
    *(
        (_MASK + rf"conv_fcn\.{3 * i + part}\.(\w+)", rf"mask_head.shared.{i}.0.{part}.\1")
        for i in range(2)
        for part in range(2)
    ),
    (_MASK + r"mask_conv4\.(.+)", r"mask_head.main.0.\1"),
    (_MASK + r"mask_conv4_fc\.(.+)", r"mask_head.side.0.\1"),
    (_MASK + r"mask_conv5_fc\.(.+)", r"mask_head.side.2.\1"),
    (_MASK + r"mask_fc\.0\.(\w+)", r"mask_head.foreground.\1"),
    (_MASK + r"upconv\.(\w+)", r"mask_head.deconv.\1"),
    (r"Mask_Outs\.classify\.(\w+)", r"mask_head.predictor.\1"),
)
_EPSILON = 1e-5


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    renamed = rename_by(_RULES, state, "PANet")
    for name in [n for n, t in renamed.items() if n.startswith("backbone.") and t.ndim == 1 and n.endswith(".bias")]:
        layer = name.removesuffix(".bias")
        renamed[f"{layer}.running_mean"] = torch.zeros_like(renamed[name])
        renamed[f"{layer}.running_var"] = torch.full_like(renamed[name], 1 - _EPSILON)
    return bgr_to_rgb(background_last(renamed))


# presets --------------------------------------------------------------------------------------------------------------


def _official(name: str, paper: str, times: int, **knobs: Any) -> Preset:
    """A model of the authors' re-release, trained for ``times`` 90,000 steps of 16 images."""
    recipe = Recipe(
        InputConfig((1000, 1400), "shorter", mean=PANET_MEAN, std=NO_STD),
        replace(FLIP, short_sides=(400, 600, 800, 1000, 1200, 1200)),
        detectron2_train(times),
        Weights("github.com/ShuLiu1993/PANet", "MIT"),
    )
    return recipe.preset(name, PanetConfig(backbone=caffe_resnet(50), **knobs), paper)


METHOD = Method(
    title="PANet",
    paper="Liu, Qi, Qin, Shi, Jia: Path Aggregation Network for Instance Segmentation. CVPR 2018",
    model=Panet,
    presets=(
        _official("panet-resnet50-2x", "COCO val mask AP 37.8 (the re-release 38.3)", 2),
        _official("panet-resnet50-det-1x", "COCO val box AP 39.2 (the re-release 39.8)", 1, masks=False),
        _official(
            "panet-resnet50-det-2fc-1x", "COCO val box AP 39.0 (the re-release 39.6)", 1, masks=False, box_convs=0
        ),
        *small_presets(
            "panet",
            lambda size: PanetConfig(**small_two_stage(size, width=64), box_convs=1, mask_width=64),
            ours="nuclei mask AP 0.384 at 448 px, 15 min on 1 core",
        ),
    ),
    rename=rename,
    agreement="ShuLiu1993/PANet, 4 cases",
)
