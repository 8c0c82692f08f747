"""Mask2Former: key maps of the official code (MIT; weights CC BY-NC 4.0) and transformers (Apache-2.0), and presets.

Those of mmdetection and mmsegmentation are in `maskkit.zoo.mask2former_openmmlab`.
"""

import re
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from maskkit.config import AugmentConfig, BackboneConfig, TrainConfig
from maskkit.errors import DataError
from maskkit.models.mask2former import Mask2Former, Mask2FormerConfig
from maskkit.nn.masked_decoder import MaskedDecoderConfig
from maskkit.nn.pixel_decoder import PixelDecoderConfig
from maskkit.nn.query_loss import QueryLossConfig
from maskkit.zoo import mask2former_openmmlab
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import ADE20K, COCO, COCO_PANOPTIC
from maskkit.zoo.key_maps import DETECTRON2_KEYS, Rules, rename_by
from maskkit.zoo.recipes import FLIP, MOBILENET, Recipe, imagenet_input, small_presets

# constants, and transformers' norm of Swin's last features, which a backbone does not need
_DROPPED = re.compile(
    r"criterion\.empty_weight|.*\.relative_position_index|model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.\w+"
)

_PIXEL = r"sem_seg_head\.(?:pixel_decoder\.)?"  # old files have no ``pixel_decoder``
_ENCODER = _PIXEL + r"transformer\.encoder\.layers\.(\d+)\."
_QUERY = r"sem_seg_head\.predictor\."
_OFFICIAL: Rules = (
    *((rule.replace(r"bottom_up\.", ""), ours) for rule, ours in DETECTRON2_KEYS if "bottom_up" in rule),
    (r"backbone\.patch_embed\.(.+)", r"backbone.body.patch_embed.\1"),
    (
        r"backbone\.layers\.0\.downsample\.(.+)",
        r"backbone.body.layers_1.downsample.\1",
    ),  # in timm, at the start of the next stage
    (r"backbone\.layers\.1\.downsample\.(.+)", r"backbone.body.layers_2.downsample.\1"),
    (r"backbone\.layers\.2\.downsample\.(.+)", r"backbone.body.layers_3.downsample.\1"),
    (r"backbone\.layers\.(\d)\.(blocks\..+)", r"backbone.body.layers_\1.\2"),
    (r"backbone\.norm(\d)\.(\w+)", r"backbone.norms.\1.\2"),
    (_PIXEL + r"input_proj\.(.+)", r"pixel_decoder.inputs.\1"),
    (_PIXEL + r"transformer\.level_embed", r"pixel_decoder.level"),
    (_ENCODER + r"self_attn\.sampling_offsets\.(\w+)", r"pixel_decoder.layers.\1.attention.offsets.\2"),
    (_ENCODER + r"self_attn\.attention_weights\.(\w+)", r"pixel_decoder.layers.\1.attention.weights.\2"),
    (_ENCODER + r"self_attn\.(value|output)_proj\.(\w+)", r"pixel_decoder.layers.\1.attention.\2.\3"),
    (_ENCODER + r"(norm\d|linear\d)\.(\w+)", r"pixel_decoder.layers.\1.\2.\3"),
    (_PIXEL + r"mask_features\.(\w+)", r"pixel_decoder.mask.\1"),
    (_PIXEL + r"adapter_1\.norm\.(\w+)", r"pixel_decoder.lateral.1.\1"),
    (_PIXEL + r"adapter_1\.(\w+)", r"pixel_decoder.lateral.0.\1"),
    (_PIXEL + r"layer_1\.norm\.(\w+)", r"pixel_decoder.output.1.\1"),
    (_PIXEL + r"layer_1\.(\w+)", r"pixel_decoder.output.0.\1"),
    *(
        rule
        for kind, part, norm in (("cross", "cross_attention", 1), ("self", "self_attention", 2))
        for official in [_QUERY + rf"transformer_{kind}_attention_layers\.(\d+)\."]
        for rule in (
            (official + r"\w+\.in_proj_(\w+)", rf"query_decoder.layers.\1.{part}.in_proj.\2"),
            (official + r"\w+\.out_proj\.(\w+)", rf"query_decoder.layers.\1.{part}.out_proj.\2"),
            (official + r"norm\.(\w+)", rf"query_decoder.layers.\1.norm{norm}.\2"),
        )
    ),
    (_QUERY + r"transformer_ffn_layers\.(\d+)\.(linear\d)\.(\w+)", r"query_decoder.layers.\1.\2.\3"),
    (_QUERY + r"transformer_ffn_layers\.(\d+)\.norm\.(\w+)", r"query_decoder.layers.\1.norm3.\2"),
    (_QUERY + r"decoder_norm\.(\w+)", r"query_decoder.norm.\1"),
    (_QUERY + r"(?:query_feat|static_query)\.(\w+)", r"query_decoder.queries.\1"),
    (_QUERY + r"query_embed\.(\w+)", r"query_decoder.positions.\1"),
    (_QUERY + r"level_embed\.(\w+)", r"query_decoder.level.\1"),
    (_QUERY + r"class_embed\.(\w+)", r"query_decoder.label.\1"),
    *((_QUERY + rf"mask_embed\.layers\.{i}\.(\w+)", rf"query_decoder.embed.{2 * i}.\1") for i in range(3)),
)

_SWIN = r"model\.pixel_level_module\.encoder\.(?:swin\.)?"  # with ``swin`` since version 5
_BLOCK = _SWIN + r"encoder\.layers\.(\d)\.blocks\.(\d+)\."
_IN_BLOCK = (
    (r"layernorm_before\.(\w+)", r"norm1.\3"),
    (r"layernorm_after\.(\w+)", r"norm2.\3"),
    (
        r"attention\.(?:self\.|relative_position_bias\.)relative_position_bias_table",
        r"attn.relative_position_bias_table",
    ),
    (r"attention\.(?:self\.)?qkv\.(\w+)", r"attn.qkv.\3"),
    (r"attention\.(?:o_proj|output\.dense)\.(\w+)", r"attn.proj.\3"),
    (r"(?:mlp\.fc1|intermediate\.dense)\.(\w+)", r"mlp.fc1.\3"),
    (r"(?:mlp\.fc2|output\.dense)\.(\w+)", r"mlp.fc2.\3"),
)
_RESNET = r"model\.pixel_level_module\.encoder\."
_STAGE = _RESNET + r"encoder\.stages\.(\d)\.layers\.(\d+)\."
_LEAF = {"convolution": ("conv", "downsample.0"), "normalization": ("bn", "downsample.1")}
_RESNET_RULES: Rules = (
    (_RESNET + r"embedder\.embedder\.convolution\.(\w+)", r"backbone.body.conv1.\1"),
    (_RESNET + r"embedder\.embedder\.normalization\.(\w+)", r"backbone.body.bn1.\1"),
    *(
        rule
        for stage in range(4)
        for block in [rf"backbone.body.layer{stage + 1}.\1."]
        for theirs in [_STAGE.replace(r"(\d)", str(stage), 1)]
        for kind, (ours, down) in _LEAF.items()
        for rule in (
            (theirs + rf"shortcut\.{kind}\.(\w+)", block + rf"{down}.\2"),
            *((theirs + rf"layer\.{i}\.{kind}\.(\w+)", block + rf"{ours}{i + 1}.\2") for i in range(3)),
        )
    ),
)
"""transformers' own ResNets, with the stride in the 3x3 as in torchvision."""
_DECODER = r"model\.pixel_level_module\.decoder\."
_LAYER = _DECODER + r"encoder\.layers\.(\d+)\."
_MODULE = r"model\.transformer_module\."
_QUERIES = _MODULE + r"decoder\.layers\.(\d+)\."
_TRANSFORMERS: Rules = (
    *_RESNET_RULES,
    (_SWIN + r"embeddings\.patch_embeddings\.projection\.(\w+)", r"backbone.body.patch_embed.proj.\1"),
    (_SWIN + r"embeddings\.norm\.(\w+)", r"backbone.body.patch_embed.norm.\1"),
    *((_BLOCK + theirs, r"backbone.body.layers_\1.blocks.\2." + ours) for theirs, ours in _IN_BLOCK),
    *(
        (_SWIN + rf"encoder\.layers\.{i}\.downsample\.(.+)", rf"backbone.body.layers_{i + 1}.downsample.\1")
        for i in range(3)
    ),
    *((_SWIN + rf"hidden_states_norms\.stage{i + 1}\.(\w+)", rf"backbone.norms.{i}.\1") for i in range(4)),
    (_DECODER + r"level_embed", r"pixel_decoder.level"),
    (_DECODER + r"input_projections\.(.+)", r"pixel_decoder.inputs.\1"),
    (_LAYER + r"self_attn\.sampling_offsets\.(\w+)", r"pixel_decoder.layers.\1.attention.offsets.\2"),
    (_LAYER + r"self_attn\.attention_weights\.(\w+)", r"pixel_decoder.layers.\1.attention.weights.\2"),
    (_LAYER + r"self_attn\.(value|output)_proj\.(\w+)", r"pixel_decoder.layers.\1.attention.\2.\3"),
    (_LAYER + r"self_attn_layer_norm\.(\w+)", r"pixel_decoder.layers.\1.norm1.\2"),
    (_LAYER + r"fc(\d)\.(\w+)", r"pixel_decoder.layers.\1.linear\2.\3"),
    (_LAYER + r"final_layer_norm\.(\w+)", r"pixel_decoder.layers.\1.norm2.\2"),
    (_DECODER + r"mask_projection\.(\w+)", r"pixel_decoder.mask.\1"),
    (_DECODER + r"adapter_1\.(.+)", r"pixel_decoder.lateral.\1"),
    (_DECODER + r"layer_1\.(.+)", r"pixel_decoder.output.\1"),
    (_MODULE + r"queries_features\.(\w+)", r"query_decoder.queries.\1"),
    (_MODULE + r"queries_embedder\.(\w+)", r"query_decoder.positions.\1"),
    (_MODULE + r"level_embed\.(\w+)", r"query_decoder.level.\1"),
    (_QUERIES + r"cross_attn\.in_proj_(\w+)", r"query_decoder.layers.\1.cross_attention.in_proj.\2"),
    (_QUERIES + r"cross_attn\.out_proj\.(\w+)", r"query_decoder.layers.\1.cross_attention.out_proj.\2"),
    (_QUERIES + r"cross_attn_layer_norm\.(\w+)", r"query_decoder.layers.\1.norm1.\2"),
    (_QUERIES + r"self_attn\.qkv\.(\w+)", r"query_decoder.layers.\1.self_attention.in_proj.\2"),
    (_QUERIES + r"self_attn\.out_proj\.(\w+)", r"query_decoder.layers.\1.self_attention.out_proj.\2"),
    (_QUERIES + r"self_attn_layer_norm\.(\w+)", r"query_decoder.layers.\1.norm2.\2"),
    (_QUERIES + r"fc(\d)\.(\w+)", r"query_decoder.layers.\1.linear\2.\3"),
    (_QUERIES + r"final_layer_norm\.(\w+)", r"query_decoder.layers.\1.norm3.\2"),
    (_MODULE + r"decoder\.layernorm\.(\w+)", r"query_decoder.norm.\1"),
    *(
        (_MODULE + rf"decoder\.mask_predictor\.mask_embedder\.{i}\.0\.(\w+)", rf"query_decoder.embed.{2 * i}.\1")
        for i in range(3)
    ),
    (r"class_predictor\.(\w+)", r"query_decoder.label.\1"),
)

_APART = re.compile(r"(.+)\.(q_proj|k_proj|v_proj|query|key|value)\.(weight|bias)")
_PLACE = {"q_proj": 0, "query": 0, "k_proj": 1, "key": 1, "v_proj": 2, "value": 2}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names, old or new, or transformers' names to ours. Raises `DataError` for an unknown name."""
    state = {name: tensor for name, tensor in state.items() if not _DROPPED.fullmatch(name)}
    if mask2former_openmmlab.is_openmmlab(state):
        return mask2former_openmmlab.rename(state)
    if any(name.startswith("model.") for name in state):
        return rename_by(_TRANSFORMERS, _joined(state), "Mask2Former")
    return rename_by(_OFFICIAL, state, "Mask2Former")


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the projections to queries, keys and values concatenated as ``qkv``."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor | None]] = {}
    for name, tensor in state.items():
        if (m := _APART.fullmatch(name)) is None:
            joined[name] = tensor
        else:
            parts.setdefault(f"{m[1]}.qkv.{m[3]}", [None] * 3)[_PLACE[m[2]]] = tensor
    for name, three in parts.items():
        there = [t for t in three if t is not None]
        if len(there) < 3:
            raise DataError(f"{name!r}: this checkpoint lacks one of the query, key and value projections")
        joined[name] = torch.cat(there)
    return joined


# presets --------------------------------------------------------------------------------------------------------------

_WEIGHTS = Weights("github.com/facebookresearch/Mask2Former", "CC-BY-NC-4.0", non_commercial=True)
_FILES = {
    "mask2former-resnet50": "coco/instance/maskformer2_R50_bs16_50ep/model_final_3c8ec9",
    "mask2former-resnet101": "coco/instance/maskformer2_R101_bs16_50ep/model_final_eba159",
    "mask2former-swin-t": "coco/instance/maskformer2_swin_tiny_bs16_50ep/model_final_86143f",
    "mask2former-swin-s": "coco/instance/maskformer2_swin_small_bs16_50ep/model_final_1e7f22",
    "mask2former-swin-b": "coco/instance/maskformer2_swin_base_IN21k_384_bs16_50ep/model_final_83d103",
    "mask2former-swin-l": "coco/instance/maskformer2_swin_large_IN21k_384_bs16_100ep/model_final_e5f453",
    "mask2former-resnet50-panoptic": "coco/panoptic/maskformer2_R50_bs16_50ep/model_final_94dc52",
    "mask2former-resnet101-panoptic": "coco/panoptic/maskformer2_R101_bs16_50ep/model_final_b807bd",
    "mask2former-swin-l-panoptic": "coco/panoptic/maskformer2_swin_large_IN21k_384_bs16_100ep/model_final_f07440",
    "mask2former-resnet50-semantic": "ade20k/semantic/maskformer2_R50_bs16_160k/model_final_500878",
    "mask2former-swin-l-semantic": (
        "ade20k/semantic/maskformer2_swin_large_IN21k_384_bs16_160k_res640/model_final_6b4a3a"
    ),
}
"""Where MODEL_ZOO.md has the files, below the folder of `_weights`."""


def _weights(preset: str) -> Weights:
    return _WEIGHTS.at(f"https://dl.fbaipublicfiles.com/maskformer/mask2former/{_FILES[preset]}.pkl")


_COCO = Recipe(
    replace(imagenet_input((800, 1333), "shorter"), antialias=True),
    replace(FLIP, scale_jitter=(0.1, 2.0), canvas=(1024, 1024)),
    TrainConfig(
        epochs=50,
        batch=16,
        optimizer="adamw",
        lr=1e-4,
        backbone_lr=0.1,
        weight_decay=0.05,
        decay_norm=False,
        decay_bias=True,
        schedule="steps",
        milestones=(327778 / 368750, 355092 / 368750),
        warmup=0,
        clip=0.01,
    ),
    _WEIGHTS,
)
_ADE20K = replace(
    _COCO,
    input=replace(imagenet_input((512, 2048), "shorter"), antialias=True),
    augment=AugmentConfig(
        expand=1.0, iou_crop=False, short_sides=tuple(int(51.2 * n) for n in range(5, 21)), canvas=(512, 512)
    ),
    train=replace(_COCO.train, epochs=126.7, schedule="poly"),  # 160,000 steps of 16
    classes=ADE20K,
)
_BACKBONES = {
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "swin-t": "swin_tiny_patch4_window7_224",
    "swin-s": "swin_small_patch4_window7_224",
    "swin-b": "swin_base_patch4_window12_384",
    "swin-l": "swin_large_patch4_window12_384",
}


def _coco(backbone: str, number: float, *, panoptic: bool = False) -> Preset:
    config = Mask2FormerConfig(
        task="panoptic" if panoptic else "instance",
        num_classes=133 if panoptic else 80,
        backbone=BackboneConfig(_BACKBONES[backbone]),
        scored_in="image",
        query_decoder=MaskedDecoderConfig(queries=200 if backbone == "swin-l" else 100),
    )
    name = f"mask2former-{backbone}{'-panoptic' if panoptic else ''}"
    return _COCO.preset(
        name,
        config,
        f"COCO val2017 {'PQ' if panoptic else 'mask AP'} {number}",
        train=replace(_COCO.train, epochs=100) if backbone == "swin-l" else _COCO.train,
        classes=COCO_PANOPTIC if panoptic else COCO,
        weights=_weights(name),
    )


def _ade(backbone: str, miou: float) -> Preset:
    config = Mask2FormerConfig(
        task="semantic", num_classes=150, backbone=BackboneConfig(_BACKBONES[backbone]), scored_in="image"
    )
    name = f"mask2former-{backbone}-semantic"
    recipe = _ADE20K
    if backbone == "swin-l":  # its file is trained and evaluated at 640
        sides = tuple(64 * n for n in range(5, 21))
        augment = replace(recipe.augment, short_sides=sides, canvas=(640, 640))
        recipe = replace(recipe, input=replace(recipe.input, size=(640, 2560)), augment=augment)
    return recipe.preset(name, config, f"ADE20K val mIoU {miou}", weights=_weights(name))


def _small(task: Literal["instance", "semantic", "panoptic"], classes: int = 80) -> Mask2FormerConfig:
    # start places are for objects: a stuff segment covers the whole image
    queries, frequencies = (100, 6) if task == "instance" else (50, 0)
    return Mask2FormerConfig(
        num_classes=classes,
        backbone=MOBILENET,
        task=task,
        width=128,
        pixel_decoder=PixelDecoderConfig(layers=2, feedforward=512),
        query_decoder=MaskedDecoderConfig(queries, layers=3, feedforward=512, position_frequencies=frequencies),
        query_loss=QueryLossConfig(points=2048),
        detections=queries,
        segment_score=0.5,  # after minutes of training few queries have a probability of 0.8
    )


METHOD = Method(
    title="Mask2Former",
    paper="Cheng, Misra, Schwing, Kirillov, Girdhar: Masked-attention Mask Transformer. CVPR 2022",
    model=Mask2Former,
    presets=(
        _coco("resnet50", 43.7),
        _coco("resnet101", 44.2),
        _coco("swin-t", 45.0),
        _coco("swin-s", 46.3),
        _coco("swin-b", 48.1),
        _coco("swin-l", 50.1),
        _coco("resnet50", 51.9, panoptic=True),
        _coco("resnet101", 52.6, panoptic=True),
        _coco("swin-l", 57.8, panoptic=True),
        _ade("resnet50", 47.2),
        _ade("swin-l", 56.1),
        *mask2former_openmmlab.presets(_COCO, _ADE20K, _BACKBONES),
        *small_presets(
            "mask2former", lambda _: _small("instance"), ours="nuclei mask AP 0.071 at 448 px, 20 min on 1 core"
        ),
        *small_presets(
            "mask2former", lambda _: _small("semantic", 150), sizes=(320,), suffix="-semantic", classes=ADE20K
        ),
        *small_presets(
            "mask2former",
            lambda _: _small("panoptic", 133),
            sizes=(320,),
            suffix="-panoptic",
            classes=COCO_PANOPTIC,
            ours="coco_panoptic, five classes: PQ 0.247, 20 min on 1 core",
        ),
    ),
    rename=rename,
    agreement="facebookresearch/Mask2Former, 7 cases; mmdetection and mmsegmentation, 8; transformers live",
)
