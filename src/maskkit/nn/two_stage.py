"""What two-stage methods on a pyramid share: Faster R-CNN up to its boxes.

Ren, He, Girshick, Sun: "Faster R-CNN" (NeurIPS 2015) with the pyramid of Lin et al., "Feature Pyramid Networks for
Object Detection" (CVPR 2017). A method builds its parts and hands them to `TwoStage`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.errors import MaskkitError
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import numbers
from maskkit.nn.fpn import Fpn, Pafpn
from maskkit.nn.roi import (
    BoxHead,
    PoolingConfig,
    RankedBoxes,
    RegionConfig,
    Sampled,
    all_rois,
    box_loss,
    detect,
    head_convs,
    pool,
    sample_rois,
)
from maskkit.nn.rpn import (
    Anchors,
    ProposalConfig,
    RpnHead,
    RpnRaw,
    detectron2_anchors,
    extents_of,
    joined,
    proposal_terms,
    propose,
    rpn_levels,
    torchvision_anchors,
)
from maskkit.ranges import Count, Whole
from maskkit.targets import Batch, Target

STRIDES = (4, 8, 16, 32, 64)
"""Input pixels per cell of P2 to P6; the last one, made of P5, serves the proposals alone."""
FEATURE_STRIDES = STRIDES[:-1]
"""Strides of the features that P2 to P5 are made of."""
BINS = 7
"""Side of the grid of features that the box head reads."""

Pooler = Callable[
    [Sequence[Float[Tensor, "b c _ _"]], Sequence[int], Float[Tensor, "n 5"], int, PoolingConfig], Float[Tensor, "..."]
]
"""Features of regions, as of `maskkit.nn.roi.pool`."""


class BoxRaw(NamedTuple):
    """What the two stages say up to the boxes. N is B R in inference, and what was sampled in training."""

    rpn: RpnRaw
    """Of the anchors of all levels."""
    sampled: Sampled
    """The N regions of the second stage."""
    class_logits: Float[Tensor, "n c"]
    """The last class is background."""
    box_deltas: Float[Tensor, "n k 4"]
    """Box code for every class."""
    extents: Float[Tensor, "b 2"]
    """Width and height of each image inside the input."""
    size: Float[Tensor, "2"]
    """Width and height of the input."""


def feature_pyramid(channels: Sequence[int], width: int, bottom_up: bool = False, batch_norm: bool = False) -> Fpn:
    """Detectron2's pyramid: P2 to P5 of C2 to C5, and P6, which is every second row and column of P5.

    With ``bottom_up`` it is mmdetection's `Pafpn`; with ``batch_norm`` that takes the place of biases (torchvision's
    second version). Raises `MaskkitError` for both, which nobody has.
    """
    if bottom_up and batch_norm:
        raise MaskkitError("the pyramid with a second path has no batch norm: leave out --model.bottom-up")
    if bottom_up:
        fpn: Fpn = Pafpn(channels, width, 1)
    else:
        norm = nn.BatchNorm2d if batch_norm else None
        fpn = Fpn(channels, width, 1, interpolation="nearest", relu=False, extra_kind="pool", norm=norm)
    for conv in (m for m in fpn.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_uniform_(conv.weight, a=1)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return fpn


class TwoStage(nn.Module):
    """Backbone, pyramid, region proposal network and box head, and what is done with them in this order.

    ``fpn`` makes levels of the backbone's features, which have the strides ``feature_strides``, and one more of twice
    the last stride, for the proposals alone. ``anchors`` lays out the anchors on them. ``pooler`` gives the features of
    regions, which ``box_head`` turns into class logits, background last, and box codes.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: nn.Module,
        rpn: RpnHead,
        box_head: nn.Module,
        *,
        proposals: ProposalConfig,
        pooling: PoolingConfig,
        regions: RegionConfig,
        feature_strides: Sequence[int] = FEATURE_STRIDES,
        anchors: Anchors = detectron2_anchors,
        pooler: Pooler = pool,
    ) -> None:
        super().__init__()
        self._strides = (*map(abs, feature_strides), 2 * abs(feature_strides[-1]))
        self.backbone, self.fpn, self.rpn, self.box_head = backbone, fpn, rpn, box_head
        self._proposals, self._pooling, self._regions = proposals, pooling, regions
        self._anchors, self._pooler = anchors, pooler

    def boxes(
        self, images: Float[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"] | None, targets: Sequence[Target] | None
    ) -> tuple[list[Float[Tensor, "b c _ _"]], BoxRaw]:
        """The levels of the pyramid, and all that is said up to the boxes. With ``targets`` regions are sampled."""
        levels = self.fpn(list(self.backbone(images).values()))  # P2 (B, w, H/4, W/4) to P6
        height, width = images.shape[2:]
        extents = extents_of(images, sizes)
        said = self.anchored(levels, (height, width))
        proposals = propose(said, extents, self._proposals, training=targets is not None)
        sampled = all_rois(proposals.boxes) if targets is None else sample_rois(proposals, targets, self._regions)
        class_logits, box_deltas = self.box_head(self.pool(levels, sampled.rois, BINS))
        size = numbers((width, height), extents)
        return levels, BoxRaw(joined(said), sampled, class_logits, box_deltas, extents, size)

    def anchored(self, levels: Sequence[Float[Tensor, "b c _ _"]], size: tuple[int, int]) -> list[RpnRaw]:
        """What the region proposal network says on each level of an input of ``size`` (H, W)."""
        return rpn_levels(self.rpn, levels, self._anchors(self._proposals, levels, self._strides, size))

    def pool(
        self, levels: Sequence[Float[Tensor, "b c _ _"]], rois: Float[Tensor, "n 5"], bins: int
    ) -> Float[Tensor, "..."]:
        """Features of regions, from all levels but the coarsest."""
        return self._pooler(levels[:-1], self._strides[:-1], rois, bins, self._pooling)

    def box_terms(self, raw: BoxRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The losses of both stages."""
        first = proposal_terms(raw.rpn, batch.targets, self._proposals)
        second = box_loss(raw.class_logits, raw.box_deltas, raw.sampled, batch.targets, self._regions.smooth_l1)
        return first | {"classification": second.label, "box": second.box}

    def detect(self, raw: BoxRaw) -> RankedBoxes:
        """The final boxes of an inference."""
        logits, deltas, rois = (
            t.unflatten(0, (raw.extents.shape[0], -1)) for t in (raw.class_logits, raw.box_deltas, raw.sampled.rois)
        )
        return detect(logits, deltas, rois[..., 1:], raw.extents, self._regions)


@dataclass(frozen=True)
class RcnnConfig(BackboneModelConfig):
    """Fields of Faster R-CNN that Mask R-CNN has too; the defaults are detectron2's."""

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


class Rcnn(TwoStage):
    """Faster R-CNN's own parts."""

    box_head: BoxHead

    def __init__(self, config: RcnnConfig, feature_strides: Sequence[int] = FEATURE_STRIDES) -> None:
        width, norm = config.width, config.batch_norm
        backbone = Backbone.of(config.backbone, feature_strides)
        convs = head_convs(width, width, config.box_convs, norm)
        super().__init__(
            backbone,
            feature_pyramid(list(backbone.channels.values()), width, config.bottom_up, norm),
            RpnHead(width, config.proposals.anchors_per_cell, convs=config.rpn_convs),
            BoxHead(width, BINS, config.box_width, config.num_classes, convs=convs),
            proposals=config.proposals,
            pooling=config.pooling,
            regions=config.regions,
            feature_strides=feature_strides,
            anchors=torchvision_anchors if config.rounded_anchors else detectron2_anchors,
        )
