"""Faster R-CNN: key maps of detectron2, mmdetection (both Apache-2.0), torchvision (BSD-3-Clause), and presets.

Besides the names, these differ: detectron2's images are BGR. torchvision's first class is background; its box and mask
outputs for background are never read and are dropped. torchvision's first files with a ResNet predate the epsilon of
its frozen batch norm, which their older names show; our epsilon of 1e-5 is subtracted from the variances.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from maskkit.config import BackboneConfig, change
from maskkit.models.faster_rcnn import FasterRcnn, FasterRcnnConfig
from maskkit.nn.roi import PoolingConfig, RegionConfig
from maskkit.nn.rpn import ProposalConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.key_maps import (
    DETECTRON2_KEYS,
    MMDETECTION_TWO_STAGE_KEYS,
    TORCHVISION_PYRAMID_KEYS,
    Rules,
    bgr_to_rgb,
    is_mmdetection,
    mobilenet_v3,
    rename_by,
)
from maskkit.zoo.recipes import (
    FROZEN_MOBILENET,
    caffe_resnet,
    detectron2,
    mmdetection_file,
    mmdetection_resnet,
    mmdetection_two_stage,
    small_presets,
    torchvision_detection,
)

# settings that older code kept among the weights
_SETTINGS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d")
_EPSILON = 1e-5

_DETECTRON2: Rules = (
    *DETECTRON2_KEYS,
    (r"proposal_generator\.rpn_head\.conv\.(.+)", r"rpn.conv.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(.+)", r"rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(.+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.(fc\d)\.(.+)", r"box_head.\1.\2"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", r"box_head.label.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", r"box_head.deltas.\1"),
)
_TORCHVISION: Rules = (
    *mobilenet_v3(r"backbone\.body\."),
    *TORCHVISION_PYRAMID_KEYS,
    (r"rpn\.head\.conv(?:\.0\.0)?\.(\w+)", r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.fc2.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.label.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.deltas.\1"),
)


_TORCHVISION_V2: Rules = (
    (r"backbone\.fpn\.inner_blocks\.(\d\.[01]\.\w+)", r"fpn.lateral.\1"),
    (r"backbone\.fpn\.layer_blocks\.(\d\.[01]\.\w+)", r"fpn.output.\1"),
    (r"rpn\.head\.conv\.0\.0\.(\w+)", r"rpn.conv.0.\1"),
    (r"rpn\.head\.conv\.1\.0\.(\w+)", r"rpn.conv.2.\1"),
    (r"roi_heads\.box_head\.([0-3]\.[01]\.\w+)", r"box_head.convs.\1"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"box_head.fc1.\1"),
    (r"roi_heads\.mask_head\.([0-3]\.[01]\.\w+)", r"mask_head.convs.\1"),
)
"""What has other names in the second version, with batch norm; it goes before the rest."""


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From detectron2's, mmdetection's or torchvision's names to ours. Raises `DataError` for an unknown name."""
    return rename_two_stage(state, "Faster R-CNN")


def rename_two_stage(
    state: dict[str, Tensor], method: str, detectron2: Rules = (), torchvision: Rules = ()
) -> dict[str, Tensor]:
    """From the names of a ``method`` that extends Faster R-CNN, of any source, to ours."""
    if is_mmdetection(state):
        return rename_by(MMDETECTION_TWO_STAGE_KEYS, state, method)
    if any(name.startswith("rpn.") for name in state):
        second = _TORCHVISION_V2 if "backbone.fpn.inner_blocks.0.1.weight" in state else ()
        renamed = rename_by((*second, *_TORCHVISION, *torchvision), state, method)
        if "rpn.head.conv.weight" in state and "backbone.body.bn1.running_var" in state:
            renamed = {n: t - _EPSILON if n.endswith("running_var") else t for n, t in renamed.items()}
        return background_last(renamed)
    state = {n: t for n, t in state.items() if not _SETTINGS.fullmatch(n)}
    return bgr_to_rgb(rename_by((*_DETECTRON2, *detectron2), state, method))


def background_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A converted state of a source whose first class is background, without background."""
    return {
        n: _BACKGROUND[n.rpartition(".")[0]](t) if n.rpartition(".")[0] in _BACKGROUND else t for n, t in state.items()
    }


_BACKGROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "box_head.label": lambda t: t.roll(-1, 0),
    "box_head.deltas": lambda t: t[4:],
    "mask_head.predictor": lambda t: t[1:],
}
"""What to do with the rows of background in our layers."""


# presets --------------------------------------------------------------------------------------------------------------

TORCHVISION: dict[str, Any] = {
    "num_classes": 90,
    "backbone": BackboneConfig(frozen_stride=4),
    "rounded_anchors": True,
    "proposals": ProposalConfig(after=(2000, 1000), smooth_l1=1 / 9),
    "pooling": PoolingConfig(aligned=False, sampling_ratio=2),
    "regions": RegionConfig(smooth_l1=1 / 9, least_side=0.01),
}
"""The fields in which torchvision's two-stage detectors differ from detectron2's."""
TORCHVISION_V2: dict[str, Any] = {
    **TORCHVISION,
    "backbone": BackboneConfig(norm="train"),
    "batch_norm": True,
    "rpn_convs": 2,
    "box_convs": 4,
}
"""The same of its second version: Li, Xie, Chen, Dollár, Girshick, He: Benchmarking Detection Transfer Learning with
Vision Transformers (2021)."""


def _mobile(end: str, size: tuple[int, int], ap: float, before: int, after: int) -> Preset:
    """torchvision's MobileNetV3: its pyramid is made of what enters stride 32 and what leaves it."""
    sizes = ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3
    knobs: dict[str, Any] = {
        **TORCHVISION,
        "backbone": BackboneConfig("mobilenetv3_large_100", frozen_stride=8),
        "feature_strides": (-32, 32),
        "proposals": ProposalConfig(sizes, smooth_l1=1 / 9, before=(2000, before), after=(2000, after), min_score=0.05),
    }
    config = FasterRcnnConfig(**knobs)
    weights = f"FasterRCNN_MobileNet_V3_Large_{end}FPN_Weights.COCO_V1"
    name = f"fasterrcnn-mobilenetv3-large{'-320' if end else ''}"
    return torchvision_detection(weights, size).preset(name, config, f"COCO val2017 box AP {ap} (torchvision)")


MMDETECTION: dict[str, Any] = {
    "proposals": ProposalConfig(bounded_shrink=True),
    "regions": RegionConfig(bounded_shrink=True),
}
"""The fields in which mmdetection's two-stage detectors differ from detectron2's."""


def _mmdetection(layers: int, times: int, ap: float, end: str, *, style: str = "", **knobs: Any) -> Preset:
    """A preset, whose published file is called as there, plus ``end``; ``style`` is ``caffe``, ``pafpn`` or empty."""
    caffe = style == "caffe"
    neck = {"": "fpn", "caffe": "caffe_fpn", "pafpn": "pafpn"}[style]
    schedule = "mstrain_3x" if times == 3 else f"{times}x"
    folder = "pafpn" if style == "pafpn" else "faster_rcnn"
    file = mmdetection_file(f"v2.0/{folder}/faster_rcnn_r{layers}_{neck}_{schedule}_coco", end)
    config = FasterRcnnConfig(backbone=mmdetection_resnet(layers, caffe), **MMDETECTION, **knobs)
    name = "-".join(filter(None, ("fasterrcnn", f"resnet{layers}", style, "mmdet", f"{times}x")))
    return mmdetection_two_stage(times, caffe, file).preset(name, config, f"COCO val box AP {ap} (mmdetection)")


def small_two_stage(size: int, width: int = 96) -> dict[str, Any]:
    """Changes that make a small model for an input of ``size``: a third of the width, a quarter of the regions."""
    anchors = tuple((size * share,) for share in (0.045, 0.09, 0.18, 0.36, 0.72))
    return {
        "backbone": FROZEN_MOBILENET,
        "width": width,
        "proposals": {"anchor_sizes": anchors, "before": (500, 300), "after": (300, 200)},
        "pooling": {"sampling_ratio": 2},
        "regions": {"sampled": 128},
        "box_width": 256,
    }


METHOD = Method(
    title="Faster R-CNN",
    paper="Ren, He, Girshick, Sun: Faster R-CNN. NeurIPS 2015; on the pyramid of Lin et al., CVPR 2017",
    model=FasterRcnn,
    presets=(
        torchvision_detection("FasterRCNN_ResNet50_FPN_Weights.COCO_V1").preset(
            "fasterrcnn-resnet50", FasterRcnnConfig(**TORCHVISION), "COCO val box AP 37.0"
        ),
        torchvision_detection("FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1").preset(
            "fasterrcnn-resnet50-v2", FasterRcnnConfig(**TORCHVISION_V2), "COCO val2017 box AP 46.7 (torchvision)"
        ),
        _mobile("", (800, 1333), 32.8, 1000, 1000),
        _mobile("320_", (320, 640), 22.8, 150, 150),
        *(
            detectron2(times, f"COCO-Detection/faster_rcnn_R_{layers}_FPN_{times}x/{file}.pkl").preset(
                f"fasterrcnn-resnet{layers}-d2-{times}x",
                FasterRcnnConfig(backbone=caffe_resnet(layers)),
                f"COCO val box AP {ap}",
            )
            for layers, times, ap, file in (
                (50, 1, 37.9, "137257794/model_final_b275ba"),
                (50, 3, 40.2, "137849458/model_final_280758"),
                (101, 3, 42.0, "137851257/model_final_f6e8b1"),
            )
        ),
        _mmdetection(50, 1, 37.4, "_20200130-047c8118"),
        _mmdetection(50, 2, 38.4, "_bbox_mAP-0.384_20200504_210434-a5d8aa15"),
        _mmdetection(50, 3, 40.3, "_20210524_110822-e10bd31c"),
        _mmdetection(101, 1, 39.4, "_20200130-f513f705"),
        _mmdetection(101, 2, 39.8, "_bbox_mAP-0.398_20200504_210455-1d2dac9c"),
        _mmdetection(101, 3, 41.8, "_20210524_110822-4d4d2ca8"),
        _mmdetection(50, 1, 37.8, "_bbox_mAP-0.378_20200504_180032-c5925ee5", style="caffe"),
        _mmdetection(101, 1, 39.8, "_bbox_mAP-0.398_20200504_180057-b269e9dd", style="caffe"),
        _mmdetection(50, 1, 37.5, "_bbox_mAP-0.375_20200503_105836-b7b4b9bd", style="pafpn", bottom_up=True),
        *small_presets("fasterrcnn", lambda size: change(FasterRcnnConfig(), **small_two_stage(size))),
    ),
    rename=rename,
    agreement="detectron2, 2 cases; mmdetection, 2 cases; torchvision live",
)
