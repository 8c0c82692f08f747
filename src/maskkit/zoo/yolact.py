"""YOLACT and YOLACT++: key maps of dbolya/yolact (MIT) with ResNet or Darknet-53 and of mmdetection, and presets."""

import re
from dataclasses import replace
from typing import Any

from torch import Tensor

from maskkit.config import AugmentConfig, BackboneConfig, InputConfig, TrainConfig
from maskkit.models.yolact import Yolact, YolactConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import VOC
from maskkit.zoo.key_maps import MMDETECTION_C3_KEYS, Rules, rename_by
from maskkit.zoo.recipes import FROZEN_MOBILENET, Recipe, mmdetection_file, on_nanodet, small_presets

# tensors of older releases, which the official loader drops too
_DROPPED = re.compile(r"backbone\.layer\d|fpn\.downsample_layers\.([2-9]|\d\d)")

_UNIT = ("conv", "bn")
"""The two layers of a unit of Darknet, which are numbered there."""
_BODY = "backbone.body."
_OFFICIAL_KEYS: Rules = (
    (r"backbone\.(conv1|bn1)\.(.+)", rf"{_BODY}\1.\2"),
    *(
        rule
        for stage in range(4)
        for official, ours in [(rf"backbone\.layers\.{stage}\.(\d+)\.", rf"{_BODY}layer{stage + 1}.\1.")]
        for rule in (
            (official + r"(conv\d)\.conv_offset_mask\.(.+)", ours + r"\2.offset_mask.\3"),
            (official + r"((?:conv|bn)\d\.(?:weight|bias|running_\w+|num_\w+)|downsample\..+)", ours + r"\2"),
        )
    ),
    *(
        rule
        for i, layer in enumerate(_UNIT)
        for rule in (
            (rf"backbone\._preconv\.{i}\.(.+)", rf"{_BODY}stem_conv1.{layer}.\1"),
            # a stage is a strided convolution and blocks of two units
            (rf"backbone\.layers\.(\d)\.0\.{i}\.(.+)", rf"{_BODY}stages_\1.conv_down.{layer}.\2"),
            *(
                (
                    rf"backbone\.layers\.(\d)\.{block}\.(conv\d)\.{i}\.(.+)",
                    rf"{_BODY}stages_\1.blocks.{block - 1}.\2.{layer}.\3",
                )
                for block in range(1, 9)
            ),
        )
    ),
    *((rf"fpn\.lat_layers\.{i}\.(.+)", rf"fpn.lateral.{2 - i}.\1") for i in range(3)),  # these lists start with C5
    *((rf"fpn\.pred_layers\.{i}\.(.+)", rf"fpn.output.{2 - i}.\1") for i in range(3)),
    (r"fpn\.downsample_layers\.(\d)\.(.+)", r"fpn.extra.\1.\2"),
    (r"proto_net\.(\d+)\.(.+)", r"protonet.\1.\2"),
    (r"prediction_layers\.0\.upfeature\.0\.(.+)", r"head.shared.\1"),
    (r"prediction_layers\.0\.bbox_layer\.(.+)", r"head.box.\1"),
    (r"prediction_layers\.0\.(conf|mask)_layer\.(.+)", r"head.\1.\2"),
    (r"semantic_seg_conv\.(.+)", r"semantic.\1"),
    (r"maskiou_net\.maskiou_net\.(\d+)\.(.+)", r"maskiou.\1.\2"),
)

_MMDETECTION: Rules = (
    *MMDETECTION_C3_KEYS,
    (r"bbox_head\.head_convs\.0\.conv\.(.+)", r"head.shared.\1"),
    (r"bbox_head\.conv_reg\.(.+)", r"head.box.\1"),
    (r"bbox_head\.conv_cls\.(.+)", r"head.conf.\1"),
    (r"bbox_head\.conv_coeff\.(.+)", r"head.mask.\1"),
    (r"mask_head\.protonet\.(\d+)\.(.+)", r"protonet.\1.\2"),
    # mmdetection 3 and 2
    (r"(?:mask_head\.segm_branch|segm_head)\.segm_conv\.(.+)", r"semantic.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    if any(n.startswith("bbox_head.") for n in state):
        return _background_first(rename_by(_MMDETECTION, state, "YOLACT"))
    return rename_by(_OFFICIAL_KEYS, {n: t for n, t in state.items() if not _DROPPED.match(n)}, "YOLACT")


def _background_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The classes of every anchor in our order: mmdetection has the background last."""
    turned, coordinates = dict(state), state.get("head.box.bias")
    anchors = len(coordinates) // 4 if coordinates is not None else 0
    for name in ("head.conf.weight", "head.conf.bias"):
        if anchors and name in state and len(state[name]) % anchors == 0:
            tensor = state[name]
            turned[name] = tensor.reshape(anchors, -1, *tensor.shape[1:]).roll(1, 1).reshape(tensor.shape)
    return turned


# presets --------------------------------------------------------------------------------------------------------------

_WEIGHTS = Weights("github.com/dbolya/yolact", "MIT")
_OFFICIAL = Recipe(
    InputConfig(),
    AugmentConfig(),
    TrainConfig(
        epochs=54.6,  # 800,000 steps of 8 on COCO train2017
        batch=8,
        lr=1e-3,
        schedule="steps",
        milestones=(0.35, 0.75, 0.875, 0.9375),
        warmup=500,
    ),
    _WEIGHTS,
)
_RESNET101 = BackboneConfig("resnet101")


def _file(name: str) -> Weights:
    """The author's file in its repository of the Hub; he moved them there when the first addresses had expired."""
    return _WEIGHTS.at(f"https://huggingface.co/dbolya/{name}/resolve/main/{name.replace('-', '_')}_54_800000.pth")


def _sized(size: int, ap: float, weights: Weights = _WEIGHTS, **knobs: Any) -> Preset:
    """YOLACT-101 for another input size; anchor sizes are whole pixels, as in the official code."""
    scales = tuple((int(side / 550 * size),) for side in (24, 48, 96, 192, 384))
    config = YolactConfig(backbone=_RESNET101, scales=scales, **knobs)
    input = InputConfig(size=(size, size))
    paper = f"COCO test-dev mask AP {ap}"
    return _OFFICIAL.preset(f"yolact-resnet101-{size}", config, paper, input=input, weights=weights)


def _plus(layers: int, ap: float, deformable: int, weights: Weights = _WEIGHTS) -> Preset:
    """YOLACT++: three anchors per octave, deformable convolutions, rescored masks."""
    config = YolactConfig(
        backbone=BackboneConfig(f"resnet{layers}"),
        scales=tuple(tuple(side * 2 ** (third / 3) for third in range(3)) for side in (24, 48, 96, 192, 384)),
        square_anchors=False,
        deformable=deformable,
        rescore=True,
    )
    return _OFFICIAL.preset(f"yolact-plus-resnet{layers}", config, f"COCO test-dev mask AP {ap}", weights=weights)


def _mmdetection(layers: int, ap: float, end: str) -> Preset:
    config = YolactConfig(
        backbone=BackboneConfig(f"resnet{layers}", norm="train"),
        ratios=(2, 1, 0.5),
        square_anchors=False,
        level_relu=False,
        extra_from_input=True,
        clip=True,
        level_candidates=1000,
        min_score=0.0,
        final_score=0.05,
    )
    train = replace(_OFFICIAL.train, epochs=55, milestones=(20 / 55, 42 / 55, 49 / 55, 52 / 55))
    file = mmdetection_file(f"v2.0/yolact/yolact_r{layers}_1x8_coco", f"_{end}")
    return replace(_OFFICIAL, input=InputConfig(interpolation="cv2"), train=train, weights=file).preset(
        f"yolact-resnet{layers}-mmdet", config, f"COCO val2017 mask AP {ap}"
    )


_SMALL = small_presets(
    "yolact",
    lambda _: YolactConfig(
        backbone=FROZEN_MOBILENET,
        width=128,
        head_norm=True,
        # three cells wide, as in the paper: with fewer cells boxes are hardly trained
        scales=((24,), (48,), (96,), (192,)),
        square_anchors=False,
    ),
    ours="nuclei mask AP 0.347 at 448 px, 20 min on 1 core",
)

METHOD = Method(
    title="YOLACT, YOLACT++",
    paper="Bolya, Zhou, Xiao, Lee: YOLACT. ICCV 2019; YOLACT++. TPAMI 2020",
    model=Yolact,
    presets=(
        _OFFICIAL.preset(
            "yolact-resnet50", YolactConfig(), "COCO test-dev mask AP 28.2", weights=_file("yolact-resnet50")
        ),
        _OFFICIAL.preset(
            "yolact-resnet101",
            YolactConfig(backbone=_RESNET101),
            "COCO test-dev mask AP 29.8",
            weights=_file("yolact-base"),
        ),
        _sized(400, 24.9),
        _sized(700, 31.2, _file("yolact-im700"), masks_to_train=300),
        _OFFICIAL.preset(
            "yolact-darknet53",
            YolactConfig(backbone=BackboneConfig("darknet53"), leaky_slope=0.1),
            "COCO test-dev mask AP 28.7",
            input=InputConfig(mean=(0, 0, 0), std=(255, 255, 255)),
        ),
        _OFFICIAL.preset(
            "yolact-resnet50-pascal",
            YolactConfig(num_classes=20, scales=((32,), (64,), (128,), (256,), (512,)), square_anchors=False),
            "Pascal SBD mask AP50 72.3",
            train=replace(_OFFICIAL.train, epochs=113.0, milestones=(0.5, 0.8333)),  # 120,000 steps of 8 on SBD train
            classes=VOC,
        ),
        _plus(50, 34.1, deformable=1, weights=_file("yolact-plus-resnet50")),
        _plus(101, 34.6, deformable=3),
        _mmdetection(50, 29.0, "20200908-f38d58df"),
        _mmdetection(101, 30.4, "20200908-4cbe9101"),
        *_SMALL,
        on_nanodet(_SMALL[0]),
    ),
    rename=rename,
    agreement="dbolya/yolact, 15 cases; mmdetection, 3 cases",
)
