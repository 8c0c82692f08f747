"""RefineNet: multi-path refinement from coarse to fine.

Lin, Milan, Shen, Reid: "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation" (CVPR
2017).

A ResNet keeps all its strides. Four blocks go from the coarsest features to the finest: each refines its own level by
residual units, adds the coarser path to it, gathers context by chained residual pooling, and refines the sum. All paths
are identities with something added, so that gradients reach every level.

=========  ============================  =================================
`Raw`      shape (500 x 500, VOC)        meaning
=========  ============================  =================================
logits     (B, 21, 125, 125)             scores of the classes
=========  ============================  =================================

The published port differs from the paper's figures in small things, and its weights are what we follow: every reducing
convolution is 3x3, the first convolution of a unit alone has a bias, pooling is chained four times.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import LabelMap
from maskkit.decode.outputs import ClassLogits
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.semantic import pixel_loss, truth_of
from maskkit.ranges import Count, Decay, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class RefinenetConfig(BackboneModelConfig):
    """Knobs of RefineNet. ``num_classes`` counts the background where the data have one."""

    widths: tuple[Count, Count, Count, Count] = (512, 256, 256, 256)
    """Channels of the four blocks, coarsest first."""
    pools: Whole = 4
    """Links of the chain of pooling."""
    dropout: Decay = 0.5
    """Of the two coarsest features and of what is scored."""


class RefinenetRaw(NamedTuple):
    """What `Refinenet.forward` gives; the module's docstring explains the field."""

    logits: Float[Tensor, "b k h w"]


def conv3x3(before: int, after: int, bias: bool = False) -> nn.Conv2d:
    """3x3 convolution of unchanged size."""
    return nn.Conv2d(before, after, 3, padding=1, bias=bias)


class ResidualUnit(nn.Module):
    """``x + conv(ReLU(conv(ReLU(x))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv3x3(width, width, bias=True), conv3x3(width, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refined features."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class ChainedPooling(nn.Module):
    """Ever wider 5x5 maxima, each convolved and added."""

    def __init__(self, width: int, pools: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(width, width) for _ in range(pools))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features with their surroundings."""
        link = x
        for conv in self.convs:
            link = conv(F.max_pool2d(link, 5, 1, 2))
            x = x + link
        return x


class Block(nn.Module):
    """A RefineNet block of ``width`` on features of ``channels``; ``coarser`` are those of the coarser path, if any."""

    def __init__(self, channels: int, width: int, coarser: int | None, after: int | None, pools: int) -> None:
        super().__init__()
        self.reduce = conv3x3(channels, width)
        self.adapt = nn.Sequential(ResidualUnit(width), ResidualUnit(width))
        self.join = conv3x3(width, width) if coarser is not None else None
        self.pool = ChainedPooling(width, pools)
        self.refine = nn.Sequential(*(ResidualUnit(width) for _ in range(3)))
        self.out = conv3x3(width, after) if after is not None else None

    def forward(self, x: Float[Tensor, "b c h w"], coarse: Float[Tensor, "b w y x"] | None) -> Float[Tensor, "b d h w"]:
        """Refined features at the size of ``x``; ``coarse`` comes from the block before."""
        y = self.adapt(self.reduce(x))
        if self.join is not None and coarse is not None:
            y = self.join(y) + F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=True)
        y = self.refine(self.pool(F.relu(y)))
        return y if self.out is None else self.out(y)


class Refinenet(Model[RefinenetRaw, ClassLogits[Tensor]]):
    """Four cascaded RefineNet blocks."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    supervision: ClassVar[frozenset[str]] = frozenset({"label_map"})
    decoder = LabelMap()
    config: RefinenetConfig

    def __init__(self, config: RefinenetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone.of(config.backbone, (4, 8, 16, 32))
        channels = list(self.backbone.channels.values())[::-1]
        after = [*config.widths[1:], None]
        before = [None, *config.widths[1:]]
        self.blocks = nn.ModuleList(
            Block(c, w, b, a, config.pools) for c, w, b, a in zip(channels, config.widths, before, after, strict=True)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.score = conv3x3(config.widths[-1], config.num_classes, bias=True)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> RefinenetRaw:
        """Raw outputs of normalised images."""
        levels = list(self.backbone(images).values())[::-1]  # stride 32 first
        path = None
        for i, (block, level) in enumerate(zip(self.blocks, levels, strict=True)):
            path = block(self.dropout(level) if i < 2 else level, path)
        assert path is not None
        return RefinenetRaw(self.score(self.dropout(path)))  # (B, K, H/4, W/4)

    def loss_terms(self, raw: RefinenetRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of every pixel."""
        return {"semantic": pixel_loss(raw.logits, truth_of(batch))}

    def select(self, raw: RefinenetRaw) -> ClassLogits[Tensor]:
        """The scores."""
        return ClassLogits(raw.logits)
