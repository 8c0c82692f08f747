"""RTMDet-Ins: key map of mmdetection's checkpoints, and presets."""

import re
from dataclasses import replace

import torch
from torch import Tensor

from maskkit.config import AugmentConfig, BackboneConfig, InputConfig, TrainConfig, change
from maskkit.errors import DataError
from maskkit.models.rtmdet_ins import RtmdetIns, RtmdetInsConfig
from maskkit.nn.dynamic_mask import DynamicHeadConfig
from maskkit.nn.rtmdet import RtmDetectorConfig
from maskkit.zoo.card import Method, Preset
from maskkit.zoo.key_maps import Rules, rename_by
from maskkit.zoo.recipes import (
    FLIP,
    FROZEN_MOBILENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MMDETECTION,
    Recipe,
    small_presets,
)

_LAYER = (
    (r"(main|short|final)_conv\.(.+)", r"\1.\2"),
    (r"attention\.fc\.(.+)", r"attention.\1"),
    (r"blocks\.(\d+)\.conv1\.(.+)", r"blocks.\1.full.\2"),
    (r"blocks\.(\d+)\.conv2\.(depthwise|pointwise)_conv\.(.+)", r"blocks.\1.\2.\3"),
)
"""The parts of a CSP layer."""


def _layers(official: str, ours: str) -> Rules:
    """Rules of CSP layers; ``official`` has one group, to which ``ours`` refers as ``\\g<1>``."""
    shifted = [(part, re.sub(r"\\(\d)", lambda m: f"\\{int(m[1]) + 1}", name)) for part, name in _LAYER]
    return [(rf"{official}\.{part}", rf"{ours}.{name}") for part, name in shifted]


_RULES: Rules = (
    (r"backbone\.stem\.(\d)\.(.+)", r"backbone.body.stem.\1.\2"),
    *(
        rule
        for stage in (1, 2, 3, 4)
        for official, ours in [(rf"backbone\.stage{stage}", f"backbone.body.stages.{stage - 1}")]
        for rule in (
            (official + r"\.0\.(\d\..+)", ours + r".0.\1"),
            (official + r"\.1\.conv1\.(.+)", ours + r".1.reduce.\1"),
            (official + r"\.1\.conv2\.(.+)", ours + r".1.join.\1"),
            *_layers(official + r"\.([12])", ours + r".\1"),
        )
    ),
    (r"neck\.reduce_layers\.(\d)\.(.+)", r"neck.reduce.\1.\2"),
    (r"neck\.downsamples\.(\d)\.(.+)", r"neck.halve.\1.\2"),
    (r"neck\.out_convs\.(\d)\.(.+)", r"neck.output.\1.\2"),
    *_layers(r"neck\.top_down_blocks\.(\d)", r"neck.top_down.\1"),
    *_layers(r"neck\.bottom_up_blocks\.(\d)", r"neck.bottom_up.\1"),
    (r"bbox_head\.(?:cls|reg)_convs\.\d\.(\d)\.0\.(.+)", r"head.convs.\1.\2"),
    (r"bbox_head\.(?:cls|reg)_convs\.(\d)\.(\d)\.1\.(.+)", r"head.norms.\1.\2.\3"),
    (r"bbox_head\.kernel_convs\.(\d)\.(.+)", r"head.extra_towers.\1.\2"),
    (r"bbox_head\.rtm_cls\.(.+)", r"head.logits.\1"),
    (r"bbox_head\.rtm_reg\.(.+)", r"head.sides.\1"),
    (r"bbox_head\.rtm_kernel\.(.+)", r"head.extra.\1"),
    (r"bbox_head\.mask_head\.fusion_conv\.(.+)", r"mask_branch.fuse.\1"),
    (r"bbox_head\.mask_head\.stacked_convs\.(\d)\.(.+)", r"mask_branch.tower.\1.\2"),
    (r"bbox_head\.mask_head\.projection\.(.+)", r"mask_branch.tower.4.\1"),
)
"""For names whose units end in ``.0`` (convolution) and ``.1`` (norm)."""
_FLIPPED = "backbone.body.stem.0.0.weight"


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours, for images in RGB. Raises `DataError` for an unknown name.

    Official files hold the tower that classes and boxes of all levels share under up to six names. `DataError` too
    where these differ: such a file is of another network.
    """
    units = ((r"\.conv\.weight$", ".0.weight"), (r"\.bn\.(\w+)$", r".1.\1"))
    ours: dict[str, Tensor] = {}
    for official, tensor in state.items():
        name = official
        for pattern, unit in units:
            name = re.sub(pattern, unit, name)
        (name,) = rename_by(_RULES, {name: tensor}, "RTMDet-Ins")
        if name in ours and not (ours[name].shape == tensor.shape and torch.equal(ours[name], tensor)):
            raise DataError(
                f"{official!r} differs from its namesakes: in RTMDet-Ins one tower serves classes and boxes of all "
                "levels; this checkpoint has several and is of another network"
            )
        ours[name] = tensor
    return {**ours, _FLIPPED: ours[_FLIPPED].flip(1)} if _FLIPPED in ours else ours


# presets --------------------------------------------------------------------------------------------------------------

_INPUT = InputConfig((640, 640), "pad", interpolation="cv2", mean=IMAGENET_MEAN, std=IMAGENET_STD, padding=114)
_TRAIN = TrainConfig(
    epochs=300,
    batch=256,
    optimizer="adamw",
    lr=4e-3,
    weight_decay=0.05,
    decay_norm=False,
    flat=0.5,
    least=0.05,
    warmup=999,
    warmup_from=1e-5,
    ema=0.9998,
    ema_warmup=2000,
    eval_every=10,
)
"""Without mosaic and mix-up, which are not part of this package, and their end after 280 epochs."""
_FILES = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet"


def _official(
    size: str,
    width: int,
    blocks: int,
    results: tuple[float, float],
    scales: tuple[float, float],
    file: str,
    batch: int = 256,
) -> Preset:
    config = RtmdetInsConfig(
        backbone=BackboneConfig(f"cspnext_{size}", norm="train"),
        detector=RtmDetectorConfig(width=width, neck_blocks=blocks),
        masks=DynamicHeadConfig(branch_width=width),
    )
    augment: AugmentConfig = replace(FLIP, photometric=True, scale_jitter=scales)
    train = replace(_TRAIN, batch=batch, lr=_TRAIN.lr * batch / 256)
    official = f"rtmdet-ins_{size}_8xb{batch // 8}-300e_coco"
    recipe = Recipe(_INPUT, augment, train, MMDETECTION.at(f"{_FILES}/{official}/{official}_{file}.pth"))
    masks, boxes = results
    return recipe.preset(f"rtmdet-ins-{size}", config, f"COCO val mask AP {masks}, box AP {boxes}")


METHOD = Method(
    title="RTMDet-Ins",
    paper="Lyu, Zhang, Huang, Zhou, Wang, Liu, Zhang, Chen: RTMDet: An Empirical Study of Designing Real-Time Object "
    "Detectors. 2022",
    model=RtmdetIns,
    presets=(
        _official("tiny", 96, 1, (35.4, 40.5), (0.5, 2.0), "20221130_151727-ec670f7e"),
        _official("s", 128, 1, (38.7, 44.0), (0.5, 2.0), "20221121_212604-fdc5d7ec"),
        _official("m", 192, 2, (42.1, 48.8), (0.1, 2.0), "20221123_001039-6eba602e"),
        _official("l", 256, 3, (43.7, 51.2), (0.1, 2.0), "20221124_103237-78d1d652"),
        _official("x", 320, 4, (44.6, 52.4), (0.1, 2.0), "20221124_111313-33d4595b", batch=128),
        *small_presets(
            "rtmdet-ins",
            lambda _: change(RtmdetInsConfig(backbone=FROZEN_MOBILENET), masks_to_train=500),
            ours="nuclei mask AP 0.193 at 256 px, 2 min on 1 core",
        ),
    ),
    rename=rename,
    agreement="mmdetection, 10 cases",
)
