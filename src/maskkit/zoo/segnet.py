"""Names of published SegNet checkpoints: meetshah1995/pytorch-semseg, and the layers of the official Caffe net."""

import re

from torch import Tensor

from maskkit.errors import DataError
from maskkit.nn.backbones.vgg import LAYOUT

_CONVS = [len(widths) for widths in LAYOUT]


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no SegNet has."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if m := re.fullmatch(r"down(\d)\.conv(\d)\.cbr_unit\.([01])\.(\w+)", name):
        return _encoder(int(m[1]), int(m[2]), int(m[3]), m[4])
    if m := re.fullmatch(r"up(\d)\.conv(\d)\.cbr_unit\.([01])\.(\w+)", name):
        return f"upsampling.{5 - int(m[1])}.{int(m[2]) - 1}.{m[3]}.{m[4]}"
    if m := re.fullmatch(r"conv(\d)_(\d)(_D)?(_bn)?\.(\w+)", name):
        stage, number, part = int(m[1]), int(m[2]), int(m[4] is not None)
        if m[3] is None:
            return _encoder(stage, number, part, m[5])
        # the decoder counts its convolutions down towards the input
        return f"upsampling.{5 - stage}.{_CONVS[stage - 1] - number}.{part}.{m[5]}"
    raise DataError(f"{name!r} is no tensor of a SegNet checkpoint")


def _encoder(stage: int, number: int, part: int, leaf: str) -> str:
    before = sum(3 * convs + 1 for convs in _CONVS[: stage - 1])
    return f"backbone.body.features.{before + 3 * (number - 1) + part}.{leaf}"
