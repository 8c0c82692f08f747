"""dbolya/yolact (MIT): names of its checkpoints, ResNet, Darknet-53 and YOLACT++ alike."""

import re

from torch import Tensor

from maskkit.errors import DataError

_FPN = {"lat_layers": "lateral", "pred_layers": "output"}
_HEAD = {"upfeature.0": "shared", "bbox_layer": "box", "conf_layer": "conf", "mask_layer": "mask"}
# tensors of older releases that the official loader drops too
_DROPPED = re.compile(r"backbone\.layer\d|fpn\.downsample_layers\.([2-9]|\d\d)")

_RULES: list[tuple[str, str]] = [
    # ResNet: torchvision's names, stages counted from zero
    (r"backbone\.layers\.(\d)\.(\d+)\.((?:conv|bn|downsample).*)", "resnet"),
    (r"backbone\.(conv1|bn1)\.(.+)", r"backbone.body.\1.\2"),
    # Darknet: a stem, then per stage a strided convolution and residual blocks of two convolutions
    (r"backbone\._preconv\.(\d)\.(.+)", "stem"),
    (r"backbone\.layers\.(\d)\.0\.(\d)\.(.+)", "down"),
    (r"fpn\.(lat_layers|pred_layers)\.(\d)\.(.+)", "fpn"),
    (r"fpn\.downsample_layers\.(\d)\.(.+)", r"fpn.extra.\1.\2"),
    (r"proto_net\.(\d+)\.(.+)", r"protonet.\1.\2"),
    (r"prediction_layers\.0\.(upfeature\.0|bbox_layer|conf_layer|mask_layer)\.(.+)", "head"),
    (r"semantic_seg_conv\.(.+)", r"semantic.\1"),
    (r"maskiou_net\.maskiou_net\.(\d+)\.(.+)", r"maskiou.\1.\2"),
]


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no YOLACT has."""
    darknet = any(n.startswith("backbone._preconv") for n in state)
    return {_name(n, darknet): t for n, t in state.items() if not _DROPPED.match(n)}


def _name(name: str, darknet: bool) -> str:
    pair = ("conv", "bn")  # the two entries of a Darknet unit
    for pattern, rule in _RULES:
        m = re.fullmatch(pattern, name)
        if m is None:
            continue
        g = m.groups()
        if rule == "resnet" and darknet:  # layers.S.B.convN.{0,1}.rest, where block 0 is the strided convolution
            unit, entry, rest = g[2].split(".", 2)
            return f"backbone.body.stages_{g[0]}.blocks.{int(g[1]) - 1}.{unit}.{pair[int(entry)]}.{rest}"
        if rule == "resnet":
            rest = g[2].replace("conv_offset_mask", "offset_mask")
            return f"backbone.body.layer{int(g[0]) + 1}.{g[1]}.{rest}"
        if rule == "stem":
            return f"backbone.body.stem_conv1.{pair[int(g[0])]}.{g[1]}"
        if rule == "down":
            return f"backbone.body.stages_{g[0]}.conv_down.{pair[int(g[1])]}.{g[2]}"
        if rule == "fpn":  # the official lists begin with C5
            return f"fpn.{_FPN[g[0]]}.{2 - int(g[1])}.{g[2]}"
        if rule == "head":
            return f"head.{_HEAD[g[0]]}.{g[1]}"
        return m.expand(rule)
    raise DataError(f"{name!r} is no tensor of a YOLACT checkpoint")
