"""Mask2Former of mmdetection and mmsegmentation (Apache-2.0): key map, of old and new names, and presets.

Swin's downsampling reads the four neighbours of a cell, there ordered by channel, row and column, in the original and
in timm by column, row and channel.
"""

import re
from dataclasses import replace

from torch import Tensor

from maskkit.config import BackboneConfig
from maskkit.models.mask2former import Mask2FormerConfig
from maskkit.nn.masked_decoder import MaskedDecoderConfig
from maskkit.zoo import mmsegmentation
from maskkit.zoo.card import Preset
from maskkit.zoo.class_names import CITYSCAPES, COCO, COCO_PANOPTIC
from maskkit.zoo.key_maps import MMDETECTION_KEYS, Rules, rename_by
from maskkit.zoo.recipes import MMDETECTION, Recipe, imagenet_input

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
    coco = replace(coco, input=imagenet_input((800, 1333), "shorter", interpolation="cv2_float"), weights=MMDETECTION)
    semantic = {
        "ade20k": replace(
            ade20k,
            input=imagenet_input((512, 2048), "shorter", interpolation="cv2"),
            weights=mmsegmentation.WEIGHTS,
        ),
        "cityscapes": replace(
            ade20k,
            input=imagenet_input((1024, 2048), "shorter", interpolation="cv2"),
            augment=mmsegmentation.RECIPES["cityscapes"].augment,
            train=replace(ade20k.train, epochs=484.0),  # 90,000 steps of 16
            weights=mmsegmentation.WEIGHTS,
            classes=CITYSCAPES,
        ),
    }

    def config(backbone: str, task: str, classes: int) -> Mask2FormerConfig:
        queries = 200 if backbone == "swin-l" and task == "panoptic" else 100
        return Mask2FormerConfig(
            task=task,  # type: ignore[arg-type]
            num_classes=classes,
            backbone=BackboneConfig(backbones[backbone]),
            query_decoder=MaskedDecoderConfig(queries=queries),
            scored_in="image",
        )

    return (
        *(
            coco.preset(
                f"mask2former-{backbone}-mmdet",
                config(backbone, "instance", len(COCO)),
                f"COCO val2017 mask AP {ap} (mmdetection)",
            )
            for backbone, ap in (("resnet50", 42.9), ("resnet101", 44.0), ("swin-t", 44.7), ("swin-s", 46.1))
        ),
        *(
            coco.preset(
                f"mask2former-{backbone}-panoptic-mmdet",
                config(backbone, "panoptic", len(COCO_PANOPTIC)),
                f"COCO val2017 PQ {pq} (mmdetection)",
                train=replace(coco.train, epochs=100) if backbone == "swin-l" else coco.train,
                classes=COCO_PANOPTIC,
            )
            for backbone, pq in (
                ("resnet50", 52.0),
                ("resnet101", 52.4),
                ("swin-t", 53.4),
                ("swin-s", 54.5),
                ("swin-b", 56.3),
                ("swin-l", 57.6),
            )
        ),
        *(
            semantic[data].preset(
                f"mask2former-{backbone}-{data}-mmseg",
                config(backbone, "semantic", len(semantic[data].classes)),
                f"{mmsegmentation.NAMES[data]} val mIoU {miou} (mmsegmentation)",
            )
            for data, backbone, miou in _SEMANTIC
        ),
    )


_SEMANTIC = (
    ("ade20k", "resnet50", 47.87),
    ("ade20k", "resnet101", 48.60),
    ("ade20k", "swin-t", 48.66),
    ("ade20k", "swin-s", 51.24),
    ("cityscapes", "resnet50", 80.44),
    ("cityscapes", "resnet101", 80.80),
    ("cityscapes", "swin-t", 81.71),
    ("cityscapes", "swin-s", 82.57),
)
