"""Mask R-CNN: key maps of detectron2, mmdetection (both Apache-2.0) and torchvision (BSD-3-Clause), and presets."""

from typing import Any

from torch import Tensor

from maskkit.config import change
from maskkit.models.mask_rcnn import MaskRcnn, MaskRcnnConfig
from maskkit.nn.mask_stage import MaskConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.faster_rcnn import MMDETECTION, TORCHVISION, TORCHVISION_V2, rename_two_stage, small_two_stage
from maskkit.zoo.key_maps import Rules
from maskkit.zoo.recipes import (
    caffe_resnet,
    detectron2,
    mmdetection_file,
    mmdetection_resnet,
    mmdetection_two_stage,
    on_nanodet,
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


def _mmdetection(layers: int, times: int, ap: float, end: str, *, caffe: bool = False) -> Preset:
    """A preset, whose published file is called as there, plus ``end``."""
    config = MaskRcnnConfig(backbone=mmdetection_resnet(layers, caffe), **MMDETECTION)
    style = "-caffe" if caffe else ""
    schedule = "mstrain-poly_3x" if times == 3 else f"{times}x"
    file = f"v2.0/mask_rcnn/mask_rcnn_r{layers}{style.replace('-', '_')}_fpn_{schedule}_coco"
    return mmdetection_two_stage(times, caffe, mmdetection_file(file, end)).preset(
        f"maskrcnn-resnet{layers}{style}-mmdet-{times}x", config, f"COCO val mask AP {ap} (mmdetection)"
    )


_TORCHVISION_MASKS: dict[str, Any] = {
    "mask": MaskConfig(aligned_targets=False, soft_targets=True),
    "paste": "whole_pixels",
}

_SMALL = small_presets(
    "maskrcnn",
    lambda size: change(MaskRcnnConfig(mask_width=96, mask_convs=2), **small_two_stage(size)),
    ours="nuclei mask AP 0.506 at 448 px, 15 min on 1 core",
)

METHOD = Method(
    title="Mask R-CNN",
    paper="He, Gkioxari, Dollár, Girshick: Mask R-CNN. ICCV 2017",
    model=MaskRcnn,
    presets=(
        torchvision_detection("MaskRCNN_ResNet50_FPN_Weights.COCO_V1").preset(
            "maskrcnn-resnet50",
            MaskRcnnConfig(**TORCHVISION, **_TORCHVISION_MASKS),
            "COCO val mask AP 34.6",
        ),
        torchvision_detection("MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1").preset(
            "maskrcnn-resnet50-v2",
            MaskRcnnConfig(**TORCHVISION_V2, **_TORCHVISION_MASKS),
            "COCO val2017 mask AP 41.8 (torchvision)",
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
        _mmdetection(50, 1, 34.7, "_20200205-d4b0c5d6"),
        _mmdetection(50, 2, 35.4, "_bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40"),
        _mmdetection(50, 3, 37.1, "_20210524_201154-21b550bb"),
        _mmdetection(101, 1, 36.1, "_20200204-1efe0ed5"),
        _mmdetection(101, 2, 36.6, "_bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7"),
        _mmdetection(101, 3, 38.5, "_20210524_200244-5675c317"),
        _mmdetection(50, 1, 34.4, "_bbox_mAP-0.38__segm_mAP-0.344_20200504_231812-0ebd1859", caffe=True),
        _mmdetection(50, 3, 37.0, "_bbox_mAP-0.408__segm_mAP-0.37_20200504_163245-42aa3d00", caffe=True),
        _mmdetection(101, 1, 36.4, "_20200601_095758-805e06c1", caffe=True),
        _mmdetection(101, 3, 38.5, "_20210526_132339-3c33ce02", caffe=True),
        *_SMALL,
        on_nanodet(_SMALL[0]),
    ),
    rename=rename,
    agreement="detectron2, 10 cases; mmdetection, 3 cases; torchvision live",
)
