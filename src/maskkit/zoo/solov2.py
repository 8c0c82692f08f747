"""SOLOv2 under its two official namings: WXinlong/SOLO (mmdetection) and AdelaiDet (detectron2)."""

from torch import Tensor

from maskkit.zoo.resnet import DETECTRON2, MMDETECTION, Rules, bgr_to_rgb, rename_by


def _tower(official: str, ours: str) -> Rules:
    """A tower of AdelaiDet's, counted flat: convolution, norm and ReLU of layer i are 3 i, 3 i + 1, 3 i + 2."""
    return tuple(
        (rf"ins_head\.{official}_tower\.{3 * layer + part}\.(.+)", rf"{ours}_tower.{layer}.{part}.\1")
        for layer in range(8)
        for part in (0, 1)
    )


_SOLO: Rules = (
    *MMDETECTION,
    (r"bbox_head\.cate_convs\.(\d)\.conv\.conv_offset\.(.+)", r"category_tower.\1.0.offset_mask.\2"),
    (r"bbox_head\.cate_convs\.(\d)\.conv\.(.+)", r"category_tower.\1.0.\2"),
    (r"bbox_head\.cate_convs\.(\d)\.gn\.(.+)", r"category_tower.\1.1.\2"),
    (r"bbox_head\.kernel_convs\.(\d)\.conv\.conv_offset\.(.+)", r"kernel_tower.\1.0.offset_mask.\2"),
    (r"bbox_head\.kernel_convs\.(\d)\.conv\.(.+)", r"kernel_tower.\1.0.\2"),
    (r"bbox_head\.kernel_convs\.(\d)\.gn\.(.+)", r"kernel_tower.\1.1.\2"),
    (r"bbox_head\.solo_cate\.(.+)", r"category.\1"),
    (r"bbox_head\.solo_kernel\.(.+)", r"kernel.\1"),
    (
        r"mask_feat_head\.convs_all_levels\.(\d)\.conv(\d)\.conv\.conv_offset\.(.+)",
        r"mask_branch.levels.\1.\2.0.offset_mask.\3",
    ),
    (r"mask_feat_head\.convs_all_levels\.(\d)\.conv(\d)\.conv\.(.+)", r"mask_branch.levels.\1.\2.0.\3"),
    (r"mask_feat_head\.convs_all_levels\.(\d)\.conv(\d)\.gn\.(.+)", r"mask_branch.levels.\1.\2.1.\3"),
    (r"mask_feat_head\.conv_pred\.0\.conv\.conv_offset\.(.+)", r"mask_branch.mix.0.offset_mask.\1"),
    (r"mask_feat_head\.conv_pred\.0\.conv\.(.+)", r"mask_branch.mix.0.\1"),
    (r"mask_feat_head\.conv_pred\.0\.gn\.(.+)", r"mask_branch.mix.1.\1"),
)

_ADELAIDET: Rules = (
    *DETECTRON2,
    *_tower("cate", "category"),
    *_tower("kernel", "kernel"),
    (r"ins_head\.cate_pred\.(.+)", r"category.\1"),
    (r"ins_head\.kernel_pred\.(.+)", r"kernel.\1"),
    (r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.([01])\.(.+)", r"mask_branch.levels.\1.\2.\3.\4"),
    (r"mask_head\.conv_pred\.([01])\.(.+)", r"mask_branch.mix.\1.\2"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no SOLOv2 has."""
    if any(name.startswith("backbone.bottom_up.") for name in state):
        return bgr_to_rgb(rename_by(_ADELAIDET, state, "SOLOv2"))
    return rename_by(_SOLO, state, "SOLOv2")
