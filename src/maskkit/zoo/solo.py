"""SOLO, vanilla and decoupled, as WXinlong/SOLO names it."""

from torch import Tensor

from maskkit.zoo.resnet import MMDETECTION, Rules, rename_by


def _tower(official: str, ours: str) -> Rules:
    return (
        (rf"bbox_head\.{official}\.(\d)\.conv\.conv_offset\.(.+)", rf"{ours}.\1.0.offset_mask.\2"),
        (rf"bbox_head\.{official}\.(\d)\.conv\.(.+)", rf"{ours}.\1.0.\2"),
        (rf"bbox_head\.{official}\.(\d)\.gn\.(.+)", rf"{ours}.\1.1.\2"),
    )


_RULES: Rules = (
    *MMDETECTION,
    *_tower("cate_convs", "category_tower"),
    *_tower("ins_convs", "towers.0"),
    *_tower("ins_convs_x", "towers.0"),
    *_tower("ins_convs_y", "towers.1"),
    (r"bbox_head\.d?solo_cate\.(.+)", r"category.\1"),
    (r"bbox_head\.(?:solo_ins_list|dsolo_ins_list_x)\.(\d)\.(.+)", r"outputs.0.\1.\2"),
    (r"bbox_head\.dsolo_ins_list_y\.(\d)\.(.+)", r"outputs.1.\1.\2"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no SOLO has."""
    return rename_by(_RULES, state, "SOLO")
