"""EPS: key map of the checkpoints of github.com/halbielee/EPS, EPS and its baseline on ResNet-38, and presets.

There, blocks are called ``b2``, ``b2_1``, ``b2_2``, ``b3``, ...; branch 1 is the shortcut, the parts of branch 2 are
``2a``, ``2b1``, ``2b2``, in this order.
"""

import re
from dataclasses import replace

from torch import Tensor

from maskkit.config import AugmentConfig, BackboneConfig, InputConfig, TrainConfig
from maskkit.errors import DataError
from maskkit.models.eps import Eps, EpsConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import VOC_SEMANTIC
from maskkit.zoo.recipes import HALF, MOBILENET, SMALL_TRAIN, Recipe, imagenet_input

_KINDS = {"bn": "norms", "conv": "convs"}
_PARTS = {"2a": 0, "2b1": 1, "2b2": 2}
_ENDS = {"conv1a": "backbone.stem", "bn7": "backbone.last_norm", "fc8": "score"}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no EPS network has."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if m := re.fullmatch(r"(conv1a|bn7|fc8)\.(\w+)", name):
        return f"{_ENDS[m[1]]}.{m[2]}"
    if m := re.fullmatch(r"b([2-7])(?:_(\d))?\.(?:conv_branch1|(bn|conv)_branch(2a|2b1|2b2))\.(\w+)", name):
        part = f"{_KINDS[m[3]]}.{_PARTS[m[4]]}" if m[3] else "shortcut"
        return f"backbone.stages.{int(m[1]) - 2}.{m[2] or 0}.{part}.{m[5]}"
    raise DataError(f"{name!r} is not a tensor in checkpoints of EPS")


# presets --------------------------------------------------------------------------------------------------------------


def _small(size: int) -> Preset:
    """A model for two CPU cores, on the MobileNetV2 backbone with TensorFlow's padding."""
    recipe = Recipe(
        InputConfig((size, size), "pad", mean=HALF, std=HALF),
        AugmentConfig(expand=1.0, iou_crop=False, scale_jitter=(0.6, 1.15)),
        replace(SMALL_TRAIN, epochs=10, backbone_lr=0.1),
        classes=VOC_SEMANTIC,
        small=True,
    )
    return recipe.preset(f"eps-mobilenetv2-{size}", EpsConfig(num_classes=21, backbone=MOBILENET))


METHOD = Method(
    title="EPS",
    paper="Lee, Lee, Lee, Shim: Railroad is not a Train: Saliency as Pseudo-pixel Supervision. CVPR 2021",
    model=Eps,
    presets=(
        Recipe(
            imagenet_input((448, 448), "pad"),
            AugmentConfig(expand=1.0, iou_crop=False, scale_jitter=(256 / 448, 512 / 448)),
            TrainConfig(  # 20,000 steps on VOC train_aug; the momentum is that of the official optimizer
                epochs=15.12, batch=8, lr=0.1, backbone_lr=0.1, momentum=5e-4, schedule="poly", warmup=0
            ),
            Weights("github.com/halbielee/EPS", "no licence", non_commercial=True),
            VOC_SEMANTIC,
        ).preset(
            "eps-resnet38",
            EpsConfig(num_classes=21, backbone=BackboneConfig("resnet38", frozen_stride=2)),
            "VOC 2012 val mIoU 70.9 (DeepLab v2 on its masks)",
        ),
        _small(320),
        _small(256),
    ),
    rename=rename,
    agreement="halbielee/EPS, 10 cases",
)
