"""RefineNet: key map of the PyTorch port of its ResNet-101 (torchvision's names in the backbone), and presets."""

import re
from dataclasses import replace

from torch import Tensor

from maskkit.config import BackboneConfig, TrainConfig
from maskkit.errors import DataError
from maskkit.models.refinenet import Refinenet, RefinenetConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import VOC_SEMANTIC
from maskkit.zoo.recipes import FLIP, MOBILENET, Recipe, imagenet_input, small_semantic

# the two convolutions of a unit; "b" units adapt a level (adapt_stage) or refine the sum (mflow_conv)
_UNIT = {"conv": "first", "conv_relu_varout_dimred": "second"}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if re.match(r"(conv1|bn1|layer[1-4])\.", name):
        return f"backbone.body.{name}"
    if m := re.fullmatch(r"p_ims1d2_outl(\d)_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.reduce.{m[2]}"
    if m := re.fullmatch(r"(adapt_stage|mflow_conv_g)(\d)_b\.0\.(\d)_(conv|conv_relu_varout_dimred)\.(\w+)", name):
        part = "adapt" if m[1] == "adapt_stage" else "refine"
        return f"blocks.{int(m[2]) - 1}.{part}.{int(m[3]) - 1}.{_UNIT[m[4]]}.{m[5]}"
    if m := re.fullmatch(r"adapt_stage(\d)_b2_joint_varout_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.join.{m[2]}"
    if m := re.fullmatch(r"mflow_conv_g(\d)_pool\.0\.(\d)_outvar_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.pool.convs.{int(m[2]) - 1}.{m[3]}"
    if m := re.fullmatch(r"mflow_conv_g(\d)_b3_joint_varout_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.out.{m[2]}"
    if m := re.fullmatch(r"clf_conv\.(\w+)", name):
        return f"score.{m[1]}"
    raise DataError(f"{name!r} is not a tensor in checkpoints of RefineNet")


# presets --------------------------------------------------------------------------------------------------------------

_OFFICIAL = Recipe(
    imagenet_input((500, 500), "pad"),
    replace(FLIP, scale_jitter=(0.7, 1.3)),
    TrainConfig(epochs=100, batch=8, lr=5e-4, weight_decay=1e-4, schedule="steps", milestones=(0.7,)),
    classes=VOC_SEMANTIC,
)


def _small(name: str, size: tuple[int, int], classes: int = 21, ours: str | None = None) -> Preset:
    config = RefinenetConfig(num_classes=classes, backbone=MOBILENET, widths=(96, 64, 64, 64), pools=2, dropout=0.1)
    return small_semantic(name, config, size, ours)


METHOD = Method(
    title="RefineNet",
    paper="Lin, Milan, Shen, Reid: RefineNet: Multi-Path Refinement Networks. CVPR 2017",
    model=Refinenet,
    presets=(
        _OFFICIAL.preset(
            "refinenet-resnet101",
            RefinenetConfig(num_classes=21, backbone=BackboneConfig("resnet101")),
            "VOC 2012 test mIoU 82.4",
            weights=Weights("RefineNet by DrSleep/refinenet-pytorch", "academic use", non_commercial=True),
        ),
        _OFFICIAL.preset(
            "refinenet-resnet152",
            RefinenetConfig(num_classes=21, backbone=BackboneConfig("resnet152")),
            "VOC 2012 test mIoU 83.4",
        ),
        _small("refinenet-mobilenetv2-320", (320, 320)),
        _small("refinenet-mobilenetv2-camvid", (360, 480), 11, "CamVid val mIoU 0.584, 20 min on 1 core"),
    ),
    rename=rename,
    agreement="DrSleep/refinenet-pytorch, 1 case",
)
