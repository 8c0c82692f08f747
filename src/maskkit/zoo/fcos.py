"""FCOS of AdelaiDet."""

from torch import Tensor

from maskkit.zoo.adelaidet import FCOS
from maskkit.zoo.resnet import bgr_to_rgb, rename_by


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no FCOS has."""
    return bgr_to_rgb(rename_by(FCOS, state, "FCOS"))
