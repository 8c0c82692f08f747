"""baaivision/EVA (MIT): names of the checkpoints of its detectors, of its pre-training and of EVA-CLIP.

Images are RGB, so nothing is flipped. Detectors keep a place for the class token in their position embedding and
never use it. Classifiers have timm's names already.
"""

import re

from torch import Tensor

from maskkit.zoo.resnet import Rules, rename_by

_LEVELS = {
    2: {"0": 0, "1": 1, "3": 3, "4": 4, "4.norm": 5, "5": 6, "5.norm": 7},
    3: {"0": 0, "1": 1, "1.norm": 2, "2": 3, "2.norm": 4},
    4: {"0": 0, "0.norm": 1, "1": 2, "1.norm": 3},
    5: {"1": 1, "1.norm": 2, "2": 3, "2.norm": 4},
}
"""The layers of each level of the pyramid, theirs to ours."""

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
    """Names of a detector, Mask R-CNN or Cascade Mask R-CNN, to ours; `DataError` for a name that neither has."""
    renamed = {}
    for name, tensor in state.items():
        stage = _STAGE.fullmatch(name)
        plain = f"{stage[1]}.{stage[3]}" if stage else name
        (ours,) = rename_by(_DETECTOR, {plain: tensor}, "EVA")
        if stage and stage[2] != "0":
            ours = ours.replace("box_head", f"later_heads.{int(stage[2]) - 1}", 1)
        renamed[ours] = tensor[:, 1:] if ours.endswith("net.pos_embed") else tensor
    return renamed


def rename_student(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a checkpoint of the pre-training to those of `maskkit.nn.mim.MaskedStudent`."""
    return {
        n if n == "mask_token" else n.removeprefix("lm_") if n.startswith("lm_head.") else f"net.{n}": t
        for n, t in state.items()
    }


def rename_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier, or the vision tower of EVA-CLIP, for timm's network; tables of indices timm makes itself."""
    tower = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    return {n: t for n, t in (tower or state).items() if not n.endswith("relative_position_index")}
