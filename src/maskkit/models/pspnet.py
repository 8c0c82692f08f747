"""PSPNet: the pyramid scene parsing network.

Zhao, Shi, Qi, Wang, Jia: "Pyramid Scene Parsing Network" (CVPR 2017).

The last feature map is averaged over grids of 1, 2, 3 and 6 cells a side; the means, enlarged again, are joined to
every pixel's own features, so that the scene corrects what a pixel alone leaves open. A second head on the stage before
helps the training.

=========  ===========================  =====================================================
`Raw`      shape (473 x 473, VOC)       meaning
=========  ===========================  =====================================================
logits     (B, 21, 60, 60)              scores of the classes, their corners on the image's
others     (B, 21, 60, 60)              scores of the auxiliary head, used by the loss alone
=========  ===========================  =====================================================

Input sides have the form 8 n + 1, as the official code demands; other sides are refused, unless the decoder enlarges
the scores (mmsegmentation). Difference from the official code: the auxiliary head is there in evaluation too, but in
inference mode it is not run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import LabelMap
from maskkit.decode.outputs import ClassLogits
from maskkit.errors import MaskkitError
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import may_learn
from maskkit.nn.dilation import AtrousConv, LoneBatchNorm, ScoreHead, dilate
from maskkit.nn.semantic import pixel_loss, truth_of
from maskkit.ranges import Count, Weight
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class PspnetConfig(BackboneModelConfig):
    """Knobs of PSPNet. ``num_classes`` counts the background where the data have one."""

    bins: tuple[Count, ...] = (1, 2, 3, 6)
    """Cells a side of the grids."""
    width: Count = 512
    """Channels of the head; each grid is reduced to its share of the backbone's channels."""
    auxiliary: Weight = 0.4
    """Weight of the auxiliary loss."""
    auxiliary_width: Count = 256
    align_corners: bool = True
    """Whether the outermost cells lie on the outermost pixels (semseg); mmsegmentation has both kinds."""
    dilate_first: bool = True
    """Whether the block that loses its stride has the new dilation already (semseg), or that from before it."""
    via_input: bool = False
    """Whether scores go to the image by way of the network's input (mmsegmentation), not in one step."""


class PspnetRaw(NamedTuple):
    """What `Pspnet.forward` gives; the module's docstring explains the fields."""

    logits: Float[Tensor, "b k h w"]
    others: tuple[Float[Tensor, "b k h w"], ...]


class PyramidPooling(nn.Module):
    """Means over ever finer grids, reduced by 1x1 convolutions, enlarged and joined behind the features."""

    def __init__(self, channels: int, bins: Sequence[int], align_corners: bool = True) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.bins = tuple(bins)
        branches = [AtrousConv(channels, channels // len(bins)) for _ in bins]
        for bin, branch in zip(self.bins, branches, strict=True):
            if bin == 1:
                branch[1] = LoneBatchNorm(channels // len(bins))
        self.reduce = nn.ModuleList(branches)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Features and their surroundings, (B, 2C, h, w)."""
        means = [reduce(F.adaptive_avg_pool2d(x, bin)) for bin, reduce in zip(self.bins, self.reduce, strict=True)]
        size, corners = x.shape[2:], self.align_corners
        return torch.cat([x, *(F.interpolate(m, size=size, mode="bilinear", align_corners=corners) for m in means)], 1)


class Pspnet(Model[PspnetRaw, ClassLogits[Tensor]]):
    """The pyramid scene parsing network."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    supervision: ClassVar[frozenset[str]] = frozenset({"label_map"})
    config: PspnetConfig

    def __init__(self, config: PspnetConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = LabelMap(config.via_input, config.via_input and config.align_corners)
        self.enlarged = config.align_corners and not config.via_input
        """Whether `select` enlarges the scores to the input."""
        self.backbone = dilate(Backbone.of(config.backbone, (16, 32)), 8, first_block=config.dilate_first)
        deep, middle = self.backbone.channels[32], self.backbone.channels[16]
        self.pyramid = PyramidPooling(deep, config.bins, config.align_corners)
        joined = deep + len(config.bins) * (deep // len(config.bins))
        self.score = ScoreHead(joined, config.width, config.num_classes)
        self.auxiliary = ScoreHead(middle, config.auxiliary_width, config.num_classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> PspnetRaw:
        """Raw outputs of normalised images. Raises `MaskkitError` for sides that have to be 8 n + 1 and are not."""
        height, width = images.shape[2:]
        if self.enlarged and (height % 8 != 1 or width % 8 != 1):
            raise MaskkitError(
                f"PSPNet takes sides of 8 n + 1 pixels, not {height} x {width}; set --input.size 473 473"
            )
        features = self.backbone(images)
        others = (self.auxiliary(features[16]),) if may_learn() else ()
        return PspnetRaw(self.score(self.pyramid(features[32])), others)

    def loss_terms(self, raw: PspnetRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of every pixel for both heads."""
        truth, corners = truth_of(batch), self.config.align_corners
        main, second = (pixel_loss(logits, truth, align_corners=corners) for logits in (raw.logits, *raw.others))
        return {"semantic": main, "semantic/auxiliary": self.config.auxiliary * second}

    def select(self, raw: PspnetRaw) -> ClassLogits[Tensor]:
        """The scores, of every pixel of the input where the network enlarges them."""
        if not self.enlarged:
            return ClassLogits(raw.logits)
        size = [8 * (cells - 1) + 1 for cells in raw.logits.shape[2:]]
        return ClassLogits(F.interpolate(raw.logits, size=size, mode="bilinear", align_corners=True))
