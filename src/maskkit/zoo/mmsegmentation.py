"""What the presets of mmsegmentation's zoo share: names of tensors, inputs, schedules, and what its networks have."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from maskkit.config import AugmentConfig, BackboneConfig, ModelConfig, TrainConfig
from maskkit.zoo.card import Preset, Weights
from maskkit.zoo.class_names import ADE20K, CITYSCAPES, VOC_SEMANTIC
from maskkit.zoo.key_maps import Rules, rename_by
from maskkit.zoo.recipes import Recipe, imagenet_input

KEYS: Rules = (
    (r"backbone\.stem\.([01346])\.(.+)", r"backbone.body.conv1.\1.\2"),
    (r"backbone\.stem\.7\.(.+)", r"backbone.body.bn1.\1"),
    (r"backbone\.(layer\d\..+)", r"backbone.body.\1"),
    (r"auxiliary_head\.convs\.0\.conv\.(.+)", r"auxiliary.0.\1"),
    (r"auxiliary_head\.convs\.0\.bn\.(.+)", r"auxiliary.1.\1"),
    (r"auxiliary_head\.conv_seg\.(.+)", r"auxiliary.4.\1"),
)
"""ResNetV1c and the auxiliary head, which are the same in all convolutional methods."""


def is_mmsegmentation(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the names of mmsegmentation."""
    return any(name.startswith("decode_head.") for name in state)


def rename(state: dict[str, Tensor], head: Rules, method: str) -> dict[str, Tensor]:
    """From mmsegmentation's names to ours; ``head`` are the rules for ``decode_head``.

    Raises `DataError` for an unknown name.
    """
    return rename_by((*KEYS, *((rf"decode_head\.{official}", ours) for official, ours in head)), state, method)


def unit(official: str, ours: str) -> Rules:
    """Rules for one of mmsegmentation's units of convolution and norm; the patterns may have groups."""
    last = official.count("(") + 1
    return (
        (rf"{official}\.conv\.(\w+)", rf"{ours}.0.\{last}"),
        (rf"{official}\.bn\.(\w+)", rf"{ours}.1.\{last}"),
    )


def separable(official: str, ours: str) -> Rules:
    """Rules for a depthwise separable unit."""
    last = official.count("(") + 1
    return tuple(
        (rf"{official}\.{part}_conv\.{kind}\.(\w+)", rf"{ours}.{first + place}.\{last}")
        for first, part in ((0, "depthwise"), (3, "pointwise"))
        for place, kind in enumerate(("conv", "bn"))
    )


# presets --------------------------------------------------------------------------------------------------------------

WEIGHTS = Weights("github.com/open-mmlab/mmsegmentation", "Apache-2.0")
_TRAIN = TrainConfig(
    epochs=63.3, batch=16, lr=0.01, schedule="poly", weight_decay=5e-4, warmup=0
)  # 80,000 steps on ADE20K

_ADE20K = Recipe(
    replace(imagenet_input((512, 2048), "shorter", interpolation="cv2"), multiple=1),
    AugmentConfig(expand=1.0, iou_crop=False, short_sides=(256, 384, 512, 640, 768, 896, 1024), canvas=(512, 512)),
    _TRAIN,
    WEIGHTS,
    ADE20K,
)

RECIPES = {
    "ade20k": _ADE20K,
    "voc": replace(_ADE20K, train=replace(_TRAIN, epochs=60.5), classes=VOC_SEMANTIC),  # 40,000 steps on VOC train_aug
    "cityscapes": Recipe(
        replace(imagenet_input((1024, 2048), "shorter", interpolation="cv2"), multiple=1),
        AugmentConfig(
            expand=1.0, iou_crop=False, short_sides=(512, 768, 1024, 1280, 1536, 1792, 2048), canvas=(512, 1024)
        ),
        replace(_TRAIN, epochs=215.1, batch=8),
        WEIGHTS,
        CITYSCAPES,
    ),
}
"""Of each data set. Images keep their aspect ratio and are not padded; crops are trained on."""

NAMES = {"ade20k": "ADE20K", "voc": "VOC 2012", "cityscapes": "Cityscapes"}
_RUNS = {"ade20k": "512x512_80k_ade20k", "voc": "512x512_40k_voc12aug", "cityscapes": "512x1024_80k_cityscapes"}
"""Crop, steps and data in the names of files."""


def file(folder: str, name: str, end: str) -> Weights:
    """Published weights in ``folder`` of OpenMMLab's server; the file is called ``name``, plus ``end``."""
    return WEIGHTS.at(f"https://download.openmmlab.com/mmsegmentation/v0.5/{folder}/{name}/{name}_{end}.pth")


def preset(method: str, layers: int, data: str, model: ModelConfig, miou: float, end: str, crop: int = 0) -> Preset:
    """A preset on a ResNetV1c of so many ``layers`` at stride 8.

    ``end`` is that of the published file's name. With ``crop`` it is evaluated in windows of that side.
    """
    recipe, run, how, last = RECIPES[data], _RUNS[data], "", ""
    if crop:
        size = recipe.input.size
        augment = replace(recipe.augment, canvas=(crop, crop))
        recipe = replace(recipe, input=replace(recipe.input, size=(size[0] + 1, size[1] + 1)), augment=augment)
        run = f"{crop}x{crop}_80k_{data}"
        how, last = f"; windows of {crop} x {crop}, logits averaged", f"-{crop}"
    return recipe.preset(
        f"{method}-resnet{layers}-{data}-mmseg{last}",
        model,
        f"{NAMES[data]} val mIoU {miou} (mmsegmentation{how})",
        weights=file(method, f"{method}_r{layers}-d8_{run}", end),
    )


def fields(layers: int, data: str) -> dict[str, Any]:
    """The fields that all of mmsegmentation's networks on a ResNetV1c of so many ``layers`` have in common."""
    backbone = BackboneConfig(f"resnet{layers}c", norm="train")
    return {"num_classes": len(RECIPES[data].classes), "backbone": backbone, "auxiliary": 0.4, "via_input": True}
