"""NanoDet-Plus: key map of its authors' checkpoints, and the published preset."""

import torch
from torch import Tensor

from maskkit.config import AugmentConfig, TrainConfig
from maskkit.models.nanodet import NanoDet, NanoDetModelConfig
from maskkit.nn.nanodet import NanoDetConfig
from maskkit.zoo.card import Method, Weights
from maskkit.zoo.key_maps import Rules, rename_by
from maskkit.zoo.recipes import NANODET_INPUT, Recipe

_PARTS = {"0": "conv", "1": "norm"}
_NORMS = {"bn": "norm", "dwnorm": "0.norm", "pwnorm": "1.norm", "depthwise": "0.conv", "pointwise": "1.conv"}


def _unit_rules() -> list[tuple[str, str]]:
    """Rules of the backbone's blocks, whose layers are numbered, activations counted."""
    numbers = {
        "branch1": {0: "shortcut.0.conv", 1: "shortcut.0.norm", 2: "shortcut.1.conv", 3: "shortcut.1.norm"},
        "branch2": {i: f"branch.{j}.{kind}" for j, i0 in enumerate((0, 3, 5)) for i, kind in _pair(i0)},
    }
    return [
        (rf"backbone\.stage{stage}\.(\d)\.{branch}\.{i}\.(.+)", rf"backbone.stages.{stage - 2}.\1.{ours}.\2")
        for stage in (2, 3, 4)
        for branch, layers in numbers.items()
        for i, ours in layers.items()
    ]


def _pair(first: int) -> list[tuple[int, str]]:
    return [(first, "conv"), (first + 1, "norm")]


_RULES: Rules = (
    *((rf"backbone\.conv1\.{i}\.(.+)", rf"backbone.stem.{kind}.\1") for i, kind in _PARTS.items()),
    *_unit_rules(),
    (r"fpn\.reduce_layers\.(\d)\.conv\.(.+)", r"fpn.reduce.\1.conv.\2"),
    (r"fpn\.reduce_layers\.(\d)\.bn\.(.+)", r"fpn.reduce.\1.norm.\2"),
    *(
        rule
        for official, ours in (("top_down_blocks", "top_down"), ("bottom_up_blocks", "bottom_up"))
        for i, kind in _PARTS.items()
        for rule in (
            (
                rf"fpn\.{official}\.(\d)\.blocks\.0\.(ghost\d)\.primary_conv\.{i}\.(.+)",
                rf"fpn.{ours}.\1.\2.primary.{kind}.\3",
            ),
            (
                rf"fpn\.{official}\.(\d)\.blocks\.0\.(ghost\d)\.cheap_operation\.{i}\.(.+)",
                rf"fpn.{ours}.\1.\2.cheap.{kind}.\3",
            ),
            (rf"fpn\.{official}\.(\d)\.blocks\.0\.shortcut\.{i}\.(.+)", rf"fpn.{ours}.\1.shortcut.0.{kind}.\2"),
            (
                rf"fpn\.{official}\.(\d)\.blocks\.0\.shortcut\.{int(i) + 2}\.(.+)",
                rf"fpn.{ours}.\1.shortcut.1.{kind}.\2",
            ),
        )
    ),
    *(
        rule
        for official, ours in _NORMS.items()
        if official != "bn"
        for rule in (
            (rf"fpn\.downsamples\.(\d)\.{official}\.(.+)", rf"fpn.down.\1.{ours}.\2"),
            (rf"fpn\.extra_lvl_in_conv\.0\.{official}\.(.+)", rf"fpn.extra_in.{ours}.\1"),
            (rf"fpn\.extra_lvl_out_conv\.0\.{official}\.(.+)", rf"fpn.extra_out.{ours}.\1"),
            (rf"head\.cls_convs\.(\d)\.(\d)\.{official}\.(.+)", rf"head.towers.\1.\2.{ours}.\3"),
        )
    ),
    (r"head\.gfl_cls\.(\d)\.(.+)", r"head.out.\1.\2"),
)
_TRAINING = ("aux_fpn.", "aux_head.", "head.distribution_project.")
"""Parts that serve the training alone."""
_AVERAGE = "avg_model."
_SIDES = 4 * NanoDetConfig().bins


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours, with batch norm folded into the convolutions, and for RGB.

    Of a training's checkpoint, the average of the weights is taken. Raises `DataError` for an unknown name.
    """
    return fold(renamed(state))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours, with batch norm where the checkpoint has it, and for RGB."""
    average = {n.removeprefix(_AVERAGE): t for n, t in state.items() if n.startswith(_AVERAGE)}
    state = {n: t for n, t in (average or state).items() if not n.startswith(_TRAINING)}
    ours = rename_by(_RULES, state, "NanoDet-Plus")
    for name in [n for n in ours if n.startswith("head.out.")]:  # classes and sides are one convolution there
        tensor, place = ours.pop(name), name.removeprefix("head.out.")
        ours[f"head.logits.{place}"], ours[f"head.sides.{place}"] = tensor[:-_SIDES], tensor[-_SIDES:]
    stem = "backbone.stem.conv.weight"
    return {**ours, stem: ours[stem].flip(1)} if stem in ours else ours  # trained on BGR


def fold(state: dict[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """The state with each batch norm folded into the convolution before it."""
    folded = {n: t for n, t in state.items() if ".norm." not in n}
    for name in state:
        if name.endswith(".norm.running_var"):
            layer = name.removesuffix(".norm.running_var")
            scale = state[f"{layer}.norm.weight"] / torch.sqrt(state[name] + eps)
            folded[f"{layer}.conv.weight"] = state[f"{layer}.conv.weight"] * scale[:, None, None, None]
            mean = state[f"{layer}.norm.running_mean"]
            folded[f"{layer}.conv.bias"] = state[f"{layer}.norm.bias"] - mean * scale
    return folded


# presets --------------------------------------------------------------------------------------------------------------

_RECIPE = Recipe(
    NANODET_INPUT,
    AugmentConfig(expand=1.0, iou_crop=False, scale_jitter=(0.6, 1.4)),
    TrainConfig(epochs=300, batch=96, optimizer="adamw", lr=1e-3, weight_decay=0.05, warmup=500, clip=35.0, ema=0.9998),
    Weights("github.com/RangiLyu/nanodet", "Apache-2.0").at(
        "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1/nanodet-plus-m_416_checkpoint.ckpt"
    ),
)

METHOD = Method(
    title="NanoDet-Plus",
    paper="RangiLyu: NanoDet-Plus: Super fast and high accuracy lightweight anchor-free object detection model. 2021",
    model=NanoDet,
    presets=(
        _RECIPE.preset(
            "nanodet-plus-m-416",
            NanoDetModelConfig(),
            "COCO val box AP 30.4",
            "251 COCO val2017 photographs: box AP 0.362",
        ),
    ),
    rename=rename,
    agreement="RangiLyu/nanodet, 2 cases",
)
