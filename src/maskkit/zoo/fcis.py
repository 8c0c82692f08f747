"""msracver/FCIS (MIT): names of its MXNet checkpoints, with or without ``arg:`` and ``aux:`` before them.

Images are BGR. Background is the first class; the box code of background, which nothing reads, is dropped, and the
two logits of an anchor become one, their difference. Files saved by the official training hold the box layer twice; the
copy for tests, ``*_test``, has the scale of the code in it and is left out.
"""

import re

import torch
from torch import Tensor

from maskkit.errors import DataError
from maskkit.zoo.resnet import bgr_to_rgb

_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_LEAVES |= {"moving_mean": "running_mean", "moving_var": "running_var"}
_BRANCHES = {"2a": "1", "2b": "2", "2c": "3"}
_HEADS = {
    "rpn_conv_3x3": "rpn.conv",
    "rpn_cls_score": "rpn.objectness",
    "rpn_bbox_pred": "rpn.deltas",
    "conv_new_1": "squeeze",
    "fcis_cls_seg": "score",
    "fcis_bbox": "deltas",
    "conv1": "backbone.body.conv1",
    "bn_conv1": "backbone.body.bn1",
}
_DROPPED = re.compile(r"fcis_bbox_(weight|bias)_test")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that FCIS does not have."""
    short = {re.sub(r"^(arg|aux):", "", name): tensor for name, tensor in state.items()}
    renamed = {_name(n): t for n, t in short.items() if not _DROPPED.fullmatch(n)}
    return bgr_to_rgb({n: _fit(n.rpartition(".")[0], t) for n, t in renamed.items()})


def _name(name: str) -> str:
    layer, leaf = next(
        ((name.removesuffix(f"_{k}"), v) for k, v in _LEAVES.items() if name.endswith(f"_{k}")), ("", "")
    )
    if layer in _HEADS:
        return f"{_HEADS[layer]}.{leaf}"
    if m := re.fullmatch(r"(res|bn)([2-5])([a-c])(\d*)_branch(1|2a|2b|2c)", layer):
        kind, stage, letter, number, branch = m.groups()
        block = int(number) if number else "abc".index(letter)
        if branch == "1":
            part = f"downsample.{int(kind == 'bn')}"
        else:
            part = f"{'conv' if kind == 'res' else 'bn'}{_BRANCHES[branch]}"
        return f"backbone.body.layer{int(stage) - 1}.{block}.{part}.{leaf}"
    raise DataError(f"{name!r} is no tensor of an FCIS checkpoint")


def _fit(layer: str, tensor: Tensor) -> Tensor:
    if layer == "rpn.objectness":
        background, foreground = tensor.chunk(2)
        return foreground - background
    if layer == "deltas":
        return tensor.chunk(2)[1]
    if layer == "score":  # rows of a class: outside and inside, each of 7 x 7 parts
        return torch.cat([tensor[2 * 49 :], tensor[: 2 * 49]])
    return tensor
