"""SOLOv2: key maps of WXinlong/SOLO, mmdetection and AdelaiDet (detectron2), and presets."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from maskkit.config import BackboneConfig
from maskkit.models.solov2 import Solov2, Solov2Config
from maskkit.nn.grid import GridConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.key_maps import DETECTRON2_KEYS, MMDETECTION_KEYS, Rules, bgr_to_rgb, gn_units, rename_by
from maskkit.zoo.recipes import (
    FLIP,
    FROZEN_MOBILENET,
    LIGHT_GRID,
    LIGHT_SHORT_SIDES,
    SMALL_TOWERS,
    SMALL_TRAIN,
    adelaidet,
    caffe_resnet,
    imagenet_input,
    mmdetection_file,
    on_nanodet,
    small_grid,
    small_presets,
    solo_recipe,
)


def _tower(official: str, ours: str) -> Rules:
    """A tower of AdelaiDet, a flat list: convolution, norm and ReLU of layer i are 3 i, 3 i + 1, 3 i + 2."""
    return tuple(
        (rf"ins_head\.{official}_tower\.{3 * layer + part}\.(.+)", rf"{ours}_tower.{layer}.{part}.\1")
        for layer in range(8)
        for part in (0, 1)
    )


# `bbox_head` and `mask_feat_head` in WXinlong/SOLO, `mask_head` and `mask_head.mask_feature_head` in mmdetection
_FEATURE = r"(?:mask_feat_head|mask_head\.mask_feature_head)"
_SOLO: Rules = (
    *MMDETECTION_KEYS,
    *gn_units(r"(?:bbox_head\.cate|mask_head\.cls)_convs\.(\d)", r"category_tower.\1"),
    *gn_units(r"(?:bbox|mask)_head\.kernel_convs\.(\d)", r"kernel_tower.\1"),
    (r"(?:bbox_head\.solo_cate|mask_head\.conv_cls)\.(.+)", r"category.\1"),
    (r"(?:bbox_head\.solo_kernel|mask_head\.conv_kernel)\.(.+)", r"kernel.\1"),
    *gn_units(rf"{_FEATURE}\.convs_all_levels\.(\d)\.conv(\d)", r"mask_branch.levels.\1.\2"),
    *gn_units(rf"{_FEATURE}\.conv_pred(?:\.0)?", "mask_branch.mix"),
)

_ADELAIDET: Rules = (
    *DETECTRON2_KEYS,
    *_tower("cate", "category"),
    *_tower("kernel", "kernel"),
    (r"ins_head\.cate_pred\.(.+)", r"category.\1"),
    (r"ins_head\.kernel_pred\.(.+)", r"kernel.\1"),
    (r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.([01])\.(.+)", r"mask_branch.levels.\1.\2.\3.\4"),
    (r"mask_head\.conv_pred\.([01])\.(.+)", r"mask_branch.mix.\1.\2"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    if any(name.startswith("backbone.bottom_up.") for name in state):
        return bgr_to_rgb(rename_by(_ADELAIDET, state, "SOLOv2"))
    return rename_by(_SOLO, state, "SOLOv2")


# presets --------------------------------------------------------------------------------------------------------------

_LIGHT_GRIDS = {
    448: GridConfig(scale_ranges=((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))),
    512: LIGHT_GRID,
}


def _file(name: str, end: str) -> Weights:
    return mmdetection_file(f"v2.0/solov2/solov2_{name}_coco", f"_{end}")


def _official(name: str, ap: float, file: Weights, times: int = 3, network: str = "resnet50", **knobs: Any) -> Preset:
    """Weights of mmdetection; the function of WXinlong/SOLO's is the same."""
    config = Solov2Config(backbone=BackboneConfig(network, frozen_stride=4), **knobs)
    return solo_recipe(times, warmup_from=0.01).preset(name, config, f"COCO val2017 mask AP {ap}", weights=file)


def _light(
    name: str, ap: float, size: tuple[int, int], layers: int = 50, *, file: Weights | None = None, **knobs: Any
) -> Preset:
    config = Solov2Config(
        backbone=BackboneConfig(f"resnet{layers}", frozen_stride=4),
        grid=_LIGHT_GRIDS[size[0]],
        head_width=256,
        kernel=128,
        **knobs,
    )
    recipe = solo_recipe(3, warmup_from=0.01)
    return recipe.preset(
        name,
        config,
        f"COCO val2017 mask AP {ap}",
        weights=file or recipe.weights,
        input=imagenet_input(size, "shorter", interpolation="cv2"),
        augment=replace(FLIP, short_sides=LIGHT_SHORT_SIDES),
    )


def _caffe(layers: int, ap: float) -> Preset:
    """AdelaiDet's models, on detectron2's ResNets."""
    recipe = adelaidet(3)
    train = replace(recipe.train, epochs=36, warmup_from=0.01)
    config = Solov2Config(backbone=caffe_resnet(layers))
    return recipe.preset(f"solov2-caffe-resnet{layers}-3x", config, f"COCO val2017 mask AP {ap}", train=train)


_SMALL = small_presets(
    "solov2",
    lambda size: Solov2Config(
        backbone=FROZEN_MOBILENET,
        grid=small_grid(size),
        **SMALL_TOWERS,
        position_frequencies=6,
        feature_width=64,
        kernel=64,
    ),
    train=replace(SMALL_TRAIN, lr=3e-4),
    ours="nuclei mask AP 0.434 at 448 px, 20 min on 1 core",
)

METHOD = Method(
    title="SOLOv2",
    paper="Wang, Zhang, Kong, Li, Shen: SOLOv2: Dynamic and Fast Instance Segmentation. NeurIPS 2020",
    model=Solov2,
    presets=(
        _official("solov2-resnet50-1x", 34.8, _file("r50_fpn_1x", "20220512_125858-a357fa23"), 1),
        _official("solov2-resnet50-3x", 37.5, _file("r50_fpn_3x", "20220512_125856-fed092d4")),
        _official("solov2-resnet101-3x", 39.1, _file("r101_fpn_3x", "20220511_095119-c559a076"), network="resnet101"),
        *(
            _official(
                f"solov2-dcn-{network}-3x",
                ap,
                _file(file, end),
                network=timm_name,
                deformable="v2",
                deformable_feature=True,
            )
            for network, timm_name, ap, file, end in (
                ("resnet101", "resnet101", 41.2, "r101_dcn_fpn_3x", "20220513_214734-16c966cb"),
                ("resnext101", "resnext101_64x4d", 42.4, "x101_dcn_fpn_3x", "20220513_214337-aef41095"),
            )
        ),
        *(
            _light(
                f"solov2-light-resnet{layers}-448",
                ap,
                (448, 768),
                layers,
                file=_file(f"light_r{layers}_fpn_3x", end),
                head_convs=2,
            )
            for layers, ap, end in (
                (18, 29.7, "20220511_083717-75fa355b"),
                (34, 31.9, "20220511_091839-e51659d3"),
                (50, 33.7, "20220512_165256-c93a6074"),
            )
        ),
        _light("solov2-light-dcn-resnet50-512", 36.4, (512, 852), head_convs=3, deformable="v1"),
        _caffe(50, 37.6),
        _caffe(101, 39.0),
        *_SMALL,
        on_nanodet(_SMALL[0]),
    ),
    rename=rename,
    agreement="WXinlong/SOLO, 15 cases with SOLO; AdelaiDet, 6 cases; mmdetection, 5 cases",
)
