"""Key maps that several methods share: backbones, pyramids and heads of mmdetection, detectron2, AdelaiDet and
torchvision."""

import re
from collections.abc import Sequence

from torch import Tensor

from maskkit.errors import DataError

Rules = Sequence[tuple[str, str]]
"""Pairs of a pattern for the whole official name and the template of ours."""

MMDETECTION_KEYS: Rules = (
    (r"backbone\.(conv1|bn1)\.(.+)", r"backbone.body.\1.\2"),
    # deformable convolution: `conv2_offset` beside the convolution in old checkpoints, `conv2.conv_offset` in it later
    (r"backbone\.(layer\d\.\d+\.conv2)(?:_offset|\.conv_offset)\.(.+)", r"backbone.body.\1.offset_mask.\2"),
    (r"backbone\.(layer\d\.\d+\..+)", r"backbone.body.\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"fpn.lateral.\1.\2"),
    (r"neck\.fpn_convs\.([0-3])\.conv\.(.+)", r"fpn.output.\1.\2"),
)
"""A pyramid from C2 on, without extra convolutions. The names of mmdetection 1, 2 and 3 are the same."""

MMDETECTION_TWO_STAGE_KEYS: Rules = (
    *MMDETECTION_KEYS,
    (r"neck\.downsample_convs\.(\d)\.conv\.(.+)", r"fpn.down.\1.\2"),
    (r"neck\.pafpn_convs\.(\d)\.conv\.(.+)", r"fpn.smooth.\1.\2"),
    (r"rpn_head\.rpn_conv\.(.+)", r"rpn.conv.\1"),
    (r"rpn_head\.rpn_cls\.(.+)", r"rpn.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(.+)", r"rpn.deltas.\1"),
    *((rf"roi_head\.bbox_head\.shared_fcs\.{i}\.(.+)", rf"box_head.fc{i + 1}.\1") for i in range(2)),
    (r"roi_head\.bbox_head\.fc_cls\.(.+)", r"box_head.label.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(.+)", r"box_head.deltas.\1"),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(.+)", r"mask_head.convs.\1.\2"),
    (r"roi_head\.mask_head\.upsample\.(.+)", r"mask_head.deconv.\1"),
    (r"roi_head\.mask_head\.conv_logits\.(.+)", r"mask_head.predictor.\1"),
)
"""Faster and Mask R-CNN of mmdetection, also with its PAFPN. Of the caffe style images are BGR: see `Weights.bgr`."""

MMDETECTION_C3_KEYS: Rules = (
    (r"neck\.fpn_convs\.3\.conv\.(.+)", r"fpn.extra.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.+)", r"fpn.extra.1.\1"),
    *MMDETECTION_KEYS,
)
"""A pyramid from C3 on, with P6 and P7."""

MMDETECTION_FCOS_KEYS: Rules = (
    *MMDETECTION_C3_KEYS,
    *(
        (
            rf"bbox_head\.{official}_convs\.{layer}\.conv\.conv_offset\.(.+)",
            rf"head.{ours}_tower.{3 * layer}.offset_mask.\1",
        )
        for official, ours in (("cls", "class"), ("reg", "box"))
        for layer in range(8)
    ),
    *(
        (rf"bbox_head\.{official}_convs\.{layer}\.{name}\.(.+)", rf"head.{ours}_tower.{3 * layer + part}.\1")
        for official, ours in (("cls", "class"), ("reg", "box"))
        for layer in range(8)
        for part, name in enumerate(("conv", "gn"))
    ),
    (r"bbox_head\.(?:conv|fcos)_cls\.(.+)", r"head.logits.\1"),
    (r"bbox_head\.(?:conv|fcos)_reg\.(.+)", r"head.sides.\1"),
    (r"bbox_head\.(?:conv|fcos)_centerness\.(.+)", r"head.quality.\1"),
    (r"bbox_head\.scales\.(\d)\.scale", r"head.scales.\1"),
)
"""mmdetection: a pyramid from C3 on with P6 and P7, and the detector's head, ``fcos_*`` in version 1. See `as_rows`."""

DETECTRON2_KEYS: Rules = (
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
    (r"backbone\.bottom_up\.stem\.conv1\.(.+)", r"backbone.body.conv1.\1"),
    *(
        rule
        for stage in range(2, 6)
        for official, ours in [(rf"backbone\.bottom_up\.res{stage}\.(\d+)\.", rf"backbone.body.layer{stage - 1}.\1.")]
        for rule in (
            (official + r"conv(\d)\.norm\.(.+)", ours + r"bn\2.\3"),
            (official + r"shortcut\.norm\.(.+)", ours + r"downsample.1.\2"),
            (official + r"shortcut\.(.+)", ours + r"downsample.0.\2"),
            (official + r"(conv\d\..+)", ours + r"\2"),
        )
    ),
    *(
        (rf"backbone\.fpn_{kind}{stage}\.(.+)", rf"fpn.{kind}.{stage - 2}.\1")
        for kind in ("lateral", "output")
        for stage in range(2, 6)
    ),
)
"""A pyramid from C2 on, without extra convolutions. Images are BGR: see `bgr_to_rgb`."""


ADELAIDET_FCOS_KEYS: Rules = (
    *(
        (rf"backbone\.fpn_{kind}{stage}\.(.+)", rf"fpn.{kind}.{stage - 3}.\1")
        for kind in ("lateral", "output")
        for stage in (3, 4, 5)
    ),
    (r"backbone\.top_block\.p6\.(.+)", r"fpn.extra.0.\1"),
    (r"backbone\.top_block\.p7\.(.+)", r"fpn.extra.1.\1"),
    *DETECTRON2_KEYS,
    (r"proposal_generator\.fcos_head\.cls_tower\.(.+)", r"head.class_tower.\1"),
    (r"proposal_generator\.fcos_head\.bbox_tower\.(.+)", r"head.box_tower.\1"),
    (r"proposal_generator\.fcos_head\.cls_logits\.(.+)", r"head.logits.\1"),
    (r"proposal_generator\.fcos_head\.bbox_pred\.(.+)", r"head.sides.\1"),
    (r"proposal_generator\.fcos_head\.ctrness\.(.+)", r"head.quality.\1"),
    (r"proposal_generator\.fcos_head\.scales\.(\d)\.scale", r"head.scales.\1"),
)
"""AdelaiDet: a pyramid from C3 on with P6 and P7, and the detector's head. Images are BGR."""


TORCHVISION_PYRAMID_KEYS: Rules = (
    (r"(backbone\.body\..+)", r"\1"),
    # optional groups: newer versions put convolutions into blocks
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(\w+)", r"fpn.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(\w+)", r"fpn.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.p6\.(\w+)", r"fpn.extra.0.\1"),
    (r"backbone\.fpn\.extra_blocks\.p7\.(\w+)", r"fpn.extra.1.\1"),
)
"""torchvision: ResNets and pyramids."""


def gn_units(official: str, ours: str) -> Rules:
    """mmdetection: convolutions, deformable or not, each with its group norm; ``ours`` ends in the unit of both. The
    patterns may have groups."""
    return (
        (rf"{official}\.conv\.conv_offset\.(?P<rest>.+)", rf"{ours}.0.offset_mask.\g<rest>"),
        (rf"{official}\.conv\.(?P<rest>.+)", rf"{ours}.0.\g<rest>"),
        (rf"{official}\.gn\.(?P<rest>.+)", rf"{ours}.1.\g<rest>"),
    )


def mobilenet_v3(prefix: str) -> Rules:
    """torchvision's MobileNetV3 Large, whose blocks are counted through behind ``prefix``, a pattern."""
    body = "backbone.body."
    rules = [
        (rf"{prefix}0\.0\.(\w+)", rf"{body}conv_stem.\1"),
        (rf"{prefix}0\.1\.(\w+)", rf"{body}bn1.\1"),
        (rf"{prefix}16\.0\.(\w+)", rf"{body}blocks.6.0.conv.\1"),
        (rf"{prefix}16\.1\.(\w+)", rf"{body}blocks.6.0.bn1.\1"),
    ]
    places = [(stage, block) for stage, blocks in enumerate((1, 2, 3, 4, 2, 3)) for block in range(blocks)]
    for number, (stage, block) in enumerate(places, 1):
        parts = ["conv_dw", "conv_pw"] if number == 1 else ["conv_pw", "conv_dw", "conv_pwl"]
        names = [((f"{i}.0", name), (f"{i}.1", f"bn{i + 1}")) for i, name in enumerate(parts)]
        if stage in (2, 4, 5):  # squeeze and excitation stands in front of the last convolution
            names[2] = (("3.0", "conv_pwl"), ("3.1", "bn3"))
            names.append((("2.fc1", "se.conv_reduce"), ("2.fc2", "se.conv_expand")))
        rules += [
            (rf"{prefix}{number}\.block\.{re.escape(theirs)}\.(\w+)", rf"{body}blocks.{stage}.{block}.{ours}.\1")
            for pair in names
            for theirs, ours in pair
        ]
    return rules


def rename_by(rules: Rules, state: dict[str, Tensor], method: str) -> dict[str, Tensor]:
    """The state with each name rewritten by the first matching rule. Raises `DataError` for a name without a rule."""
    return {_name(rules, name, method): tensor for name, tensor in state.items()}


def bgr_to_rgb(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A converted state whose backbone was trained on BGR, for RGB: the stem's input channels are reversed."""
    stem = "backbone.body.conv1.weight"
    return {**state, stem: state[stem].flip(1)} if stem in state else state


def is_mmdetection(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the names of a detector of mmdetection."""
    return any(name.startswith(("rpn_head.", "bbox_head.", "mask_head.", "panoptic_head.")) for name in state)


def as_rows(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with its numbers, such as the scales of mmdetection's levels, as tensors of one element."""
    return {n: t.reshape(1) if t.ndim == 0 and t.is_floating_point() else t for n, t in state.items()}


def _name(rules: Rules, name: str, method: str) -> str:
    for pattern, template in rules:
        if m := re.fullmatch(pattern, name):
            return m.expand(template)
    raise DataError(f"{name!r} is not a tensor in checkpoints of {method}")
