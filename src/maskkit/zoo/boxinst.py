"""BoxInst: presets. The network, and so the key map, is that of CondInst."""

from maskkit.config import BackboneConfig, BoxOnly, change
from maskkit.models.boxinst import BoxInst, BoxInstConfig
from maskkit.nn.dynamic_mask import DynamicMaskConfig
from maskkit.nn.fcos import FcosDetectorConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.condinst import rename
from maskkit.zoo.recipes import (
    MMDETECTION_FCOS,
    SMALL_CONDINST,
    adelaidet,
    caffe_resnet,
    mmdetection_90k,
    mmdetection_file,
    small_presets,
)

# presets --------------------------------------------------------------------------------------------------------------


def _official(name: str, paper: str, times: int, layers: int = 50) -> Preset:
    # the pairwise term is warmed up over 10,000 steps; COCO images often end in a few rows of a wrong colour
    box_only = BoxOnly(warmup=1 / (9 * times), skip_bottom=10)
    config = BoxInstConfig(backbone=caffe_resnet(layers), box_only=box_only)
    return adelaidet(times).preset(name, config, f"COCO {paper}")


def _mmdetection(layers: int, ap: float, end: str) -> Preset:
    config = BoxInstConfig(
        backbone=BackboneConfig(f"resnet{layers}", frozen_stride=4),
        detector=FcosDetectorConfig(**MMDETECTION_FCOS),
        masks=DynamicMaskConfig(mask_channels=16, head_width=16),
        box_only=BoxOnly(warmup=1 / 9, skip_bottom=10),
    )
    file = mmdetection_file(f"v3.0/boxinst/boxinst_r{layers}_fpn_ms-90k_coco", f"_{end}")
    return mmdetection_90k(file).preset(f"boxinst-resnet{layers}-mmdet-1x", config, f"COCO val2017 mask AP {ap}")


METHOD = Method(
    title="BoxInst",
    paper="Tian, Shen, Wang, Chen: BoxInst: High-Performance Instance Segmentation with Box Annotations. CVPR 2021",
    model=BoxInst,
    presets=(
        _official("boxinst-resnet50-1x", "val mask AP 30.7", 1),
        _official("boxinst-resnet50-3x", "test-dev mask AP 32.1, val 31.8", 3),
        _official("boxinst-resnet101-1x", "test-dev mask AP 32.5, val 32.2", 1, 101),
        _official("boxinst-resnet101-3x", "test-dev mask AP 33.2, val 33.0", 3, 101),
        _mmdetection(50, 31.1, "20221228_163052-6add751a"),
        _mmdetection(101, 32.7, "20221229_145106-facf375b"),
        *small_presets("boxinst", lambda _: change(BoxInstConfig(), **SMALL_CONDINST)),
    ),
    rename=rename,
    agreement="AdelaiDet, 2 cases; mmdetection, 2 cases",
)
