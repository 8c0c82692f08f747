"""RTMDet, an anchor-free detector without centerness: its head, mask branch, label assignment and loss.

Lyu et al.: "RTMDet: An Empirical Study of Designing Real-Time Object Detectors" (2022). Locations, distances and what a
location predicts besides are those of `maskkit.nn.fcos`, except that a location lies at the upper left corner of its
cell. What differs is who learns what: no size ranges and no radius, but a cost for every pair of location and object
that is made of the network's own predictions (`assign`), and the IoU of the predicted box as the class target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from maskkit.geometry.nms import class_nms
from maskkit.nn.blocks import numbers
from maskkit.nn.csp import conv_unit
from maskkit.nn.dynamic_mask import DynamicHeadConfig, MaskBranchRaw
from maskkit.nn.fcos import FcosDetections, FcosRaw, best_pairs, flatten, input_size, keep_best
from maskkit.nn.fcos_targets import Locations, distances_to_sides, locate
from maskkit.nn.losses import normaliser
from maskkit.nn.rpn import clip
from maskkit.nn.soft_labels import match_costs, shares_of
from maskkit.ranges import Count, Share, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class RtmDetectorConfig:
    """The detector; the defaults are the published ones of the size tiny for COCO."""

    width: Count = 96
    """Channels of the neck's levels and of the towers."""
    neck_blocks: Count = 1
    """Blocks in each layer of the neck."""
    tower_convs: Whole = 2
    """Convolutions of each tower."""
    distance_activation: Literal["relu", "exp"] = "relu"
    """Keeps distances positive: ReLU, as published, or the exponential."""
    overlaps: Count = 13
    """The best IoUs of an object with predicted boxes; their sum says how many locations learn it."""
    box_weight: Weight = 2.0
    """Weight of the box loss."""
    min_score: Share = 0.05
    candidates: Count = 1000
    """Pairs of location and class per level that enter NMS."""
    nms_threshold: Share = 0.6
    detections: Count = 100
    """Objects kept per image."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels P3, P4 and P5."""
        return 8, 16, 32


# network -------------------------------------------------------------------------------------------------------------


class RtmHead(nn.Module):
    """One tower for classes and distances, whose convolutions serve all levels while norms belong to one.

    Every level has its own outputs, and its own second tower for the ``extra`` channels.

    In the official code the tower is run twice, for classes and for boxes, because its two towers are the same module:
    in training the statistics of its norms move twice in a step. Here it runs once, with the momentum of two moves.
    """

    def __init__(self, config: RtmDetectorConfig, num_classes: int, extra: int = 0) -> None:
        super().__init__()
        width, levels, convs = config.width, range(len(config.strides)), range(config.tower_convs)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in convs)
        twice = 1 - (1 - 0.1) ** 2
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(width, momentum=twice) for _ in convs) for _ in levels)
        self.logits = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in levels)
        self.sides = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in levels)
        self.extra_towers = nn.ModuleList(
            nn.Sequential(*(conv_unit(width, width, 3) for _ in convs)) for _ in levels if extra
        )
        self.extra = nn.ModuleList(nn.Conv2d(width, extra, 1) for _ in levels if extra)
        self.exponential = config.distance_activation == "exp"
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for classes, sides in zip(self.logits, self.sides, strict=True):
            nn.init.constant_(classes.bias, -4.595)  # type: ignore[arg-type]  # a probability of 0.01
            nn.init.constant_(sides.bias, 0.0 if self.exponential else 1.0)  # type: ignore[arg-type]  # one stride

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> FcosRaw:
        """Predictions on every level; there is no `FcosRaw.quality`."""
        logits, distances, extra = [], [], []
        for i, level in enumerate(levels):
            x = level
            for conv, norm in zip(self.convs, self.norms[i], strict=True):  # type: ignore[arg-type]
                x = F.silu(norm(conv(x)), inplace=True)
            logits.append(self.logits[i](x))
            sides = self.sides[i](x)
            distances.append(sides.float().exp() if self.exponential else F.relu(sides))
            if len(self.extra):
                extra.append(self.extra[i](self.extra_towers[i](level)))
        return FcosRaw(tuple(logits), tuple(distances), (), tuple(extra))


class MaskFusion(nn.Module):
    """P3, P4 and P5, enlarged and joined on P3, mixed by a 1x1 convolution, a few 3x3 ones, a few channels.

    The levels have ``before`` channels.
    """

    def __init__(self, config: DynamicHeadConfig, before: int, levels: int = 3) -> None:
        super().__init__()
        width = config.branch_width
        self.fuse = nn.Conv2d(levels * before, width, 1)
        self.tower = nn.Sequential(
            *(conv_unit(width, width, 3) for _ in range(config.branch_convs)), nn.Conv2d(width, config.mask_channels, 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> MaskBranchRaw:
        """Mask features on the grid of P3, of the levels P3 to P5."""
        enlarged = [
            F.interpolate(level, scale_factor=2.0**i, mode="bilinear") if i else level for i, level in enumerate(levels)
        ]
        return MaskBranchRaw(self.tower(self.fuse(torch.cat(enlarged, 1))), None)


# training ------------------------------------------------------------------------------------------------------------


class SoftAssignment(NamedTuple):
    """The label assignment of one image."""

    objects: Int[Tensor, "p"]
    """Index of the object in the image's target, crowds counted; -1 for background."""
    overlaps: Float[Tensor, "p"]
    """IoU of the predicted box with the box of that object; 0 for background."""


class SoftPositives(NamedTuple):
    """The n locations of a batch that have an object."""

    image: Int[Tensor, "n"]
    location: Int[Tensor, "n"]
    """Index into `Locations`."""
    object: Int[Tensor, "n"]
    """Index into the image's target."""
    overlap: Float[Tensor, "n"]
    """IoU of the predicted box with that of the object."""


class LocationLosses(NamedTuple):
    """The losses of single locations, not weighted."""

    classes: Float[Tensor, "b p"]
    """Quality focal loss, summed over the classes."""
    boxes: Float[Tensor, "n"]
    """GIoU loss of the positives, times their `SoftPositives.overlap`."""
    positives: SoftPositives


class Costs(NamedTuple):
    """What it would cost that a location learns an object, for the M locations inside an object and N objects."""

    locations: Int[Tensor, "m"]
    """Indices of the locations that are strictly inside the box of any object."""
    objects: Int[Tensor, "n"]
    """Indices of the objects that are not crowds."""
    overlaps: Float[Tensor, "m n"]
    """IoU of the predicted box with the object's."""
    costs: Float[Tensor, "m n"]


@torch.no_grad()
def costs_of(
    logits: Float[Tensor, "p k"],
    boxes: Float[Tensor, "p 4"],
    target: Target,
    centres: Float[Tensor, "n 2"],
    locations: Locations,
) -> Costs:
    """The costs of an image, of its predicted class logits and ``boxes`` (pixels); section 3.3, equations 1 to 4.

    The sum of three: how far the class scores are from what they would have to be, which is the IoU at the object's
    class and 0 elsewhere (quality focal loss); ``-3 ln(IoU)``; and ``10^(d - 3)`` for the distance ``d``, in strides,
    to the object's centre.
    """
    objects = torch.nonzero(~target.crowd)[:, 0]
    truth, labels = target.boxes[objects], target.labels[objects]
    inside = (distances_to_sides(locations.xy[:, None], truth) > 0).all(2).any(1)
    where = torch.nonzero(inside)[:, 0]
    costs, overlaps = match_costs(logits[where], boxes[where], labels, truth)  # (M, N)
    away = (locations.xy[where, None] - centres[objects]).norm(dim=2) / locations.stride[where, None]
    return Costs(where, objects, overlaps, costs + 10 ** (away - 3))


@torch.no_grad()
def assign(costs: Costs, count: int, best: int) -> SoftAssignment:
    """Label assignment of ``count`` locations (section 3.3): every object takes those of the lowest costs.

    A location that several objects take learns the one that is cheapest for it. ``best`` is `shares_of`'s.
    """
    objects = torch.full((count,), -1, device=costs.locations.device)
    overlaps = costs.overlaps.new_zeros(count)
    if costs.costs.numel() == 0:
        return SoftAssignment(objects, overlaps)
    shares = shares_of(costs.overlaps, best)  # (N,)
    cheapest = costs.costs.topk(min(best, len(costs.costs)), 0, largest=False).indices  # (best, N)
    rank = torch.arange(len(cheapest), device=shares.device)[:, None]
    taken = torch.zeros_like(costs.costs, dtype=torch.bool).scatter(0, cheapest, rank < shares)  # (M, N)
    choice = torch.where(taken.sum(1) > 1, costs.costs.argmin(1), taken.float().argmax(1))
    rows = torch.nonzero(taken.any(1))[:, 0]
    objects[costs.locations[rows]] = costs.objects[choice[rows]]
    overlaps[costs.locations[rows]] = costs.overlaps[rows, choice[rows]]
    return SoftAssignment(objects, overlaps)


def boxes_of(raw: FcosRaw, locations: Locations) -> Float[Tensor, "b p 4"]:
    """Predicted boxes of all locations, ``x1 y1 x2 y2`` in pixels, not clipped."""
    distances = flatten(raw.distances) * locations.stride[:, None]
    return torch.cat([locations.xy - distances[..., :2], locations.xy + distances[..., 2:]], -1)


def location_losses(
    raw: FcosRaw, batch: Batch, config: RtmDetectorConfig, centres: Sequence[Float[Tensor, "_ 2"]]
) -> LocationLosses:
    """What each location has to learn, and how far it is from that; for the arguments see `rtm_loss`."""
    locations = locate(raw.logits, config.strides, corners=True)
    logits, boxes = flatten(raw.logits), boxes_of(raw, locations)  # (B, P, K), (B, P, 4)
    of_classes, of_boxes, found = [], [], []
    for b, (target, middle) in enumerate(zip(batch.targets, centres, strict=True)):
        costs = costs_of(logits[b], boxes[b], target, middle, locations)
        objects, overlaps = assign(costs, len(locations.xy), config.overlaps)
        where = torch.nonzero(objects >= 0)[:, 0]
        quality, of = overlaps[where], objects[where]
        truth = torch.zeros_like(logits[b])
        truth[where, target.labels[of]] = quality
        wrong = F.binary_cross_entropy_with_logits(logits[b], truth, reduction="none")
        focal = wrong * (truth - logits[b].sigmoid()).square()  # (P, K)
        of_classes.append(focal.sum(1) * counted(target, objects, locations))
        of_boxes.append(generalized_box_iou_loss(boxes[b, where], target.boxes[of], eps=1e-6) * quality)
        found.append(SoftPositives(torch.full_like(where, b), where, of, quality))
    positives = SoftPositives(*(torch.cat(column) for column in zip(*found, strict=True)))
    return LocationLosses(torch.stack(of_classes), torch.cat(of_boxes), positives)


def rtm_loss(
    raw: FcosRaw, batch: Batch, config: RtmDetectorConfig, centres: Sequence[Float[Tensor, "_ 2"]]
) -> tuple[dict[str, Float[Tensor, ""]], SoftPositives]:
    """The terms ``classification`` (quality focal) and ``box`` (GIoU) of an fp32 ``raw``, and the positives.

    Both are divided by the sum of the positives' IoUs. ``centres`` are the objects' centres for every image.
    Background inside a crowd is ignored.
    """
    classes, boxes, positives = location_losses(raw, batch, config, centres)
    norm = normaliser(positives.overlap.sum())
    return {"classification": classes.sum() / norm, "box": config.box_weight * boxes.sum() / norm}, positives


def counted(target: Target, objects: Int[Tensor, "p"], locations: Locations) -> Float[Tensor, "p"]:
    """1 for the locations that have an object or lie outside all crowds, 0 for the others."""
    crowds = target.boxes[target.crowd]
    within = (distances_to_sides(locations.xy[:, None], crowds) > 0).all(2).any(1)
    return (~within | (objects >= 0)).float()


# inference -----------------------------------------------------------------------------------------------------------


def rtm_detect(raw: FcosRaw, config: RtmDetectorConfig) -> FcosDetections:
    """The best boxes of each image after NMS class by class, clipped to the input, of an fp32 ``raw``.

    The score is that of the class alone.
    """
    scores = [level.sigmoid() for level in raw.logits]
    scores = [torch.where(score > config.min_score, score, 0) for score in scores]
    found = best_pairs(scores, raw, config.strides, config.candidates, corners=True)
    boxes = clip(found.boxes, numbers(input_size(raw, config)[::-1], found.boxes).expand(found.boxes.shape[0], 2))
    score = found.scores * (boxes[..., 2:] > boxes[..., :2]).all(-1)
    kept = class_nms(boxes, found.labels, score, config.nms_threshold)
    return keep_best(found._replace(boxes=boxes, scores=score * kept), raw, config.detections)
