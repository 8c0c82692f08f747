"""Mask R-CNN: key maps of detectron2, mmdetection (both Apache-2.0) and torchvision (BSD-3-Clause), and presets."""

from torch import Tensor

from maskkit.config import change
from maskkit.models.mask_rcnn import MaskRcnn, MaskRcnnConfig
from maskkit.nn.mask_stage import MaskConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.faster_rcnn import MMDETECTION, TORCHVISION, rename_two_stage, small_two_stage
from maskkit.zoo.key_maps import Rules
from maskkit.zoo.recipes import (
    caffe_resnet,
    detectron2,
    mmdetection_resnet,
    mmdetection_two_stage,
    small_presets,
    torchvision_detection,
)

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
    """From detectron2's, mmdetection's or torchvision's names to ours. Raises `DataError` for an unknown name."""
    return rename_two_stage(state, "Mask R-CNN", _DETECTRON2, _TORCHVISION)


# presets --------------------------------------------------------------------------------------------------------------


def _mmdetection(layers: int, times: int, ap: float, *, caffe: bool = False) -> Preset:
    config = MaskRcnnConfig(backbone=mmdetection_resnet(layers, caffe), **MMDETECTION)
    name = f"maskrcnn-resnet{layers}{'-caffe' if caffe else ''}-mmdet-{times}x"
    return mmdetection_two_stage(times, caffe).preset(name, config, f"COCO val mask AP {ap} (mmdetection)")


METHOD = Method(
    title="Mask R-CNN",
    paper="He, Gkioxari, Dollár, Girshick: Mask R-CNN. ICCV 2017",
    model=MaskRcnn,
    presets=(
        torchvision_detection("MaskRCNN_ResNet50_FPN_Weights.COCO_V1").preset(
            "maskrcnn-resnet50",
            MaskRcnnConfig(
                **TORCHVISION, mask=MaskConfig(aligned_targets=False, soft_targets=True), paste="whole_pixels"
            ),
            "COCO val mask AP 34.6",
        ),
        *(
            detectron2(times, f"COCO-InstanceSegmentation/mask_rcnn_R_{layers}_FPN_{times}x/{file}.pkl").preset(
                f"maskrcnn-resnet{layers}-d2-{times}x",
                MaskRcnnConfig(backbone=caffe_resnet(layers)),
                f"COCO val mask AP {ap}",
            )
            for layers, times, ap, file in (
                (50, 1, 35.2, "137260431/model_final_a54504"),
                (50, 3, 37.2, "137849600/model_final_f10217"),
                (101, 3, 38.6, "138205316/model_final_a3ec72"),
            )
        ),
        _mmdetection(50, 1, 34.7),
        _mmdetection(50, 2, 35.4),
        _mmdetection(50, 3, 37.1),
        _mmdetection(101, 1, 36.1),
        _mmdetection(101, 2, 36.6),
        _mmdetection(101, 3, 38.5),
        _mmdetection(50, 1, 34.4, caffe=True),
        _mmdetection(50, 3, 37.0, caffe=True),
        _mmdetection(101, 1, 36.4, caffe=True),
        _mmdetection(101, 3, 38.5, caffe=True),
        *small_presets(
            "maskrcnn",
            lambda size: change(MaskRcnnConfig(mask_width=96, mask_convs=2), **small_two_stage(size)),
            ours="nuclei mask AP 0.506 at 448 px, 15 min on 1 core",
        ),
    ),
    rename=rename,
    agreement="detectron2, 10 cases; mmdetection, 3 cases; torchvision live",
)
