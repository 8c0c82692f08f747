"""Mask R-CNN: Faster R-CNN with a mask branch.

He, Gkioxari, Dollar, Girshick: "Mask R-CNN" (ICCV 2017).

A third branch reads the features of each region on a finer grid and draws one mask for every class; which of them
counts is for the box branch to say, so that the classes do not compete. In training the branch sees the positive
regions, in inference the final boxes. RoIAlign, which rounds nothing, keeps mask and image together.

==============  ===========================  ===============================================================
`MaskRaw`       shape (800 x 1216, COCO)     meaning
==============  ===========================  ===============================================================
boxes                                        `BoxRaw`, as in `maskkit.models.faster_rcnn`
regions.rois    (B 100, 5)                   final boxes; in training the positive regions
regions.labels  (B 100)                      their class; in training their object's
regions.scores  (B 100)                      their score; in training 1
mask_logits     (B 100, 28, 28)              the mask of that class on a grid over the box
==============  ===========================  ===============================================================

Objects of which only the box is known train the mask branch too (`maskkit.nn.mask_stage`).

Differences from the official code, all deliberate: the masks of classes that nobody asks for are never computed;
background inside a crowd is ignored; mask targets are cropped from bitmaps, not drawn from polygons.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.losses import in_fp32
from maskkit.nn.mask_stage import (
    MaskConfig,
    MaskRaw,
    draw,
    final_regions,
    mask_terms,
    object_masks,
    positive_regions,
)
from maskkit.nn.roi import BoxHead, MaskHead, PoolingConfig, RegionConfig, head_convs
from maskkit.nn.rpn import ProposalConfig, RpnHead, detectron2_anchors, torchvision_anchors
from maskkit.nn.two_stage import BINS, FEATURE_STRIDES, TwoStage, feature_pyramid
from maskkit.ranges import Count, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class MaskRcnnConfig(BackboneModelConfig):
    """Knobs of Mask R-CNN; the defaults are detectron2's."""

    width: Count = 256
    """Channels of the pyramid."""
    bottom_up: bool = False
    """Whether a second path climbs up the pyramid from its finest level (mmdetection's PAFPN)."""
    batch_norm: bool = False
    """Whether batch norm takes the place of biases in the pyramid and in the heads' 3x3 convolutions (torchvision's
    second version)."""
    rpn_convs: Count = 1
    """3x3 convolutions of the region proposal network."""
    rounded_anchors: bool = False
    """Anchors of whole pixels, as many apart as the grid goes into the input (torchvision)."""
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    box_convs: Whole = 0
    """3x3 convolutions of the box head; with any there is one layer behind them, without there are two."""
    box_width: Count = 1024
    """Features of the layers of the box head."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    mask_width: Count = 256
    """Channels of the mask head."""
    mask_convs: Whole = 4
    paste: Literal["exact", "whole_pixels"] = "exact"
    """Whether masks are put where their boxes are (detectron2), or the boxes are rounded first (torchvision)."""


class MaskRcnn(TwoStage, Model[MaskRaw, ObjectMasks[Tensor]]):
    """Faster R-CNN with a mask branch."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    config: MaskRcnnConfig
    box_head: BoxHead

    def __init__(self, config: MaskRcnnConfig) -> None:
        width, norm = config.width, config.batch_norm
        backbone = Backbone.of(config.backbone, FEATURE_STRIDES)
        convs = head_convs(width, width, config.box_convs, norm)
        super().__init__(
            backbone,
            feature_pyramid(list(backbone.channels.values()), width, config.bottom_up, norm),
            RpnHead(width, config.proposals.anchors_per_cell, convs=config.rpn_convs),
            BoxHead(width, BINS, config.box_width, config.num_classes, convs=convs),
            proposals=config.proposals,
            pooling=config.pooling,
            regions=config.regions,
            anchors=torchvision_anchors if config.rounded_anchors else detectron2_anchors,
        )
        self.config = config
        self.decoder = InBoxes(config.paste)
        convs = head_convs(width, config.mask_width, config.mask_convs, norm)
        self.mask_head = MaskHead(convs, config.mask_width, config.num_classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> MaskRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, boxes = self.boxes(images, sizes, targets)
        regions = final_regions(self.detect(boxes)) if targets is None else positive_regions(boxes.sampled, targets)
        bins = self.config.mask.bins
        masks = draw(regions, lambda rois, labels: self.mask_head(self.pool(levels, rois, bins), labels))
        return MaskRaw(boxes, regions, masks)

    def loss_terms(self, raw: MaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Faster R-CNN, cross entropy of known masks, and what boxes say about the others."""
        raw, config = in_fp32(raw), self.config
        return self.box_terms(raw.boxes, batch) | mask_terms(*raw, batch, config.mask, config.box_only)

    def select(self, raw: MaskRaw) -> ObjectMasks[Tensor]:
        """The final boxes and their masks."""
        return object_masks(*raw)
