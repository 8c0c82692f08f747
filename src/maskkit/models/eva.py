"""EVA as a detector: Mask R-CNN and Cascade Mask R-CNN on a plain vision transformer.

Fang, Wang, Xie, Sun, Wu, Wang, Huang, Wang, Cao: "EVA: Exploring the Limits of Masked Visual Representation Learning
at Scale" (CVPR 2023), whose network is the detector of ViTDet (Li et al., ECCV 2022). What is new in EVA is how the
transformer learnt, from images without labels: `maskkit pretrain` does that, and any model of the package can have
its result as backbone. In the cascade (Cai, Vasconcelos, CVPR 2018) each stage refines the boxes of the one before, and
is trained on those that fit their object better; an answer has the mean of the stages' scores.

==================  ========================  =================================================================
`EvaRaw`            shape (1280 x 1280)       meaning
==================  ========================  =================================================================
boxes                                         `BoxRaw` of the first stage
regions                                       `MaskRegions`, as in `maskkit.models.mask_rcnn`
mask_logits         (B 100, 28, 28)           the mask of the region's class on a grid over the box
later               2 times:                  the later stages
  sampled.rois      (N, 5)                    image and box of each region
  sampled.matched   (N)                       index of its object in its image, or -1
  class_logits      (N, 81)                   background last
  box_deltas        (N, 80, 4)                box code, the same for every class in a cascade
==================  ========================  =================================================================

Differences from the official code, all deliberate: those of `maskkit.models.mask_rcnn`; regions without area stay, as
background, where the official code drops them between stages; every block learns at the same rate, where the official
recipe gives lower ones to earlier blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry import masks as mask_math
from maskkit.geometry.nms import soft_nms
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.cascade import Cascade, Stage, box_weights, of_stage
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
    MaskHead,
    PoolingConfig,
    RankedBoxes,
    RegionConfig,
    Sampled,
    keep,
    reordered,
)
from maskkit.nn.rpn import NEITHER, ProposalConfig, RpnHead, match_boxes
from maskkit.nn.two_stage import BINS, STRIDES, BoxRaw
from maskkit.ranges import Count, Share, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class EvaConfig(BackboneModelConfig):
    """Knobs of the detector; its backbone has its own, ``vit``."""

    width: Count = 256
    """Channels of the pyramid."""
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    stages: tuple[Share, ...] = (0.5, 0.6, 0.7)
    """Least IoU of a positive region in each stage; a single one makes it Mask R-CNN."""
    box_width: Count = 1024
    """Features of the box head's fully connected layer."""
    head_convs: Whole = 4
    """Convolutions of box and mask head."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    soft_nms: bool = True
    """Whether copies lose score in proportion to their overlap (linear Soft-NMS) instead of being dropped."""
    maskness: bool = True
    """Whether masks are ranked by their score times the mean probability of their foreground."""


class EvaRaw(NamedTuple):
    """What the stages say, with masks."""

    boxes: BoxRaw
    """Up to the first stage."""
    regions: MaskRegions
    mask_logits: Float[Tensor, "m s s"]
    later: tuple[Stage, ...]
    """The stages of a cascade behind the first."""


def conv_norm(channels: int, width: int) -> nn.Sequential:
    """A 3x3 convolution and layer norm over the channels of each place."""
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, LayerNorm2d(width))


class Coarser(nn.Module):
    """Adds a level to the backbone's pyramid: every second place of the coarsest one."""

    def forward(self, levels: list[Float[Tensor, "b c _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """All levels, fine to coarse."""
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


class ConvBoxHead(nn.Module):
    """Convolutions and one layer, then a class, the last of which is background, and a box code.

    The code is for every class the same in a cascade of ``stages``, which passes an equal ``stages``th of the gradient
    on to the features (detectron2).
    """

    def __init__(self, channels: int, convs: int, width: int, num_classes: int, stages: int) -> None:
        super().__init__()
        self.num_classes, self.share = num_classes, 1 / stages
        self.convs = nn.ModuleList(conv_norm(channels, channels) for _ in range(convs))
        self.fc = nn.Linear(channels * BINS * BINS, width)
        self.label = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 * (num_classes if stages == 1 else 1))
        nn.init.kaiming_uniform_(self.fc.weight, a=1)
        nn.init.normal_(self.label.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc, self.label, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "n c s s"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k 4"]]:
        """Class logits (N, K + 1) and codes (N, K, 4)."""
        y = pooled * self.share + pooled.detach() * (1 - self.share)
        for conv in self.convs:
            y = F.relu(conv(y))
        y = F.relu(self.fc(y.flatten(1)))
        return self.label(y), self.deltas(y).unflatten(1, (-1, 4)).expand(-1, self.num_classes, -1)


class Eva(Cascade, Model[EvaRaw, ObjectMasks[Tensor]]):
    """A (cascade of) box heads and a mask head on the simple pyramid of a plain transformer."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = InBoxes()
    config: EvaConfig
    box_head: ConvBoxHead

    def __init__(self, config: EvaConfig) -> None:
        stages, width, classes = len(config.stages), config.width, config.num_classes
        heads = [ConvBoxHead(width, config.head_convs, config.box_width, classes, stages) for _ in range(stages)]
        super().__init__(
            Backbone.of(config.backbone, STRIDES[:-1]),
            Coarser(),
            RpnHead(width, config.proposals.anchors_per_cell, convs=2),
            heads[0],
            proposals=config.proposals,
            pooling=config.pooling,
            regions=config.regions,
        )
        self.config = config
        self.later_heads = nn.ModuleList(heads[1:])
        self.code_weights = [box_weights(stage) for stage in range(stages)]
        self.mask_head = MaskHead([conv_norm(width, width) for _ in range(config.head_convs)], width, classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> EvaRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, boxes = self.boxes(images, sizes, targets)
        stages = self.stages(levels, boxes, targets)
        if targets is None:
            regions = final_regions(self.found(stages, boxes.extents))
        else:
            regions = positive_regions(boxes.sampled, targets)
        bins = self.config.mask.bins
        masks = draw(regions, lambda rois, labels: self.mask_head(self.pool(levels, rois, bins), labels))
        return EvaRaw(boxes, regions, masks, tuple(stages[1:]))

    @torch.no_grad()
    def resampled(self, regions: Sampled, targets: Sequence[Target], stage: int) -> Sampled:
        """All of them, matched anew with the IoU of the stage."""
        owner, boxes = regions.rois[:, 0].long(), regions.rois[:, 1:]
        iou, crowd = self.config.stages[stage], self.config.regions.crowd_overlap
        matched = torch.empty_like(regions.matched)
        for b, target in enumerate(targets):
            mine = owner == b
            matched[mine] = match_boxes(boxes[mine], target, iou, iou, crowd_overlap=crowd)
        certain = matched != NEITHER
        return Sampled(regions.rois[certain], matched[certain])

    def found(self, stages: list[Stage], extents: Float[Tensor, "b 2"]) -> RankedBoxes:
        """The final boxes, of the mean scores and of the last stage's boxes."""
        config = self.config.regions
        scores = torch.stack([stage.class_logits.float().softmax(1) for stage in stages]).mean(0)
        found = self.ranked(scores.clamp(min=1e-30).log(), stages[-1], extents)
        if self.config.soft_nms:
            return reordered(found, *soft_nms(*found, config.nms_threshold, config.detections))
        return keep(found, config)

    def loss_terms(self, raw: EvaRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Mask R-CNN, and class and box of each later stage."""
        raw, config = in_fp32(raw), self.config
        terms = self.box_terms(raw.boxes, batch)
        for i, stage in enumerate(raw.later, 1):
            terms |= of_stage(self.head_terms(stage, i, batch), i)
        masks = mask_terms(raw.boxes, raw.regions, raw.mask_logits, batch, config.mask, config.box_only)
        return terms | masks

    def select(self, raw: EvaRaw) -> ObjectMasks[Tensor]:
        """The final boxes and their masks."""
        found = object_masks(raw.boxes, raw.regions, raw.mask_logits)
        if self.config.maskness:
            found = found._replace(mask_scores=found.mask_scores * mask_math.maskness(found.masks))
        return found
