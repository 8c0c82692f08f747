"""PANet: every proposal uses every level of the pyramid, and detail comes to all of them by a short way.

Liu, Qi, Qin, Shi, Jia: "Path Aggregation Network for Instance Segmentation" (CVPR 2018).

Mask R-CNN with three additions. *Bottom-up path augmentation*: a second pyramid N2 to N5 climbs up again from P2, so
that edges and texture reach the coarse levels over a few layers. *Adaptive feature pooling*: a region is pooled from
all levels, its first layer is one of each level's own, and the largest answer counts; no rule of sizes chooses a level.
*Fully-connected fusion*: beside the masks of the classes, one of plain foreground is drawn by a fully connected layer,
which knows where in the region it is, and added to them.

==============  ===========================  ====================================================================
`MaskRaw`       shape (800 x 1216, COCO)     meaning
==============  ===========================  ====================================================================
boxes                                        `BoxRaw`, as in `maskkit.models.faster_rcnn`
regions.rois    (B 100, 5)                   final boxes; in training the positive regions
regions.labels  (B 100)                      their class; in training their object's
regions.scores  (B 100)                      their score; in training 1
mask_logits     (B 100, 28, 28)              the mask of that class on a grid over the box; 0 x 0 for a detector
==============  ===========================  ====================================================================

Objects of which only the box is known train the mask branch too (`maskkit.nn.mask_stage`).

Differences from the official code, all deliberate: the masks of classes that nobody asks for are never computed;
background inside a crowd is ignored; mask targets are cropped from bitmaps, not drawn from polygons; smooth L1 turns
linear at 1/3 in both stages, not in the second alone. Official boxes end with the number of their last pixel, ours with
its edge: regions are pooled a pixel shorter, which gives the same features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import BoxesOnly, InBoxes
from maskkit.decode.outputs import Boxes, ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.fpn import Fpn
from maskkit.nn.losses import in_fp32
from maskkit.nn.mask_stage import (
    MaskConfig,
    MaskRaw,
    MaskRegions,
    draw,
    final_regions,
    mask_terms,
    object_masks,
    positive_regions,
)
from maskkit.nn.roi import PoolingConfig, RegionConfig, pool
from maskkit.nn.rpn import ProposalConfig, RpnHead, caffe_anchors
from maskkit.nn.two_stage import BINS, STRIDES, TwoStage
from maskkit.ranges import Count, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class PanetConfig(BackboneModelConfig):
    """Knobs of PANet; the defaults are the official ones."""

    width: Count = 256
    """Channels of the pyramid."""
    proposals: ProposalConfig = field(default_factory=lambda: ProposalConfig(smooth_l1=1 / 3))
    pooling: PoolingConfig = field(default_factory=lambda: PoolingConfig(aligned=False, sampling_ratio=2))
    regions: RegionConfig = field(default_factory=lambda: RegionConfig(smooth_l1=1 / 3))
    box_width: Count = 1024
    """Features of the box head's fully connected layers."""
    box_convs: Whole = 3
    """Convolutions of the box head behind the first one, which each level has for itself; 0 is the head of two fully
    connected layers, of which each level has the first for itself."""
    masks: bool = True
    """Without, a detector."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    mask_width: Count = 256
    """Channels of the mask head."""


def norm(channels: int) -> nn.GroupNorm:
    """Group norm in 32 groups, in fewer where these had less than four channels each."""
    return nn.GroupNorm(min(32, channels // 4), channels)


def conv(before: int, after: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """3x3 convolution and group norm."""
    layer = nn.Conv2d(before, after, 3, stride, 1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, norm(after))


class PathAggregation(nn.Module):
    """A feature pyramid with group norm, and the path that climbs up from its finest level again."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.fpn = Fpn(channels, width, 0, interpolation="nearest", relu=False, norm=norm)
        for layer, _ in self.fpn.output:  # type: ignore[misc]
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.down = nn.ModuleList(conv(width, width, stride=2, bias=True) for _ in channels[1:])
        self.output = nn.ModuleList(conv(width, width, bias=True) for _ in channels[1:])

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """N2 to N5, and N6, which is every second row and column of N5, for the proposals."""
        plain = self.fpn(features)  # P2 (B, w, H/4, W/4) to P5
        levels = plain[:1]
        for level, down, output in zip(plain[1:], self.down, self.output, strict=True):
            levels.append(F.relu(output(F.relu(down(levels[-1])) + level)))
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


def pool_every_level(
    levels: Sequence[Float[Tensor, "b c _ _"]],
    strides: Sequence[int],
    rois: Float[Tensor, "n 5"],
    bins: int,
    config: PoolingConfig,
) -> Float[Tensor, "l n c s s"]:
    """Features of regions from each of N2 to N5."""
    rois = rois - rois.new_tensor([0, 0, 0, 1, 1])  # they end with their last pixel
    each = zip(levels, strides, strict=True)
    return torch.stack([pool([level], [stride], rois, bins, config) for level, stride in each])


def fuse(layers: nn.ModuleList, pooled: Float[Tensor, "l n *s"]) -> Float[Tensor, "n *t"]:
    """Adaptive feature pooling: each level through its own layer, and of the answers the largest."""
    return torch.stack([F.relu(layer(level)) for layer, level in zip(layers, pooled, strict=True)]).amax(0)


class FusionBoxHead(nn.Module):
    """Class logits, background last, and box codes of regions that were pooled from every level."""

    def __init__(self, levels: int, channels: int, convs: int, width: int, num_classes: int) -> None:
        super().__init__()
        flat = channels * BINS * BINS
        if convs:
            self.first = nn.ModuleList(conv(channels, channels) for _ in range(levels))
            self.rest = nn.Sequential(
                *(nn.Sequential(conv(channels, channels), nn.ReLU()) for _ in range(convs)),
                nn.Flatten(),
                nn.Linear(flat, width),
                nn.ReLU(),
            )
        else:
            self.first = nn.ModuleList(
                nn.Sequential(nn.Flatten(), nn.Linear(flat, width), norm(width)) for _ in range(levels)
            )
            self.rest = nn.Sequential(nn.Linear(width, width), norm(width), nn.ReLU())
        self.label = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, num_classes * 4)
        nn.init.normal_(self.label.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.label, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "l n c s s"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k 4"]]:
        """Class logits (N, K + 1) and codes (N, K, 4)."""
        y = self.rest(fuse(self.first, pooled))
        return self.label(y), self.deltas(y).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Masks of classes by convolutions, one of foreground by a fully connected layer, and their sum (figure 4)."""

    def __init__(self, levels: int, channels: int, width: int, bins: int, num_classes: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(conv(channels, width) for _ in range(levels))
        self.shared = nn.Sequential(*(nn.Sequential(conv(width, width), nn.ReLU()) for _ in range(2)))
        self.main = nn.Sequential(conv(width, width), nn.ReLU())
        self.deconv = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.predictor = nn.Conv2d(width, num_classes, 1)
        self.side = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width // 2), nn.ReLU())
        self.foreground = nn.Linear(width // 2 * bins * bins, 4 * bins * bins)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.normal_(self.foreground.weight, std=0.001)
        for layer in (self.deconv, self.predictor, self.foreground):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def features(self, pooled: Float[Tensor, "l n c s s"]) -> tuple[Float[Tensor, "n d m m"], Float[Tensor, "n mm"]]:
        """What the masks of all classes are read from, and the foreground, which is never negative, row by row."""
        y = self.shared(fuse(self.first, pooled))
        return F.relu(self.deconv(self.main(y))), F.relu(self.foreground(self.side(y).flatten(1)))

    def forward(self, pooled: Float[Tensor, "l n c s s"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n m m"]:
        """Mask logits of each region for its class."""
        y, foreground = self.features(pooled)
        assert self.predictor.bias is not None
        weight, bias = self.predictor.weight[labels, :, 0, 0], self.predictor.bias[labels]
        return torch.einsum("ndhw,nd->nhw", y, weight) + bias[:, None, None] + foreground.view(-1, *y.shape[2:])


class Panet(TwoStage, Model[MaskRaw, ObjectMasks[Tensor] | Boxes[Tensor]]):
    """Mask R-CNN with bottom-up path augmentation, adaptive feature pooling and fully-connected fusion."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    config: PanetConfig
    fpn: PathAggregation
    box_head: FusionBoxHead

    def __init__(self, config: PanetConfig) -> None:
        backbone = Backbone.of(config.backbone, STRIDES[:-1])
        channels, classes = list(backbone.channels.values()), config.num_classes
        super().__init__(
            backbone,
            PathAggregation(channels, config.width),
            RpnHead(config.width, config.proposals.anchors_per_cell),
            FusionBoxHead(len(channels), config.width, config.box_convs, config.box_width, classes),
            proposals=config.proposals,
            pooling=config.pooling,
            regions=config.regions,
            anchors=caffe_anchors,
            pooler=pool_every_level,
        )
        self.config = config
        self.decoder = InBoxes("last_pixel") if config.masks else BoxesOnly()
        if config.masks:
            self.mask_head = MaskHead(len(channels), config.width, config.mask_width, config.mask.bins, classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> MaskRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, boxes = self.boxes(images, sizes, targets)
        regions = final_regions(self.detect(boxes)) if targets is None else positive_regions(boxes.sampled, targets)
        return MaskRaw(boxes, regions, self._masks(levels, regions))

    def _masks(self, levels: list[Tensor], regions: MaskRegions) -> Float[Tensor, "m s s"]:
        if not self.config.masks:
            return regions.rois.new_zeros(regions.rois.shape[0], 0, 0)
        bins = self.config.mask.bins
        return draw(regions, lambda rois, labels: self.mask_head(self.pool(levels, rois, bins), labels))

    def loss_terms(self, raw: MaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Faster R-CNN, cross entropy of known masks, and what boxes say about the others."""
        raw, config = in_fp32(raw), self.config
        terms = self.box_terms(raw.boxes, batch)
        return terms | mask_terms(*raw, batch, config.mask, config.box_only) if config.masks else terms

    def select(self, raw: MaskRaw) -> ObjectMasks[Tensor] | Boxes[Tensor]:
        """The final boxes and their masks."""
        found = object_masks(*raw)
        return found if self.config.masks else Boxes(found.boxes, found.labels, found.scores)
