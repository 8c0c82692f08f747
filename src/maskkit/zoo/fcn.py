"""Names of published FCN checkpoints: wkentaro/pytorch-fcn (Caffe's layers, images in BGR) and torchvision."""

import re

from torch import Tensor

from maskkit.errors import DataError
from maskkit.nn.backbones.vgg import LAYOUT

_SKIPS = {"score_pool4": "skips.0", "score_pool3": "skips.1", "upscore2": "enlarge.0", "upscore_pool4": "enlarge.1"}
_HEAD = {"fc6": "fc.0", "fc7": "fc.3", "score_fr": "score", "upscore": "last", "upscore16": "last", "upscore8": "last"}
_LAYERS = _SKIPS | _HEAD


def vgg_layer(stage: int, number: int, per_conv: int = 2) -> int:
    """Place in ``features`` of convolution ``number`` of ``stage``, both from 1; two layers each, three with a norm."""
    before = sum(len(widths) * per_conv + 1 for widths in LAYOUT[: stage - 1])
    return before + (number - 1) * per_conv


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no FCN has."""
    renamed = {_name(n): t for n, t in state.items()}
    first = "backbone.body.features.0.weight"
    if first in renamed:
        renamed[first] = renamed[first].flip(1)  # Caffe's images are BGR
    return renamed


def _name(name: str) -> str:
    if m := re.fullmatch(r"conv(\d)_(\d)\.(\w+)", name):
        return f"backbone.body.features.{vgg_layer(int(m[1]), int(m[2]))}.{m[3]}"
    layer, _, leaf = name.rpartition(".")
    if layer in _LAYERS:
        return f"{_LAYERS[layer]}.{leaf}"
    if m := re.fullmatch(r"backbone\.((?:conv1|bn1|layer\d)\..+)", name):
        return f"backbone.body.{m[1]}"
    if m := re.fullmatch(r"(aux_)?classifier\.([014]\.\w+)", name):
        return f"{'auxiliary' if m[1] else 'score'}.{m[2]}"
    raise DataError(f"{name!r} is no tensor of an FCN checkpoint")
