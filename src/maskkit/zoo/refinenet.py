"""Names of RefineNet's published weights in the port of its ResNet-101 (torchvision's names for the backbone)."""

import re

from torch import Tensor

from maskkit.errors import DataError

# a unit's two convolutions; the units of the "b" parts adapt a level (adapt_stage) or refine the sum (mflow_conv)
_UNIT = {"conv": "first", "conv_relu_varout_dimred": "second"}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no RefineNet has."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if re.match(r"(conv1|bn1|layer[1-4])\.", name):
        return f"backbone.body.{name}"
    if m := re.fullmatch(r"p_ims1d2_outl(\d)_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.reduce.{m[2]}"
    if m := re.fullmatch(r"(adapt_stage|mflow_conv_g)(\d)_b\.0\.(\d)_(conv|conv_relu_varout_dimred)\.(\w+)", name):
        part = "adapt" if m[1] == "adapt_stage" else "refine"
        return f"blocks.{int(m[2]) - 1}.{part}.{int(m[3]) - 1}.{_UNIT[m[4]]}.{m[5]}"
    if m := re.fullmatch(r"adapt_stage(\d)_b2_joint_varout_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.join.{m[2]}"
    if m := re.fullmatch(r"mflow_conv_g(\d)_pool\.0\.(\d)_outvar_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.pool.convs.{int(m[2]) - 1}.{m[3]}"
    if m := re.fullmatch(r"mflow_conv_g(\d)_b3_joint_varout_dimred\.(\w+)", name):
        return f"blocks.{int(m[1]) - 1}.out.{m[2]}"
    if m := re.fullmatch(r"clf_conv\.(\w+)", name):
        return f"score.{m[1]}"
    raise DataError(f"{name!r} is no tensor of a RefineNet checkpoint")
