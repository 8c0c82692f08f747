"""xieenze/PolarMask (Apache-2.0, on mmdetection 1): names of its checkpoints with Caffe-style ResNets."""

from torch import Tensor

from maskkit.zoo.resnet import MMDETECTION, Rules, bgr_to_rgb, rename_by

_RULES: Rules = (
    (r"neck\.fpn_convs\.3\.conv\.(.+)", r"fpn.extra.0.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(.+)", r"fpn.extra.1.\1"),
    *MMDETECTION,
    *(
        (rf"bbox_head\.{official}_convs\.{i}\.{layer}\.(.+)", rf"head.{ours}_tower.{3 * i + place}.\1")
        for official, ours in (("cls", "class"), ("reg", "box"), ("mask", "ray"))
        for i in range(4)
        for place, layer in enumerate(("conv", "gn"))
    ),
    (r"bbox_head\.polar_cls\.(.+)", r"head.logits.\1"),
    (r"bbox_head\.polar_centerness\.(.+)", r"head.centerness.\1"),
    (r"bbox_head\.polar_reg\.(.+)", r"head.sides.\1"),
    (r"bbox_head\.polar_mask\.(.+)", r"head.rays.\1"),
    (r"bbox_head\.scales_bbox\.(\d)\.scale", r"head.side_scales.\1"),
    (r"bbox_head\.scales_mask\.(\d)\.scale", r"head.ray_scales.\1"),
)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no PolarMask has."""
    return bgr_to_rgb(rename_by(_RULES, state, "PolarMask"))
