"""CondInst of AdelaiDet; BoxInst has the same names."""

from torch import Tensor

from maskkit.zoo.adelaidet import FCOS
from maskkit.zoo.resnet import Rules, bgr_to_rgb, rename_by

_RULES: Rules = (
    *FCOS,
    (r"controller\.(.+)", r"head.extra.\1"),
    (r"mask_branch\.(refine|tower)\.(.+)", r"mask_branch.\1.\2"),
    (r"mask_branch\.seg_head\.(.+)", r"mask_branch.semantic.\1"),
    (r"mask_branch\.logits\.(.+)", r"mask_branch.semantic.2.\1"),
)
_CONSTANTS = ("mask_head.sizes_of_interest", "mask_head._iter")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no CondInst has."""
    return bgr_to_rgb(rename_by(_RULES, {n: t for n, t in state.items() if n not in _CONSTANTS}, "CondInst"))
