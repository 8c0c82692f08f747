"""Faster R-CNN on a feature pyramid: object detection in two stages.

Ren, He, Girshick, Sun: "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks" (NeurIPS 2015);
Lin et al.: "Feature Pyramid Networks for Object Detection" (CVPR 2017).

A small network slides over every level of the pyramid and says where objects may be; the features of each such region
are pooled to one size, and a second network names the object and refines the box. The detector on its own finds boxes
and no masks; Mask R-CNN and what follows build on its parts (`maskkit.nn.two_stage`).

===============  ===========================  ==============================================================
`BoxRaw`         shape (800 x 1216, COCO)     meaning
===============  ===========================  ==============================================================
rpn.objectness   (B, 242991)                  logits of the anchors of P2 to P6
rpn.deltas       (B, 242991, 4)               their box code
rpn.anchors      (242991, 4)                  in input pixels
sampled.rois     (B 1000, 5)                  image and box of each region; in training the sampled ones
sampled.matched  (B 1000)                     index of the region's object, in training
class_logits     (B 1000, 81)                 background is last
box_deltas       (B 1000, 80, 4)              box code for every class
extents          (B, 2)                       width and height of each image without padding
size             (2)                          width and height of the input
===============  ===========================  ==============================================================

Differences from the official code, all deliberate: background inside a crowd is ignored; regions have a fixed number in
inference (boxes without area fill up), so that the graph can be exported.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import BackboneModelConfig
from maskkit.decode import BoxesOnly
from maskkit.decode.outputs import Boxes
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.losses import in_fp32
from maskkit.nn.roi import BoxHead, PoolingConfig, RegionConfig, head_convs
from maskkit.nn.rpn import ProposalConfig, RpnHead, detectron2_anchors, torchvision_anchors
from maskkit.nn.two_stage import BINS, FEATURE_STRIDES, BoxRaw, TwoStage, feature_pyramid
from maskkit.ranges import Count, FeatureStride, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class FasterRcnnConfig(BackboneModelConfig):
    """Knobs of Faster R-CNN; the defaults are detectron2's."""

    width: Count = 256
    """Channels of the pyramid."""
    feature_strides: tuple[FeatureStride, ...] = FEATURE_STRIDES
    """Strides of the backbone's features that the pyramid is made of; -32 stands for what enters stride 32, the output
    of its first block (MobileNetV3 in torchvision)."""
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


class FasterRcnn(TwoStage, Model[BoxRaw, Boxes[Tensor]]):
    """The plain detector."""

    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    supervision: ClassVar[frozenset[str]] = frozenset({"boxes"})
    decoder = BoxesOnly()
    config: FasterRcnnConfig
    box_head: BoxHead

    def __init__(self, config: FasterRcnnConfig) -> None:
        width, norm = config.width, config.batch_norm
        backbone = Backbone.of(config.backbone, config.feature_strides)
        convs = head_convs(width, width, config.box_convs, norm)
        super().__init__(
            backbone,
            feature_pyramid(list(backbone.channels.values()), width, config.bottom_up, norm),
            RpnHead(width, config.proposals.anchors_per_cell, convs=config.rpn_convs),
            BoxHead(width, BINS, config.box_width, config.num_classes, convs=convs),
            proposals=config.proposals,
            pooling=config.pooling,
            regions=config.regions,
            feature_strides=config.feature_strides,
            anchors=torchvision_anchors if config.rounded_anchors else detectron2_anchors,
        )
        self.config = config

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> BoxRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        return self.boxes(images, sizes, targets)[1]

    def loss_terms(self, raw: BoxRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy and smooth L1 of either stage."""
        return self.box_terms(in_fp32(raw), batch)

    def select(self, raw: BoxRaw) -> Boxes[Tensor]:
        """The best boxes after NMS."""
        found = self.detect(raw)
        return Boxes(found.boxes / raw.size.repeat(2), found.labels, found.scores)
