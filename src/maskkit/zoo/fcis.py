"""FCIS: key map of the MXNet checkpoints of msracver/FCIS (MIT), and presets.

Names may have the prefixes ``arg:`` and ``aux:``. Images are BGR. Background is the first class; its box deltas are
never read and are dropped, and the two logits of an anchor become one, their difference. Files saved by the official
training contain the box layer twice; the copy for tests, ``*_test``, includes the scale of the deltas and is left out.
"""

import re

import torch
from torch import Tensor

from maskkit.config import InputConfig, TrainConfig
from maskkit.errors import DataError
from maskkit.models.fcis import STRIDE, Fcis, FcisConfig
from maskkit.zoo.card import Method, Weights
from maskkit.zoo.class_names import VOC
from maskkit.zoo.key_maps import bgr_to_rgb
from maskkit.zoo.recipes import FLIP, FROZEN_MOBILENET, NO_STD, Recipe, caffe_resnet, small_presets

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
    """From official names to ours. Raises `DataError` for an unknown name."""
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
    raise DataError(f"{name!r} is not a tensor in checkpoints of FCIS")


def _fit(layer: str, tensor: Tensor) -> Tensor:
    if layer == "rpn.objectness":
        background, foreground = tensor.chunk(2)
        return foreground - background
    if layer == "deltas":
        return tensor.chunk(2)[1]
    if layer == "score":  # rows of a class: outside and inside, each of 7 x 7 parts
        return torch.cat([tensor[2 * 49 :], tensor[: 2 * 49]])
    return tensor


# presets --------------------------------------------------------------------------------------------------------------

_OFFICIAL = Recipe(
    InputConfig((600, 1000), "shorter", mean=(123.15, 115.90, 103.06), std=NO_STD),
    FLIP,
    TrainConfig(epochs=8, batch=8, lr=5e-4, schedule="steps", milestones=(5.33 / 8,), warmup=250),
    Weights("github.com/msracver/FCIS", "MIT"),
)

METHOD = Method(
    title="FCIS",
    paper="Li, Qi, Dai, Ji, Wei: Fully Convolutional Instance-aware Semantic Segmentation. CVPR 2017",
    model=Fcis,
    presets=(
        _OFFICIAL.preset(
            "fcis-resnet101", FcisConfig(backbone=caffe_resnet(101), caffe_stem=True), "COCO test-dev mask AP 29.6"
        ),
        _OFFICIAL.preset(
            "fcis-resnet101-voc",
            FcisConfig(
                num_classes=20,
                backbone=caffe_resnet(101),
                caffe_stem=True,
                anchor_scales=(8, 16, 32),
                hard=False,
            ),
            "VOC 2012 val mAPr at IoU 0.5 / 0.7: 65.7 / 52.1 (the code 66.0 / 51.9)",
            train=TrainConfig(epochs=22, batch=8, lr=5e-4, schedule="steps", milestones=(14 / 22,), warmup=0),
            classes=VOC,
        ),
        *small_presets(
            "fcis",
            lambda size: FcisConfig(
                backbone=FROZEN_MOBILENET,
                width=128,
                rpn_width=128,
                anchor_scales=tuple(size * share / STRIDE for share in (0.09, 0.18, 0.36, 0.72)),
                rpn_before=1000,
                rpn_after=150,
                roi_sampled=64,
            ),
            ours="nuclei mask AP 0.120 at 448 px, 15 min on 1 core",
        ),
    ),
    rename=rename,
    agreement="msracver/FCIS, 6 cases",
)
