"""CondInst: key maps of AdelaiDet and mmdetection (also for BoxInst), and presets."""

from torch import Tensor

from maskkit.config import BackboneConfig, BoxOnly, change
from maskkit.models.condinst import CondInst, CondInstConfig
from maskkit.nn.fcos import FcosDetectorConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.key_maps import ADELAIDET_FCOS_KEYS, MMDETECTION_FCOS_KEYS, Rules, as_rows, bgr_to_rgb, rename_by
from maskkit.zoo.recipes import (
    MMDETECTION_FCOS,
    SMALL_CONDINST,
    adelaidet,
    caffe_resnet,
    mmdetection_90k,
    mmdetection_file,
    on_nanodet,
    small_presets,
)

_ADELAIDET: Rules = (
    *ADELAIDET_FCOS_KEYS,
    (r"controller\.(.+)", r"head.extra.\1"),
    (r"mask_branch\.(refine|tower)\.(.+)", r"mask_branch.\1.\2"),
    (r"mask_branch\.seg_head\.(.+)", r"mask_branch.semantic.\1"),
    (r"mask_branch\.logits\.(.+)", r"mask_branch.semantic.2.\1"),
)
_FEATURE = r"mask_head\.mask_feature_head"
_MMDETECTION: Rules = (
    *MMDETECTION_FCOS_KEYS,
    (r"bbox_head\.controller\.(.+)", r"head.extra.\1"),
    (rf"{_FEATURE}\.convs_all_levels\.(\d)\.conv\d\.conv\.(.+)", r"mask_branch.refine.\1.0.\2"),
    (rf"{_FEATURE}\.convs_all_levels\.(\d)\.conv\d\.bn\.(.+)", r"mask_branch.refine.\1.1.\2"),
    (rf"{_FEATURE}\.conv_branch\.(\d)\.conv\.(.+)", r"mask_branch.tower.\1.0.\2"),
    (rf"{_FEATURE}\.conv_branch\.(\d)\.bn\.(.+)", r"mask_branch.tower.\1.1.\2"),
    (rf"{_FEATURE}\.conv_pred\.(.+)", r"mask_branch.tower.4.\1"),
)
_CONSTANTS = ("mask_head.sizes_of_interest", "mask_head._iter")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name.

    AdelaiDet's ResNets come from Caffe and read BGR, mmdetection's RGB.
    """
    state = {n: t for n, t in state.items() if n not in _CONSTANTS}
    found = as_rows(rename_by((*_ADELAIDET, *_MMDETECTION), state, "CondInst"))
    return bgr_to_rgb(found) if any(name.startswith("backbone.bottom_up.") for name in state) else found


# presets --------------------------------------------------------------------------------------------------------------


def _official(name: str, paper: str, times: int, layers: int = 50, semantic_weight: float = 0.0) -> Preset:
    box_only = BoxOnly(skip_bottom=10)
    config = CondInstConfig(backbone=caffe_resnet(layers), box_only=box_only, semantic_weight=semantic_weight)
    return adelaidet(times).preset(name, config, f"COCO {paper}")


def _mmdetection() -> Preset:
    config = CondInstConfig(
        backbone=BackboneConfig(frozen_stride=4),
        detector=FcosDetectorConfig(**MMDETECTION_FCOS),
        box_only=BoxOnly(skip_bottom=10),
        masks_to_train=300,
    )
    file = mmdetection_file("v3.0/condinst/condinst_r50_fpn_ms-poly-90k_coco_instance", "_20221129_125223-4c186406")
    return mmdetection_90k(file).preset("condinst-resnet50-mmdet-1x", config, "COCO val2017 mask AP 36.0")


_SMALL = small_presets(
    "condinst",
    lambda _: change(CondInstConfig(), **SMALL_CONDINST),
    ours="nuclei mask AP 0.440 at 448 px, 20 min on 1 core",
)

METHOD = Method(
    title="CondInst",
    paper="Tian, Shen, Chen: Conditional Convolutions for Instance Segmentation. ECCV 2020",
    model=CondInst,
    presets=(
        _official("condinst-resnet50-1x", "val mask AP 35.7", 1),
        _official("condinst-resnet50-3x", "val mask AP 37.5", 3),
        _official("condinst-resnet101-3x", "val mask AP 38.6", 3, 101),
        _official("condinst-semantic-resnet50-3x", "test-dev mask AP 38.7, val 38.2", 3, semantic_weight=1.0),
        _official("condinst-semantic-resnet101-3x", "test-dev mask AP 40.1, val 39.8", 3, 101, semantic_weight=1.0),
        _mmdetection(),
        *_SMALL,
        on_nanodet(_SMALL[0]),
    ),
    rename=rename,
    agreement="AdelaiDet, 9 cases; mmdetection, 2 cases",
)
