"""aim-uofa/AdelaiDet (non-commercial licence): the names that its FCOS, CondInst, BoxInst and BlendMask share."""

from maskkit.zoo.resnet import DETECTRON2, Rules

FCOS: Rules = (
    *(
        (rf"backbone\.fpn_{kind}{stage}\.(.+)", rf"fpn.{kind}.{stage - 3}.\1")
        for kind in ("lateral", "output")
        for stage in (3, 4, 5)
    ),
    (r"backbone\.top_block\.p6\.(.+)", r"fpn.extra.0.\1"),
    (r"backbone\.top_block\.p7\.(.+)", r"fpn.extra.1.\1"),
    *DETECTRON2,
    (r"proposal_generator\.fcos_head\.cls_tower\.(.+)", r"head.class_tower.\1"),
    (r"proposal_generator\.fcos_head\.bbox_tower\.(.+)", r"head.box_tower.\1"),
    (r"proposal_generator\.fcos_head\.cls_logits\.(.+)", r"head.logits.\1"),
    (r"proposal_generator\.fcos_head\.bbox_pred\.(.+)", r"head.sides.\1"),
    (r"proposal_generator\.fcos_head\.ctrness\.(.+)", r"head.quality.\1"),
    (r"proposal_generator\.fcos_head\.scales\.(\d)\.scale", r"head.scales.\1"),
)
"""A pyramid from C3 on with P6 and P7, and the detector's head. Images are BGR."""
