"""EVA: key maps of baaivision/EVA (MIT: detectors, pre-training, EVA-CLIP), and presets.

Images are RGB, so no channels are reversed. The position embedding of detectors has an entry for a class token that is
never used. Classifiers have timm's names already.
"""

import re
from dataclasses import replace

from torch import Tensor

from maskkit.config import BackboneConfig, PlainVit, TrainConfig, change
from maskkit.models.eva import Eva, EvaConfig
from maskkit.nn.roi import RegionConfig
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.faster_rcnn import small_two_stage
from maskkit.zoo.key_maps import Rules, rename_by
from maskkit.zoo.recipes import FLIP, SMALL_AUGMENT, SMALL_TRAIN, Recipe, imagenet_input

_LEVELS = {
    2: {"0": 0, "1": 1, "3": 3, "4": 4, "4.norm": 5, "5": 6, "5.norm": 7},
    3: {"0": 0, "1": 1, "1.norm": 2, "2": 3, "2.norm": 4},
    4: {"0": 0, "0.norm": 1, "1": 2, "1.norm": 3},
    5: {"1": 1, "1.norm": 2, "2": 3, "2.norm": 4},
}
"""The layers of each pyramid level, from their names to ours."""

_DETECTOR: Rules = (
    (r"backbone\.net\.blocks\.(\d+)\.attn\.rel_pos_h", r"backbone.body.relative.\1.rows"),
    (r"backbone\.net\.blocks\.(\d+)\.attn\.rel_pos_w", r"backbone.body.relative.\1.columns"),
    (r"backbone\.net\.(.+)", r"backbone.body.net.\1"),
    *(
        (
            rf"backbone\.simfp_{level}\.{re.escape(theirs)}\.(weight|bias)",
            rf"backbone.body.levels.{level - 2}.{ours}.\1",
        )
        for level, layers in _LEVELS.items()
        for theirs, ours in layers.items()
    ),
    *((rf"proposal_generator\.rpn_head\.conv\.conv{i}\.(\w+)", rf"rpn.conv.{2 * i}.\1") for i in (0, 1)),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.deltas.\1"),
    *(
        rule
        for i in range(4)
        for rule in (
            (rf"roi_heads\.box_head\.conv{i + 1}\.norm\.(\w+)", rf"box_head.convs.{i}.1.\1"),
            (rf"roi_heads\.box_head\.conv{i + 1}\.(\w+)", rf"box_head.convs.{i}.0.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.norm\.(\w+)", rf"mask_head.convs.{i}.1.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.(\w+)", rf"mask_head.convs.{i}.0.\1"),
        )
    ),
    (r"roi_heads\.box_head\.fc1\.(\w+)", r"box_head.fc.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.label.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.deltas.\1"),
    (r"roi_heads\.mask_head\.(deconv|predictor)\.(\w+)", r"mask_head.\1.\2"),
)
_STAGE = re.compile(r"(roi_heads\.box_(?:head|predictor))\.(\d)\.(.+)")


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names of a (Cascade) Mask R-CNN to ours. Raises `DataError` for an unknown name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stage = _STAGE.fullmatch(name)
        plain = f"{stage[1]}.{stage[3]}" if stage else name
        (ours,) = rename_by(_DETECTOR, {plain: tensor}, "EVA")
        if stage and stage[2] != "0":
            ours = ours.replace("box_head", f"later_heads.{int(stage[2]) - 1}", 1)
        renamed[ours] = tensor[:, 1:] if ours.endswith("net.pos_embed") else tensor
    return renamed


def rename_student(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names of a pre-training checkpoint to those of `maskkit.nn.mim.MaskedStudent`."""
    return {
        n if n == "mask_token" else n.removeprefix("lm_") if n.startswith("lm_head.") else f"net.{n}": t
        for n, t in state.items()
    }


def rename_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From a classifier, or the vision tower of EVA-CLIP, to timm's names; timm computes index tables itself."""
    tower = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    return {n: t for n, t in (tower or state).items() if not n.endswith("relative_position_index")}


# presets --------------------------------------------------------------------------------------------------------------


def _small(size: int) -> Preset:
    """A model for two CPU cores."""
    knobs = small_two_stage(size)
    vit = PlainVit(window=8, relative=size, width=knobs["width"])
    backbone = BackboneConfig("eva_tiny_patch16_224", vit=vit)
    recipe = Recipe(imagenet_input((size, size), "stretch"), SMALL_AUGMENT, SMALL_TRAIN, small=True)
    ours = "nuclei mask AP 0.221, 15 min on 1 core, after pre-training on 467 images"
    model = change(EvaConfig(head_convs=2), **knobs | {"backbone": backbone})
    return recipe.preset(f"eva-tiny-{size}", model, ours=ours if size == 320 else None)


METHOD = Method(
    title="EVA",
    paper="Fang et al.: EVA: Exploring the Limits of Masked Visual Representation Learning at Scale. CVPR 2023",
    model=Eva,
    presets=(
        Recipe(
            # EVA-01/det: cascade_mask_rcnn_vitdet_eva_1536.py is what its README evaluates these weights with, trained
            # at 1280: the longer side 1536 (Pillow's resize), padded to a square, interp_type "beit"
            replace(imagenet_input((1536, 1536), "pad"), antialias=True),
            replace(FLIP, scale_jitter=(0.1, 2.0), canvas=(1280, 1280)),
            TrainConfig(
                steps=35_000,
                batch=64,
                optimizer="adamw",
                lr=2.5e-5,
                weight_decay=0.1,
                decay_norm=False,
                schedule="steps",
                milestones=(),
                warmup=1000,
                precision="bf16",
            ),
            Weights("github.com/baaivision/EVA", "MIT").at(
                "https://huggingface.co/BAAI/EVA/resolve/main/eva_coco_det.pth"
            ),
        ).preset(
            "eva-giant-1280",
            EvaConfig(
                backbone=BackboneConfig(
                    "eva_giant_patch14_224",
                    # there: window_block_indexes; 224 pixels of the ViT's position embedding are 14 patches of 16
                    vit=PlainVit(
                        global_blocks=tuple(range(3, 40, 4)), grid=14, relative=1280, relative_resize="geometric"
                    ),
                ),
                regions=RegionConfig(min_score=0.0, nms_threshold=0.6),
            ),
            "COCO val mask AP 53.9, box AP 64.2",
        ),
        _small(320),
        _small(256),
    ),
    rename=rename,
    agreement="baaivision/EVA, 5 cases",
)
