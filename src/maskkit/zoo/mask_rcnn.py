"""detectron2 (Apache-2.0) and torchvision (BSD-3-Clause): names of their Mask R-CNN checkpoints."""

from torch import Tensor

from maskkit.zoo.faster_rcnn import rename_two_stage
from maskkit.zoo.resnet import Rules

HUB = {"maskrcnn-resnet50": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"}
"""What torchvision calls its weights of a preset."""

_DETECTRON2: Rules = (
    *((rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(\w+)", rf"mask_head.convs.{i}.\1") for i in range(4)),
    (r"roi_heads\.mask_head\.(deconv|predictor)\.(\w+)", r"mask_head.\1.\2"),
)
_TORCHVISION: Rules = (
    *((rf"roi_heads\.mask_head\.(?:mask_fcn{i + 1}|{i}\.0)\.(\w+)", rf"mask_head.convs.{i}.\1") for i in range(4)),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.predictor.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours, detectron2's or torchvision's; `DataError` for a name that neither has."""
    return rename_two_stage(state, "Mask R-CNN", _DETECTRON2, _TORCHVISION)
