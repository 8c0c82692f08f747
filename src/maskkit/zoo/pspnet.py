"""PSPNet: key maps of hszhao/semseg (MIT) and mmsegmentation (Apache-2.0), and presets."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from maskkit.config import BackboneConfig, TrainConfig
from maskkit.models.pspnet import Pspnet, PspnetConfig
from maskkit.zoo import mmsegmentation
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import ADE20K, CITYSCAPES, VOC_SEMANTIC
from maskkit.zoo.key_maps import Rules, rename_by
from maskkit.zoo.recipes import FLIP, MOBILENET, Recipe, imagenet_input, small_semantic

_RULES: Rules = (
    (r"layer0\.([01346])\.(.+)", r"backbone.body.conv1.\1.\2"),
    (r"layer0\.7\.(.+)", r"backbone.body.bn1.\1"),
    (r"(layer[1-4]\..+)", r"backbone.body.\1"),
    (r"ppm\.features\.(\d)\.1\.(.+)", r"pyramid.reduce.\1.0.\2"),
    (r"ppm\.features\.(\d)\.2\.(.+)", r"pyramid.reduce.\1.1.\2"),
    (r"cls\.([014]\..+)", r"score.\1"),
    (r"aux\.([014]\..+)", r"auxiliary.\1"),
)
_MMSEGMENTATION: Rules = (
    *mmsegmentation.unit(r"psp_modules\.(\d)\.1", r"pyramid.reduce.\1"),
    *mmsegmentation.unit("bottleneck", "score"),
    (r"conv_seg\.(\w+)", r"score.4.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    if mmsegmentation.is_mmsegmentation(state):
        return mmsegmentation.rename(state, _MMSEGMENTATION, "PSPNet")
    return rename_by(_RULES, {n.removeprefix("module."): t for n, t in state.items()}, "PSPNet")


# presets --------------------------------------------------------------------------------------------------------------

_OFFICIAL = Recipe(
    imagenet_input((473, 473), "pad"),
    replace(FLIP, scale_jitter=(0.5, 2.0)),
    TrainConfig(epochs=100, batch=16, lr=0.1, backbone_lr=0.1, weight_decay=1e-4),
    Weights("github.com/hszhao/semseg", "MIT"),
    ADE20K,
)


def _official(data: str, layers: int, paper: str, **changes: Any) -> Preset:
    recipe = replace(_OFFICIAL, **changes)
    backbone = BackboneConfig(f"resnet{layers}s", norm="train")
    config = PspnetConfig(num_classes=len(recipe.classes), backbone=backbone)
    return recipe.preset(f"pspnet-resnet{layers}-{data}", config, paper)


_VOC: dict[str, Any] = {"train": replace(_OFFICIAL.train, epochs=50), "classes": VOC_SEMANTIC}
_CITYSCAPES: dict[str, Any] = {
    "input": imagenet_input((713, 713), "pad"),
    "train": replace(_OFFICIAL.train, epochs=200),
    "classes": CITYSCAPES,
}


def _mmsegmentation(data: str, layers: int, miou: float, end: str) -> Preset:
    config = PspnetConfig(align_corners=False, dilate_first=False, **mmsegmentation.fields(layers, data))
    return mmsegmentation.preset("pspnet", layers, data, config, miou, end)


def _small(name: str, size: tuple[int, int], classes: int = 21, ours: str | None = None) -> Preset:
    config = PspnetConfig(num_classes=classes, backbone=MOBILENET, width=128, auxiliary_width=64)
    return small_semantic(name, config, size, ours)


METHOD = Method(
    title="PSPNet",
    paper="Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network. CVPR 2017",
    model=Pspnet,
    presets=(
        _official("ade20k", 50, "ADE20K val mIoU 41.89, 42.84 multi-scale (semseg)"),
        _official("ade20k", 101, "ADE20K val mIoU 43.10, 44.15 multi-scale (semseg)"),
        _official("voc", 50, "VOC 2012 val mIoU 77.05, 78.02 multi-scale (semseg)", **_VOC),
        _official("voc", 101, "VOC 2012 val mIoU 79.07, 79.63 multi-scale (semseg)", **_VOC),
        _official("cityscapes", 50, "Cityscapes val mIoU 77.30, 78.38 multi-scale (semseg)", **_CITYSCAPES),
        _official("cityscapes", 101, "Cityscapes val mIoU 78.63, 79.29 multi-scale (semseg)", **_CITYSCAPES),
        _mmsegmentation("ade20k", 50, 41.13, "20200615_014128-15a8b914"),
        _mmsegmentation("ade20k", 101, 43.57, "20200614_031423-b6e782f0"),
        _mmsegmentation("cityscapes", 50, 78.55, "20200606_112131-2376f12b"),
        _mmsegmentation("cityscapes", 101, 79.76, "20200606_112211-e1e1100f"),
        _mmsegmentation("voc", 50, 77.29, "20200613_161222-ae9c1b8c"),
        _mmsegmentation("voc", 101, 78.52, "20200613_161222-bc933b18"),
        _small("pspnet-mobilenetv2-321", (321, 321)),
        _small("pspnet-mobilenetv2-camvid", (361, 481), 11, "CamVid val mIoU 0.473, 20 min on 1 core"),
    ),
    rename=rename,
    agreement="hszhao/semseg, 2 cases; mmsegmentation, 2 cases",
)
