"""Cascade Mask R-CNN: Mask R-CNN with three box heads, each for better boxes than the last, and three mask heads.

Cai, Vasconcelos: "Cascade R-CNN: High Quality Object Detection and Instance Segmentation" (CVPR 2018, TPAMI 2019), in
the form of mmdetection.

A detector that is trained on boxes with an IoU of 0.5 is best at boxes of about that quality. So the boxes of the first
head are regions of a second one, which is trained on what has an IoU of 0.6, and its boxes those of a third (0.7). Each
head corrects a box alike for all classes. An answer has the mean of the three heads' logits, the boxes of the last one,
and the mean of the masks that three mask heads draw in them.

==================  ========================  =================================================================
`CascadeRaw`        shape (800 x 1216)        meaning
==================  ========================  =================================================================
boxes                                         `BoxRaw` of the first stage, as in `maskkit.models.faster_rcnn`
later               2 times:                  the later stages
  sampled.rois      (N, 5)                    image and box of each region
  sampled.matched   (N)                       index of its object in its image, or -1
  class_logits      (N, 81)                   background last
  box_deltas        (N, 80, 4)                box code, the same for every class
regions             3 times:                  `MaskRegions`, as in `maskkit.models.mask_rcnn`; in inference the same
mask_logits         3 times: (B 100, 28, 28)  each head's mask of the region's class on a grid over the box
==================  ========================  =================================================================

Differences from the official code, all deliberate: those of `maskkit.models.mask_rcnn`; in training, boxes of objects
that were regions of one stage are regions of the next with their correction, as the others are. detectron2 averages
probabilities instead of logits and has one mask head (see `maskkit.models.eva`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.cascade import Cascade, Stage, first_stage, of_stage
from maskkit.nn.losses import in_fp32
from maskkit.nn.mask_stage import (
    MaskConfig,
    MaskRegions,
    draw,
    final_regions,
    mask_terms,
    object_masks,
    positive_regions,
)
from maskkit.nn.roi import (
    BoxHead,
    MaskHead,
    PoolingConfig,
    RegionConfig,
    Sampled,
    head_convs,
    keep,
    sample_boxes,
)
from maskkit.nn.rpn import ProposalConfig, RpnHead, Weights, proposal_terms
from maskkit.nn.two_stage import BINS, STRIDES, BoxRaw, feature_pyramid
from maskkit.ranges import Count, Positive, Share, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class StageConfig:
    """One stage of the cascade."""

    iou: Share = 0.5
    """Least IoU of a positive region with its object."""
    centre_deviation: Positive = 0.1
    """Standard deviation of the correction of a centre, in sizes of the region: what its code is divided by."""
    size_deviation: Positive = 0.2
    """The same of the logarithm of a size."""
    weight: Weight = 1.0
    """Of its losses."""

    @property
    def box_weights(self) -> Weights:
        """Weights of the box code."""
        x, w = 1 / self.centre_deviation, 1 / self.size_deviation
        return x, x, w, w


@dataclass(frozen=True)
class CascadeRcnnConfig(BackboneModelConfig):
    """Knobs of Cascade Mask R-CNN; the defaults are mmdetection's."""

    width: Count = 256
    """Channels of the pyramid."""
    proposals: ProposalConfig = field(default_factory=lambda: ProposalConfig(smooth_l1=1 / 9, bounded_shrink=True))
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    regions: RegionConfig = field(default_factory=lambda: RegionConfig(smooth_l1=1.0, bounded_shrink=True))
    first: StageConfig = field(default_factory=StageConfig)
    second: StageConfig = field(default_factory=lambda: StageConfig(0.6, 0.05, 0.1, 0.5))
    third: StageConfig = field(default_factory=lambda: StageConfig(0.7, 0.033, 0.067, 0.25))
    box_width: Count = 1024
    """Features of the two layers of each box head."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    mask_width: Count = 256
    """Channels of the mask heads."""
    mask_convs: Whole = 4

    @property
    def stages(self) -> tuple[StageConfig, StageConfig, StageConfig]:
        """All of them."""
        return self.first, self.second, self.third


class CascadeRaw(NamedTuple):
    """What the stages say, with masks."""

    boxes: BoxRaw
    """Up to the first stage."""
    later: tuple[Stage, ...]
    """The stages behind the first."""
    regions: tuple[MaskRegions, ...]
    mask_logits: tuple[Float[Tensor, "m s s"], ...]
    """Of each mask head."""


class CascadeRcnn(Cascade, Model[CascadeRaw, ObjectMasks[Tensor]]):
    """Three box heads in a row, and three mask heads."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = InBoxes()
    config: CascadeRcnnConfig
    box_head: BoxHead

    def __init__(self, config: CascadeRcnnConfig) -> None:
        backbone = Backbone.of(config.backbone, STRIDES[:-1])
        width, classes = config.width, config.num_classes
        heads = [BoxHead(width, BINS, config.box_width, classes, alike=True) for _ in config.stages]
        super().__init__(
            backbone,
            feature_pyramid(list(backbone.channels.values()), width),
            RpnHead(width, config.proposals.anchors_per_cell),
            heads[0],
            proposals=config.proposals,
            pooling=config.pooling,
            regions=replace(config.regions, iou=config.first.iou),
        )
        self.config = config
        self.later_heads = nn.ModuleList(heads[1:])
        self.code_weights = [stage.box_weights for stage in config.stages]
        self.mask_heads = nn.ModuleList(
            MaskHead(head_convs(width, config.mask_width, config.mask_convs), config.mask_width, classes)
            for _ in config.stages
        )

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> CascadeRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, boxes = self.boxes(images, sizes, targets)
        stages = self.stages(levels, boxes, targets)
        if targets is None:
            mean = torch.stack([stage.class_logits.float() for stage in stages]).mean(0)
            found = keep(self.ranked(mean, stages[-1], boxes.extents), self.config.regions)
            regions = [final_regions(found)] * len(stages)
        else:
            regions = [positive_regions(stage.sampled, targets) for stage in stages]
        masks = [self._masks(levels, *drawn) for drawn in zip(self.mask_heads, regions, strict=True)]
        return CascadeRaw(boxes, tuple(stages[1:]), tuple(regions), tuple(masks))

    def _masks(self, levels: list[Tensor], head: nn.Module, regions: MaskRegions) -> Float[Tensor, "m s s"]:
        bins = self.config.mask.bins
        return draw(regions, lambda rois, labels: head(self.pool(levels, rois, bins), labels))

    def resampled(self, regions: Sampled, targets: Sequence[Target], stage: int) -> Sampled:
        """A new sample of them, with the IoU of the stage."""
        rois = regions.rois
        boxes = [rois[rois[:, 0] == b, 1:] for b in range(len(targets))]
        return sample_boxes(boxes, targets, replace(self.config.regions, iou=self.config.stages[stage].iou))

    def loss_terms(self, raw: CascadeRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of the proposals; class, box and mask of each stage."""
        raw, config = in_fp32(raw), self.config
        terms = proposal_terms(raw.boxes.rpn, batch.targets, config.proposals)
        for i, (stage, own) in enumerate(zip((first_stage(raw.boxes), *raw.later), config.stages, strict=True)):
            sampled = raw.boxes._replace(sampled=stage.sampled)
            masks = mask_terms(sampled, raw.regions[i], raw.mask_logits[i], batch, config.mask, config.box_only)
            both = of_stage(self.head_terms(stage, i, batch) | masks, i)
            terms |= {name: own.weight * term for name, term in both.items()}
        return terms

    def select(self, raw: CascadeRaw) -> ObjectMasks[Tensor]:
        """The final boxes and the means of their masks."""
        each = [
            object_masks(raw.boxes, regions, logits)
            for regions, logits in zip(raw.regions, raw.mask_logits, strict=True)
        ]
        return each[0]._replace(masks=torch.stack([found.masks for found in each]).mean(0))
