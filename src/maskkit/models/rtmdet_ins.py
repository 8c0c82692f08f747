"""RTMDet-Ins: a fast one-stage detector whose locations bring along the filters of their masks.

Lyu, Zhang, Huang, Zhou, Wang, Liu, Zhang, Chen: "RTMDet: An Empirical Study of Designing Real-Time Object Detectors"
(2022).

The masks are CondInst's: 169 numbers of every location are a tiny network that draws its object from eight maps of the
whole image (`maskkit.nn.dynamic_mask`). The network around them is made for speed: a backbone and a neck of equal
weight whose blocks hold a 5x5 depthwise convolution, one tower for classes and boxes, no quality output. Which location
learns which object is decided anew in each step by what the network predicts (`maskkit.nn.rtmdet`).

===================  ====================================  ===========================================================
`Raw`                shape (640 x 640, COCO)               meaning
===================  ====================================  ===========================================================
detector.logits      (B, 80, 80, 80), 40 x 40, 20 x 20     class logits
detector.distances   (B, 4, 80, 80), 40 x 40, 20 x 20      left, top, right, bottom in strides
detector.quality     no levels                             there is no such output
detector.extra       (B, 169, 80, 80), 40 x 40, 20 x 20    parameters of the dynamic heads
branch.features      (B, 8, 80, 80)                        what every dynamic head reads
===================  ====================================  ===========================================================

Masks of objects of which only the box is known are learnt from the box (`maskkit.nn.losses`), beside others whose masks
are known.

Differences from the official code, all deliberate: masks are enlarged by the factors of their own axes, where the
official code swaps the two (its issue 11230), which differ by rounding; boxes are cut off at the image; background
inside a crowd is ignored; the tower that classes and boxes share runs once; an object without a mask has its centre in
its box. Mosaic and mix-up of the published trainings are not part of this package.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import BackboneConfig, BackboneModelConfig, BoxOnly
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.csp import CspPyramid
from maskkit.nn.dynamic_mask import (
    DynamicHeadConfig,
    DynamicMaskRaw,
    centres_of,
    mask_logits,
    mask_terms,
    some,
)
from maskkit.nn.fcos import relative_boxes, require_whole_cells
from maskkit.nn.rtmdet import MaskFusion, RtmDetectorConfig, RtmHead, rtm_detect, rtm_loss
from maskkit.ranges import Count, Weight
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class RtmdetInsConfig(BackboneModelConfig):
    """Fields of RTMDet-Ins; the defaults are the published model of the size tiny for COCO."""

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("cspnext_tiny", norm="train"))
    detector: RtmDetectorConfig = field(default_factory=RtmDetectorConfig)
    masks: DynamicHeadConfig = field(default_factory=lambda: DynamicHeadConfig(branch_width=96))
    box_only: BoxOnly = field(default_factory=BoxOnly)
    mask_weight: Weight = 2.0
    """Weight of the mask loss."""
    masks_to_train: Count | None = None
    """Positives of a batch that enter the mask loss, chosen at random; None: all."""


class RtmdetIns(Model[DynamicMaskRaw, ObjectMasks[Tensor]]):
    """RTMDet with a mask branch and a dynamic mask head for every object."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = OverInput(threshold=0.0, steps=2)
    config: RtmdetInsConfig

    def __init__(self, config: RtmdetInsConfig) -> None:
        super().__init__()
        self.config = config
        detector, masks = config.detector, config.masks
        self.backbone = Backbone.of(config.backbone, detector.strides)
        self.neck = CspPyramid(list(self.backbone.channels.values()), detector.width, detector.neck_blocks)
        self.head = RtmHead(detector, config.num_classes, extra=masks.head_parameters)
        self.mask_branch = MaskFusion(masks, detector.width)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> DynamicMaskRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        levels = self.neck(list(self.backbone(images).values()))
        return DynamicMaskRaw(self.head(levels), self.mask_branch(levels))

    def loss_terms(self, raw: DynamicMaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The detector's terms, dice of known masks, and BoxInst's terms of the others."""
        raw, config = raw.float(), self.config
        losses, positives = rtm_loss(raw.detector, batch, config.detector, centres_of(batch))
        if config.masks_to_train is not None:
            positives = some(positives, config.masks_to_train)
        masks = mask_terms(raw, positives, batch, config.detector.strides, config.masks, config.box_only, corners=True)
        return losses | {name: config.mask_weight * term for name, term in masks.items()}

    def select(self, raw: DynamicMaskRaw) -> ObjectMasks[Tensor]:
        """NMS of boxes; the masks are logits on a grid of an eighth of the input."""
        raw, config = raw.float(), self.config
        found = rtm_detect(raw.detector, config.detector)
        masks = mask_logits(raw, found, config.detector.strides, config.masks.head_widths, corners=True)
        boxes = relative_boxes(found, raw.detector, config.detector)
        return ObjectMasks(boxes, found.labels, found.scores, masks, found.scores)
