"""BlendMask: key map of AdelaiDet's checkpoints, and presets."""

from torch import Tensor

from maskkit.config import BoxOnly, change
from maskkit.models.blendmask import BlendMask, BlendMaskConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.key_maps import ADELAIDET_FCOS_KEYS, Rules, bgr_to_rgb, rename_by
from maskkit.zoo.recipes import FROZEN_MOBILENET, SMALL_FCOS, adelaidet, caffe_resnet, small_presets

_RULES: Rules = (
    *ADELAIDET_FCOS_KEYS,
    (r"top_layer\.(.+)", r"head.extra.\1"),
    (r"basis_module\.(refine|tower)\.(.+)", r"basis.\1.\2"),
    (r"basis_module\.seg_head\.(.+)", r"basis.semantic.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return bgr_to_rgb(rename_by(_RULES, state, "BlendMask"))


# presets --------------------------------------------------------------------------------------------------------------


def _official(name: str, ap: float, times: int, layers: int = 50) -> Preset:
    config = BlendMaskConfig(backbone=caffe_resnet(layers), box_only=BoxOnly(skip_bottom=10))
    return adelaidet(times).preset(name, config, f"COCO val mask AP {ap}")


METHOD = Method(
    title="BlendMask",
    paper="Chen, Sun, Tian, Shen, Huang, Yan: BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation. CVPR 2020",
    model=BlendMask,
    presets=(
        _official("blendmask-resnet50-1x", 35.8, 1),
        _official("blendmask-resnet50-3x", 37.8, 3),
        _official("blendmask-resnet101-3x", 39.5, 3, 101),
        *small_presets(
            "blendmask",
            lambda _: change(
                BlendMaskConfig(backbone=FROZEN_MOBILENET, base_width=64, base_convs=2, attention=7, crop=28),
                detector=SMALL_FCOS,
            ),
        ),
    ),
    rename=rename,
    agreement="AdelaiDet, 4 cases",
)
