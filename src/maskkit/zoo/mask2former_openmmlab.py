"""Mask2Former of mmdetection and mmsegmentation (Apache-2.0): key map, of old and new names, and presets.

Swin's downsampling reads the four neighbours of a cell, there ordered by channel, row and column, in the original and
in timm by column, row and channel.
"""

import re
from dataclasses import replace
from typing import Literal

from torch import Tensor

from maskkit.config import BackboneConfig
from maskkit.models.mask2former import Mask2FormerConfig
from maskkit.nn.masked_decoder import MaskedDecoderConfig
from maskkit.zoo import mmsegmentation
from maskkit.zoo.card import Preset, Weights
from maskkit.zoo.class_names import CITYSCAPES, COCO, COCO_PANOPTIC
from maskkit.zoo.key_maps import MMDETECTION_KEYS, Rules, rename_by
from maskkit.zoo.recipes import Recipe, imagenet_input, mmdetection_file

_BLOCK = r"backbone\.stages\.(\d)\.blocks\.(\d+)\."
_PIXEL = r"pixel_decoder\."
_ENCODER = _PIXEL + r"encoder\.layers\.(\d+)\."
_QUERY = r"transformer_decoder\.layers\.(\d+)\."
_CELLS = r"(?:self_attn|attentions\.0)\."
_CROSS, _SELF = r"(?:cross_attn|attentions\.0)\.attn\.", r"(?:self_attn|attentions\.1)\.attn\."
_FEED = r"ffns?(?:\.0)?\.layers\."  # 2.x: ``ffns.0``
_RULES: Rules = (
    *(rule for rule in MMDETECTION_KEYS if rule[0].startswith("backbone")),
    (r"backbone\.patch_embed\.projection\.(\w+)", r"backbone.body.patch_embed.proj.\1"),
    (r"backbone\.patch_embed\.norm\.(\w+)", r"backbone.body.patch_embed.norm.\1"),
    (_BLOCK + r"attn\.w_msa\.(.+)", r"backbone.body.layers_\1.blocks.\2.attn.\3"),
    (_BLOCK + r"(norm\d\.\w+)", r"backbone.body.layers_\1.blocks.\2.\3"),
    (_BLOCK + r"ffn\.layers\.0\.0\.(\w+)", r"backbone.body.layers_\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"ffn\.layers\.1\.(\w+)", r"backbone.body.layers_\1.blocks.\2.mlp.fc2.\3"),
    *(
        (rf"backbone\.stages\.{i}\.downsample\.(.+)", rf"backbone.body.layers_{i + 1}.downsample.\1") for i in range(3)
    ),  # in timm, at the start of the next stage
    (r"backbone\.norm(\d)\.(\w+)", r"backbone.norms.\1.\2"),
    (_PIXEL + r"input_convs\.(\d)\.conv\.(\w+)", r"pixel_decoder.inputs.\1.0.\2"),
    (_PIXEL + r"input_convs\.(\d)\.gn\.(\w+)", r"pixel_decoder.inputs.\1.1.\2"),
    (_PIXEL + r"(lateral|output)_convs\.0\.conv\.(\w+)", r"pixel_decoder.\1.0.\2"),
    (_PIXEL + r"(lateral|output)_convs\.0\.gn\.(\w+)", r"pixel_decoder.\1.1.\2"),
    (_PIXEL + r"mask_feature\.(\w+)", r"pixel_decoder.mask.\1"),
    (_PIXEL + r"level_encoding\.weight", r"pixel_decoder.level"),
    (_ENCODER + _CELLS + r"sampling_offsets\.(\w+)", r"pixel_decoder.layers.\1.attention.offsets.\2"),
    (_ENCODER + _CELLS + r"attention_weights\.(\w+)", r"pixel_decoder.layers.\1.attention.weights.\2"),
    (_ENCODER + _CELLS + r"(value|output)_proj\.(\w+)", r"pixel_decoder.layers.\1.attention.\2.\3"),
    (_ENCODER + _FEED + r"0\.0\.(\w+)", r"pixel_decoder.layers.\1.linear1.\2"),
    (_ENCODER + _FEED + r"1\.(\w+)", r"pixel_decoder.layers.\1.linear2.\2"),
    *((_ENCODER + rf"norms\.{i}\.(\w+)", rf"pixel_decoder.layers.\1.norm{i + 1}.\2") for i in range(2)),
    (_QUERY + _CROSS + r"in_proj_(\w+)", r"query_decoder.layers.\1.cross_attention.in_proj.\2"),
    (_QUERY + _CROSS + r"out_proj\.(\w+)", r"query_decoder.layers.\1.cross_attention.out_proj.\2"),
    (_QUERY + _SELF + r"in_proj_(\w+)", r"query_decoder.layers.\1.self_attention.in_proj.\2"),
    (_QUERY + _SELF + r"out_proj\.(\w+)", r"query_decoder.layers.\1.self_attention.out_proj.\2"),
    (_QUERY + _FEED + r"0\.0\.(\w+)", r"query_decoder.layers.\1.linear1.\2"),
    (_QUERY + _FEED + r"1\.(\w+)", r"query_decoder.layers.\1.linear2.\2"),
    *((_QUERY + rf"norms\.{i}\.(\w+)", rf"query_decoder.layers.\1.norm{i + 1}.\2") for i in range(3)),
    (r"transformer_decoder\.post_norm\.(\w+)", r"query_decoder.norm.\1"),
    (r"query_feat\.(\w+)", r"query_decoder.queries.\1"),
    (r"query_embed\.(\w+)", r"query_decoder.positions.\1"),
    (r"level_embed\.(\w+)", r"query_decoder.level.\1"),
    (r"cls_embed\.(\w+)", r"query_decoder.label.\1"),
    (r"mask_embed\.(\d)\.(\w+)", r"query_decoder.embed.\1.\2"),
)
_MERGING = re.compile(r"backbone\.body\.layers_\d\.downsample\.(norm\.\w+|reduction\.weight)")


def is_openmmlab(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the names of mmdetection or mmsegmentation."""
    return any(name.startswith(("panoptic_head.", "decode_head.")) for name in state)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From mmdetection's or mmsegmentation's names to ours. Raises `DataError` for an unknown name."""
    short = {re.sub(r"^(panoptic|decode)_head\.", "", name): tensor for name, tensor in state.items()}
    renamed = rename_by(_RULES, short, "Mask2Former")
    return {n: _by_neighbour(t) if _MERGING.fullmatch(n) else t for n, t in renamed.items()}


def _by_neighbour(tensor: Tensor) -> Tensor:
    """A tensor whose last axis (4 C) is ordered by channel, row and column, ordered by column, row and channel."""
    return tensor.reshape(*tensor.shape[:-1], -1, 2, 2).transpose(-3, -1).reshape(tensor.shape)


# presets --------------------------------------------------------------------------------------------------------------


def presets(coco: Recipe, ade20k: Recipe, backbones: dict[str, str]) -> tuple[Preset, ...]:
    """The presets; the recipes are those of the official code, which these zoos follow in training."""
    coco = replace(coco, input=imagenet_input((800, 1333), "shorter", interpolation="cv2_float"))
    semantic = {
        "ade20k": replace(ade20k, input=imagenet_input((512, 2048), "shorter", interpolation="cv2")),
        "cityscapes": replace(
            ade20k,
            input=imagenet_input((1024, 2048), "shorter", interpolation="cv2"),
            augment=mmsegmentation.RECIPES["cityscapes"].augment,
            train=replace(ade20k.train, epochs=484.0),  # 90,000 steps of 16
            classes=CITYSCAPES,
        ),
    }

    def config(backbone: str, task: Literal["instance", "semantic", "panoptic"], classes: int) -> Mask2FormerConfig:
        queries = 200 if backbone == "swin-l" and task == "panoptic" else 100
        return Mask2FormerConfig(
            task=task,
            num_classes=classes,
            backbone=BackboneConfig(backbones[backbone]),
            query_decoder=MaskedDecoderConfig(queries=queries),
            scored_in="image",
        )

    made: list[Preset] = []
    for backbone, ap, name, end in _INSTANCE:
        model, weights = config(backbone, "instance", len(COCO)), _mmdetection(name, end)
        paper = f"COCO val2017 mask AP {ap} (mmdetection)"
        made.append(coco.preset(f"mask2former-{backbone}-mmdet", model, paper, weights=weights))
    for backbone, pq, name, end in _PANOPTIC:
        model = config(backbone, "panoptic", len(COCO_PANOPTIC))
        recipe = replace(coco, train=replace(coco.train, epochs=100)) if backbone == "swin-l" else coco
        recipe = replace(recipe, classes=COCO_PANOPTIC, weights=_mmdetection(name, end))
        paper = f"COCO val2017 PQ {pq} (mmdetection)"
        made.append(recipe.preset(f"mask2former-{backbone}-panoptic-mmdet", model, paper))
    for data, backbone, miou, name, end in _SEMANTIC:
        recipe = semantic[data]
        if name.endswith("640x640"):
            augment = replace(recipe.augment, short_sides=tuple(64 * n for n in range(5, 21)), canvas=(640, 640))
            recipe = replace(recipe, input=replace(recipe.input, size=(640, 2560)), augment=augment)
        model = config(backbone, "semantic", len(recipe.classes))
        weights = mmsegmentation.file("mask2former", f"mask2former_{name}", end)
        paper = f"{mmsegmentation.NAMES[data]} val mIoU {miou} (mmsegmentation)"
        made.append(recipe.preset(f"mask2former-{backbone}-{data}-mmseg", model, paper, weights=weights))
    return tuple(made)


def _mmdetection(name: str, end: str) -> Weights:
    return mmdetection_file(f"v3.0/mask2former/mask2former_{name}", f"_{end}")


_INSTANCE = (
    ("resnet50", 42.9, "r50_8xb2-lsj-50e_coco", "20220506_191028-41b088b6"),
    ("resnet101", 44.0, "r101_8xb2-lsj-50e_coco", "20220426_100250-ecf181e2"),
    ("swin-t", 44.7, "swin-t-p4-w7-224_8xb2-lsj-50e_coco", "20220508_091649-01b0f990"),
    ("swin-s", 46.1, "swin-s-p4-w7-224_8xb2-lsj-50e_coco", "20220504_001756-c9d0c4f2"),
)
"""Backbone, result, the name of the published configuration, and the end of the file's name."""
_PANOPTIC = (
    ("resnet50", 52.0, "r50_8xb2-lsj-50e_coco-panoptic", "20230118_125535-54df384a"),
    ("resnet101", 52.4, "r101_8xb2-lsj-50e_coco-panoptic", "20220329_225104-c74d4d71"),
    ("swin-t", 53.4, "swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic", "20220326_224553-3ec9e0ae"),
    ("swin-s", 54.5, "swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic", "20220329_225200-4a16ded7"),
    ("swin-b", 56.3, "swin-b-p4-w12-384-in21k_8xb2-lsj-50e_coco-panoptic", "20220329_230021-05ec7315"),
    ("swin-l", 57.6, "swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic", "20220407_104949-82f8d28d"),
)
_LARGE = "in22k-384x384-pre_8xb2"
_SEMANTIC = (
    ("ade20k", "resnet50", 47.87, "r50_8xb2-160k_ade20k-512x512", "20221204_000055-2d1f55f1"),
    ("ade20k", "resnet101", 48.60, "r101_8xb2-160k_ade20k-512x512", "20221203_233905-b7135890"),
    ("ade20k", "swin-t", 48.66, "swin-t_8xb2-160k_ade20k-512x512", "20221203_234230-7d64e5dd"),
    ("ade20k", "swin-s", 51.24, "swin-s_8xb2-160k_ade20k-512x512", "20221204_143905-e715144e"),
    ("ade20k", "swin-b", 53.90, f"swin-b-{_LARGE}-160k_ade20k-640x640", "20221203_235230-7ec0f569"),
    ("ade20k", "swin-l", 56.01, f"swin-l-{_LARGE}-160k_ade20k-640x640", "20221203_235933-7120c214"),
    ("cityscapes", "resnet50", 80.44, "r50_8xb2-90k_cityscapes-512x1024", "20221202_140802-ffd9d750"),
    ("cityscapes", "resnet101", 80.80, "r101_8xb2-90k_cityscapes-512x1024", "20221130_031628-43e68666"),
    ("cityscapes", "swin-t", 81.71, "swin-t_8xb2-90k_cityscapes-512x1024", "20221127_144501-36c59341"),
    ("cityscapes", "swin-s", 82.57, "swin-s_8xb2-90k_cityscapes-512x1024", "20221127_143802-9ab177f6"),
    ("cityscapes", "swin-b", 83.52, f"swin-b-{_LARGE}-90k_cityscapes-512x1024", "20221203_045030-9a86a225"),
    ("cityscapes", "swin-l", 83.65, f"swin-l-{_LARGE}-90k_cityscapes-512x1024", "20221202_141901-28ad20f1"),
)
