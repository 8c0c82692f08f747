"""What two-stage methods on a pyramid share: Faster R-CNN up to its boxes.

Ren, He, Girshick, Sun: "Faster R-CNN" (NeurIPS 2015) with the pyramid of Lin et al., "Feature Pyramid Networks for
Object Detection" (CVPR 2017), in two dialects that published weights speak: detectron2's, which are the defaults, and
torchvision's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.fpn import Fpn
from maskkit.nn.roi import BoxHead, RankedBoxes, Sampled, as_rois, box_loss, detect, pool, sample_rois
from maskkit.nn.rpn import (
    BACKGROUND,
    RpnConfig,
    RpnHead,
    RpnLevel,
    cell_anchors,
    extents_of,
    flatten,
    grid_anchors,
    proposal_terms,
    propose,
)
from maskkit.targets import Batch, Target

BINS = 7
"""Side of the grid of features that the box head reads."""


@dataclass(frozen=True)
class TwoStageConfig(RpnConfig):
    """Knobs of a region proposal network on a pyramid and of the box branch; the defaults are detectron2's."""

    width: int = 256
    """Channels of the pyramid."""
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Anchor sizes in input pixels for each of the levels P2 to P6."""
    rounded_anchors: bool = False
    """Anchors of whole pixels, as many apart as the grid goes into the input (torchvision)."""
    rpn_before: tuple[int, int] = (2000, 1000)
    """Anchors of each level that enter NMS, in training and in inference."""
    rpn_after: tuple[int, int] = (1000, 1000)
    """Proposals of each image, in training and in inference."""
    roi_sampled: int = 512
    """Regions per image in the loss."""
    roi_positive: float = 0.25
    """Largest share of positives among them."""
    pooling: Literal["align", "pool"] = "align"
    """RoIAlign or RoI Pooling."""
    aligned: bool = True
    """Whether RoIAlign takes the half cell into account (detectron2) or not (torchvision)."""
    sampling_ratio: int = 0
    """Samples of RoIAlign along each side of a bin; 0 takes as many as the bin has cells."""
    box_width: int = 1024
    """Features of the two layers of the box head."""
    smooth_l1: float = 0.0
    """Where the smooth L1 losses of both stages turn linear; 0 is L1."""
    min_score: float = 0.05
    nms_threshold: float = 0.5


class BoxRaw(NamedTuple):
    """What the two stages say up to the boxes. N is B R in inference, and what was sampled in training."""

    objectness: Float[Tensor, "b a"]
    """Logits of the anchors."""
    anchor_deltas: Float[Tensor, "b a 4"]
    anchors: Float[Tensor, "a 4"]
    """In input pixels, as all boxes here."""
    rois: Float[Tensor, "n 5"]
    """Image and box of each region."""
    matched: Int[Tensor, "n"]
    """Index of the object in its image, or -1 for background; always -1 in inference."""
    class_logits: Float[Tensor, "n c"]
    """The last class is background."""
    box_deltas: Float[Tensor, "n k 4"]
    extents: Float[Tensor, "b 2"]
    """Width and height of each image inside the input."""
    size: Float[Tensor, "2"]
    """Width and height of the input."""


class TwoStage(nn.Module):
    """Backbone, pyramid, region proposal network and box head, and what is done with them in this order."""

    config: TwoStageConfig

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(4 * 2**i for i in range(len(config.anchor_sizes)))
        self.backbone = Backbone.of(config.backbone, self.strides[:-1])
        channels = list(self.backbone.channels.values())
        self.fpn = Fpn(channels, config.width, 1, interpolation="nearest", relu=False, extra_kind="pool")
        self.rpn = RpnHead(config.width, len(config.anchor_sizes[0]) * len(config.anchor_ratios))
        self.box_head = BoxHead(config.width, BINS, config.box_width, config.num_classes)
        for conv in (*self.fpn.lateral, *self.fpn.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def boxes(
        self, images: Float[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"] | None, targets: Sequence[Target] | None
    ) -> tuple[list[Float[Tensor, "b c _ _"]], BoxRaw]:
        """The levels of the pyramid, and all that is said up to the boxes. With ``targets`` regions are sampled."""
        config, training = self.config, targets is not None
        levels = self.fpn(list(self.backbone(images).values()))  # P2 (B, w, H/4, W/4) to P6
        size = (images.shape[2], images.shape[3])
        extents = extents_of(images, sizes)
        anchored = self.anchored(levels, size)
        before, after = (n[not training] for n in (config.rpn_before, config.rpn_after))
        proposals = propose(anchored, extents, before, after, config.rpn_nms)
        if targets is None:
            rois = as_rois(proposals.boxes)
            sampled = Sampled(rois, torch.full_like(rois[:, 0], BACKGROUND, dtype=torch.int64))
        else:
            sampled = sample_rois(
                proposals,
                targets,
                count=config.roi_sampled,
                share=config.roi_positive,
                iou=config.roi_iou,
                crowd_overlap=config.crowd_overlap,
            )
        class_logits, box_deltas = self.box_head(self.pool(levels, sampled.rois, BINS))
        objectness, anchor_deltas = (torch.cat(parts, 1) for parts in list(zip(*anchored, strict=True))[:2])
        anchors = torch.cat([level.anchors for level in anchored])
        extent = extents.new_tensor([size[1], size[0]])
        return levels, BoxRaw(objectness, anchor_deltas, anchors, *sampled, class_logits, box_deltas, extents, extent)

    def anchored(self, levels: Sequence[Float[Tensor, "b c _ _"]], size: tuple[int, int]) -> list[RpnLevel]:
        """What the region proposal network says on each level of an input of ``size`` (H, W)."""
        config = self.config
        found = []
        for level, stride, sizes in zip(levels, self.strides, config.anchor_sizes, strict=True):
            grid = (level.shape[2], level.shape[3])
            apart = (size[0] // grid[0], size[1] // grid[1]) if config.rounded_anchors else (stride, stride)
            cells = self.cells(sizes, stride).to(level.device)
            found.append(RpnLevel(*flatten(*self.rpn(level)), grid_anchors(cells, grid, apart)))
        return found

    def cells(self, sizes: Sequence[float], stride: int) -> Float[Tensor, "a 4"]:
        """The anchors of the first place of a level."""
        return cell_anchors(sizes, self.config.anchor_ratios, self.config.rounded_anchors)

    def pool(
        self, levels: Sequence[Float[Tensor, "b c _ _"]], rois: Float[Tensor, "n 5"], bins: int
    ) -> Float[Tensor, "n c s s"]:
        """Features of regions from P2 to P5."""
        config = self.config
        return pool(
            levels[:-1],
            self.strides[:-1],
            rois,
            bins,
            kind=config.pooling,
            aligned=config.aligned,
            sampling_ratio=config.sampling_ratio,
        )

    def box_terms(self, raw: BoxRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The losses of both stages."""
        config, targets = self.config, batch.targets
        first = proposal_terms(raw.objectness, raw.anchor_deltas, raw.anchors, targets, config, config.smooth_l1)
        sampled = Sampled(raw.rois, raw.matched)
        second = box_loss(raw.class_logits, raw.box_deltas, sampled, targets, config.smooth_l1)
        return first | {"classification": second.label, "box": second.box}

    def detect(self, raw: BoxRaw) -> RankedBoxes:
        """The final boxes of an inference."""
        config, batch = self.config, (len(raw.extents), -1)
        return detect(
            raw.class_logits.unflatten(0, batch),
            raw.box_deltas.unflatten(0, batch),
            raw.rois[:, 1:].unflatten(0, batch),
            raw.extents,
            min_score=config.min_score,
            threshold=config.nms_threshold,
            candidates=config.candidates,
            count=config.detections,
        )
