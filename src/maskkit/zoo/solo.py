"""SOLO, vanilla and decoupled: key maps of WXinlong/SOLO and mmdetection, and presets."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from maskkit.config import BackboneConfig
from maskkit.models.solo import Solo, SoloConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.key_maps import MMDETECTION_KEYS, Rules, gn_units, rename_by
from maskkit.zoo.recipes import (
    FLIP,
    FROZEN_MOBILENET,
    LIGHT_GRID,
    LIGHT_SHORT_SIDES,
    SMALL_TOWERS,
    SMALL_TRAIN,
    imagenet_input,
    mmdetection_file,
    small_grid,
    small_presets,
    solo_recipe,
)

# `bbox_head` in WXinlong/SOLO, `mask_head` in mmdetection
_RULES: Rules = (
    *MMDETECTION_KEYS,
    *gn_units(r"(?:bbox_head\.cate|mask_head\.cls)_convs\.(\d)", r"category_tower.\1"),
    *gn_units(r"(?:bbox_head\.ins|mask_head\.mask)_convs(?:_x)?\.(\d)", r"towers.0.\1"),
    *gn_units(r"(?:bbox_head\.ins|mask_head\.mask)_convs_y\.(\d)", r"towers.1.\1"),
    (r"(?:bbox_head\.d?solo_cate|mask_head\.conv_cls)\.(.+)", r"category.\1"),
    (r"(?:bbox_head\.d?solo_ins|mask_head\.conv_mask)_list(?:_x)?\.(\d)\.(.+)", r"outputs.0.\1.\2"),
    (r"(?:bbox_head\.dsolo_ins|mask_head\.conv_mask)_list_y\.(\d)\.(.+)", r"outputs.1.\1.\2"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return rename_by(_RULES, state, "SOLO")


# presets --------------------------------------------------------------------------------------------------------------


def _file(name: str, end: str) -> Weights:
    return mmdetection_file(f"v2.0/solo/{name}_coco", f"_{end}")


_LIGHT_FILE = _file("decoupled_solo_light_r50_fpn_3x", "20210906_142703-e70e226f")


def _official(
    name: str, ap: float, times: int = 3, layers: int = 50, *, file: Weights | None = None, **knobs: Any
) -> Preset:
    """Weights of mmdetection where it has them, else those of WXinlong/SOLO; the functions are the same."""
    config = SoloConfig(backbone=BackboneConfig(f"resnet{layers}", frozen_stride=4), **knobs)
    recipe = solo_recipe(times, warmup_from=1 / 3)
    return recipe.preset(name, config, f"COCO val2017 mask AP {ap}", weights=file or recipe.weights)


def _light(name: str, ap: float, file: Weights | None = None, **knobs: Any) -> Preset:
    config = SoloConfig(
        backbone=BackboneConfig(frozen_stride=4),
        head="decoupled-light",
        head_convs=4,
        grid=LIGHT_GRID,
        **knobs,
    )
    recipe = solo_recipe(3, warmup_from=1 / 3)
    return recipe.preset(
        name,
        config,
        f"COCO val2017 mask AP {ap}",
        weights=file or recipe.weights,
        input=imagenet_input((512, 852), "shorter", interpolation="cv2"),
        augment=replace(FLIP, short_sides=LIGHT_SHORT_SIDES),
    )


METHOD = Method(
    title="SOLO",
    paper="Wang, Kong, Shen, Jiang, Li: SOLO: Segmenting Objects by Locations. ECCV 2020",
    model=Solo,
    presets=(
        _official("solo-resnet50-1x", 33.1, 1, file=_file("solo_r50_fpn_1x", "20210821_035055-2290a6b8")),
        _official("solo-resnet50-3x", 35.9, file=_file("solo_r50_fpn_3x", "20210901_012353-11d224d7")),
        _official("solo-resnet101-3x", 37.1, layers=101),
        _official(
            "solo-decoupled-resnet50-1x",
            33.9,
            1,
            head="decoupled",
            file=_file("decoupled_solo_r50_fpn_1x", "20210820_233348-6337c589"),
        ),
        _official(
            "solo-decoupled-resnet50-3x",
            36.7,
            head="decoupled",
            file=_file("decoupled_solo_r50_fpn_3x", "20210821_042504-7b3301ec"),
        ),
        _official("solo-decoupled-resnet101-3x", 37.9, layers=101, head="decoupled"),
        _light("solo-decoupled-light-resnet50-512", 32.9, _LIGHT_FILE),
        _light("solo-decoupled-light-dcn-resnet50-512", 35.0, deformable="v1"),
        *small_presets(
            "solo",
            lambda size: SoloConfig(
                backbone=FROZEN_MOBILENET,
                grid=small_grid(size),
                **SMALL_TOWERS,
                head="decoupled-light",
                position_frequencies=6,
            ),
            train=replace(SMALL_TRAIN, lr=3e-4),
        ),
    ),
    rename=rename,
    agreement="WXinlong/SOLO, 15 cases with SOLOv2; mmdetection, 6 cases",
)
