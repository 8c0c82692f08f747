"""SegNet: an encoder and a decoder that remembers where the maxima were.

Badrinarayanan, Kendall, Cipolla: "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation"
(TPAMI 2017).

VGG-16's thirteen convolutions pool five times and keep the places of the maxima. The decoder mirrors them: it puts each
value back to its place among zeros, which nothing has to learn and which keeps contours sharp, and lets convolutions
fill the gaps. The last one gives the scores.

=========  ============================  =================================
`Raw`      shape (360 x 480, CamVid)     meaning
=========  ============================  =================================
logits     (B, 11, 360, 480)             scores of every pixel
=========  ============================  =================================

The loss weighs classes by median frequency, taken from each batch where the official code takes it once from the whole
training set. Differences from the official code: batch norm keeps its statistics in the layer; images are RGB.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import ModelConfig
from maskkit.data.label_map import IGNORE
from maskkit.decode import LabelMap
from maskkit.decode.outputs import ClassLogits
from maskkit.models.base import Model
from maskkit.nn.backbones.vgg import LAYOUT, Vgg, VggShape
from maskkit.nn.semantic import pixel_loss, truth_of
from maskkit.ranges import Count
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class SegnetConfig(ModelConfig):
    """Knobs of SegNet. ``num_classes`` counts the background where the data have one."""

    layout: tuple[tuple[Count, ...], ...] = LAYOUT
    """Channels of the convolutions of each stage; VGG-16's by default."""
    ceil: bool = True
    """Pool a rest at the border too, as Caffe does."""
    norm_scores: bool = False
    """Batch norm and ReLU behind the scores too (a port's habit)."""
    median_frequency: bool = True
    """Weigh rare classes up in the loss."""


class SegnetRaw(NamedTuple):
    """What `Segnet.forward` gives; the module's docstring explains the field."""

    logits: Float[Tensor, "b k h w"]


class Decoder(nn.ModuleList):
    """The mirrored stages, deepest first; a unit is a 3x3 convolution, batch norm and ReLU."""

    def __init__(self, layout: tuple[tuple[int, ...], ...], classes: int, norm_scores: bool) -> None:
        outer = (classes, *(widths[-1] for widths in layout[:-1]))
        stages = []
        for widths, after in reversed(list(zip(layout, outer, strict=True))):
            channels = [widths[-1], *widths[:0:-1], after]
            units = [
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(channels)
            ]
            stages.append(nn.Sequential(*units))
        if not norm_scores:
            stages[-1][-1] = stages[-1][-1][:1]
        super().__init__(stages)


class Segnet(Model[SegnetRaw, ClassLogits[Tensor]]):
    """SegNet on VGG-16."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    supervision: ClassVar[frozenset[str]] = frozenset({"label_map"})
    decoder = LabelMap()
    config: SegnetConfig

    def __init__(self, config: SegnetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Vgg(VggShape(ceil=config.ceil, norm=True, layout=config.layout))
        self.upsampling = Decoder(config.layout, config.num_classes, config.norm_scores)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> SegnetRaw:
        """Raw outputs of normalised images."""
        x, pooled = images, []
        for number in range(len(self.config.layout)):
            size = (x.shape[2], x.shape[3])
            x, places = self.backbone.stage(number, x)
            pooled.append((size, places))
        for stage, (size, places) in zip(self.upsampling, reversed(pooled), strict=True):
            x = stage(unpool(x, places, size))
        return SegnetRaw(x)

    def loss_terms(self, raw: SegnetRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of every pixel, rare classes weighed up."""
        truth = truth_of(batch)
        weights = median_frequency(truth, raw.logits.shape[1]) if self.config.median_frequency else None
        return {"semantic": pixel_loss(raw.logits, truth, weights=weights)}

    def select(self, raw: SegnetRaw) -> ClassLogits[Tensor]:
        """The scores."""
        return ClassLogits(raw.logits)


def unpool(x: Float[Tensor, "b c h w"], places: Int[Tensor, "b c h w"], size: tuple[int, int]) -> Tensor:
    """Each value at its place in a plane of ``size`` (H, W), zeros elsewhere. Windows are 2 x 2 and do not overlap."""
    height, width = size
    if torch.compiler.is_exporting():  # OpenVINO takes six times as long for a scatter as for all the rest
        # a row or column that the pooling has left out stays empty, one that it has filled up is cut off
        rest = [0, width - 2 * x.shape[3], 0, height - 2 * x.shape[2]]
        spread, at = (F.pad(t.repeat_interleave(2, 2).repeat_interleave(2, 3), rest, value=-1) for t in (x, places))
        return torch.where(at == torch.arange(height * width, device=x.device).view(height, width), spread, 0)
    plane = x.new_zeros(x.shape[0], x.shape[1], height * width)
    return plane.scatter(2, places.flatten(2), x.flatten(2)).unflatten(2, size)


def median_frequency(truth: Int[Tensor, "b h w"], classes: int) -> Float[Tensor, "k"]:
    """Weights ``median(f) / f``, f the share of a class in the images that show it; 1 for absent classes."""
    counts = torch.stack([torch.bincount(t[t != IGNORE], minlength=classes) for t in truth]).double()  # (B, K)
    pixels = ((counts > 0) * counts.sum(1, keepdim=True)).sum(0)
    frequency = counts.sum(0) / pixels.clamp(min=1)
    seen = frequency > 0
    if not seen.any():
        return torch.ones(classes, device=truth.device)
    median = frequency[seen].quantile(0.5)
    return torch.where(seen, median / frequency.clamp(min=1e-12), 1.0).float()
