"""NanoDet-Plus, a one-stage detector of a million parameters (RangiLyu/nanodet, 2021).

ShuffleNetV2 and a pyramid of ghost modules (`maskkit.nn.backbones.nanodet`), and a small head for each of four levels.
Every location predicts its classes, whose scores estimate the IoU of its box too, and for each
side of the box a distribution over 0 to 7 strides, whose mean is the distance ("Generalized Focal Loss"; Li et al.,
NeurIPS 2020). Location (i, j) of stride s lies at pixel ``(j s, i s)``.

`NanoDetHead` gives `NanoDetRaw`; `maskkit.nn.nanodet_loss` trains it, `detect` finds objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.geometry.nms import class_nms
from maskkit.nn.backbones.nanodet import STAGE_UNITS, STAGE_WIDTHS, WIDTH, Separable
from maskkit.nn.blocks import image_of, numbers
from maskkit.nn.fcos import FcosDetections, flatten, pick
from maskkit.nn.fcos_targets import Locations, locate
from maskkit.ranges import Count, Share, Weight

STRIDES = (8, 16, 32, 64)


@dataclass(frozen=True)
class NanoDetConfig:
    """The detector; the defaults are the published NanoDet-Plus-m for COCO."""

    stage_widths: tuple[Count, Count, Count] = STAGE_WIDTHS
    """Channels of the backbone at strides 8, 16 and 32."""
    stage_units: tuple[Count, Count, Count] = STAGE_UNITS
    """Blocks of the backbone's stages."""
    width: Count = WIDTH
    """Channels of the pyramid and of the towers."""
    tower_convs: Count = 2
    """Pairs of a depthwise and a pointwise convolution in the tower of each level."""
    bins: Count = 8
    """Distances over which each side's distribution lies: 0 to ``bins - 1`` strides."""
    batch_norm: bool = False
    """Whether batch norm follows the convolutions, as a training from random weights needs. Without it they have
    biases, into which it is folded in trained weights."""
    assigned: Count = 13
    """Best boxes of an object whose IoUs sum up to the number of its positives."""
    classification_weight: Weight = 1.0
    overlap_weight: Weight = 2.0
    """Weight of the GIoU loss."""
    distribution_weight: Weight = 0.25
    """Weight of the distribution focal loss."""
    min_score: Share = 0.05
    candidates: Count = 1000
    """Pairs of location and class of an image that enter NMS."""
    nms_threshold: Share = 0.6
    detections: Count = 100
    """Objects kept per image."""


class NanoDetRaw(NamedTuple):
    """What the head says on each level, finest first."""

    logits: tuple[Float[Tensor, "b k _ _"], ...]
    sides: tuple[Float[Tensor, "b _ _ _"], ...]
    """Logits of the distances to left, top, right, bottom: ``bins`` each."""
    extra: tuple[Float[Tensor, "b d _ _"], ...]
    """What a method predicts besides; no levels at all for the plain detector."""


# network -------------------------------------------------------------------------------------------------------------


class NanoDetHead(nn.Module):
    """Classes and sides of every location: a tower for each level and two output convolutions."""

    def __init__(self, config: NanoDetConfig, num_classes: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(*(Separable(config.width, 1, config.batch_norm) for _ in range(config.tower_convs)))
            for _ in STRIDES
        )
        self.logits = nn.ModuleList(nn.Conv2d(config.width, num_classes, 1) for _ in STRIDES)
        self.sides = nn.ModuleList(nn.Conv2d(config.width, 4 * config.bins, 1) for _ in STRIDES)
        for convs, bias in ((self.logits, -4.595), (self.sides, 0.0)):  # a probability of 0.01
            for conv in convs:
                nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
                nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]

    def features(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """What the towers make of the levels."""
        return [tower(level) for tower, level in zip(self.towers, levels, strict=True)]

    def predict(
        self, features: Sequence[Float[Tensor, "b c _ _"]], extra: Sequence[Float[Tensor, "b d _ _"]] = ()
    ) -> NanoDetRaw:
        """Predictions on every level, from `features`, beside the ``extra`` ones."""
        logits, sides = (
            tuple(conv(x) for conv, x in zip(convs, features, strict=True)) for convs in (self.logits, self.sides)
        )
        return NanoDetRaw(logits, sides, tuple(extra))

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> NanoDetRaw:
        """Predictions on every level."""
        return self.predict(self.features(levels))


# locations -----------------------------------------------------------------------------------------------------------


def priors(raw: NanoDetRaw) -> Locations:
    """The locations of all levels: corners of cells, not their centres."""
    found = locate(raw.logits, STRIDES)
    return found._replace(xy=found.xy - found.stride[:, None] // 2)


def mean_distances(sides: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 4"]:
    """Mean of each side's distribution, in strides."""
    spread = sides.unflatten(-1, (4, sides.shape[-1] // 4)).softmax(-1)
    bins = torch.arange(spread.shape[-1], device=spread.device, dtype=spread.dtype)
    return spread @ bins


def boxes_around(xy: Float[Tensor, "*n 2"], distances: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Boxes of points and their distances to the sides, pixels."""
    return torch.cat([xy - distances[..., :2], xy + distances[..., 2:]], -1)


def all_boxes(raw: NanoDetRaw, locations: Locations) -> Float[Tensor, "b p 4"]:
    """The box of every location, pixels of the input, not clipped to it."""
    return boxes_around(locations.xy, mean_distances(flatten(raw.sides)) * locations.stride[:, None])


def boxes_at(raw: NanoDetRaw, image: Int[Tensor, "n"], location: Int[Tensor, "n"]) -> Float[Tensor, "n 4"]:
    """The boxes of n locations, pixels, clipped to the input."""
    points = priors(raw)
    distances = mean_distances(pick(raw.sides, image, location)) * points.stride[location][:, None]
    return torch.minimum(boxes_around(points.xy[location], distances).clamp(min=0), extent(raw))


# inference -----------------------------------------------------------------------------------------------------------


def extent(raw: NanoDetRaw) -> Float[Tensor, "4"]:
    """Width, height, width, height of the network's input in pixels."""
    rows, columns = raw.logits[0].shape[2:]
    height, width = rows * STRIDES[0], columns * STRIDES[0]
    return numbers((width, height, width, height), raw.logits[0])


def detect(raw: NanoDetRaw, config: NanoDetConfig) -> FcosDetections:
    """The best boxes of each image after NMS class by class, clipped to the input, with their locations' `extra`."""
    logits = flatten(raw.logits)  # (B, P, K)
    classes = logits.shape[2]
    best, order = logits.flatten(1).topk(min(config.candidates, logits.shape[1] * classes))
    location = order // classes
    label = order - location * classes
    scores = best.sigmoid()
    scores = torch.where(scores > config.min_score, scores, 0)
    b, m = location.shape
    boxes = boxes_at(raw, image_of(location), location.flatten()).view(b, m, 4)
    scores = scores * class_nms(boxes, label, scores, config.nms_threshold)
    return _keep(FcosDetections(boxes, label, scores, location, boxes.new_zeros(b, m, 0)), raw, config.detections)


def _keep(found: FcosDetections, raw: NanoDetRaw, count: int) -> FcosDetections:
    """The ``count`` best rows, best first, with the `extra` of their locations."""
    scores, order = found.scores.topk(min(count, found.scores.shape[1]))
    boxes = found.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    location: Int[Tensor, "b k"] = found.locations.gather(1, order)
    extra = boxes.new_zeros(*order.shape, 0)
    if raw.extra:
        b, k = order.shape
        extra = pick(raw.extra, image_of(order), location.flatten()).view(b, k, -1)
    return FcosDetections(boxes, found.labels.gather(1, order), scores, location, extra)
