"""BlendMask of AdelaiDet."""

from torch import Tensor

from maskkit.zoo.adelaidet import FCOS
from maskkit.zoo.resnet import Rules, bgr_to_rgb, rename_by

_RULES: Rules = (
    *FCOS,
    (r"top_layer\.(.+)", r"head.extra.\1"),
    (r"basis_module\.(refine|tower)\.(.+)", r"basis.\1.\2"),
    (r"basis_module\.seg_head\.(.+)", r"basis.semantic.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no BlendMask has."""
    return bgr_to_rgb(rename_by(_RULES, state, "BlendMask"))
