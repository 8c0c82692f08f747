"""PolarMask: instance segmentation with a polar representation.

Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo: "PolarMask: Single Shot Instance Segmentation with Polar Representation"
(CVPR 2020).

An outline is the lengths of 36 rays from a point inside it. So FCOS, which regresses the four distances to the sides
of a box, becomes an instance segmenter by a third tower with 36 distances. A location is positive near the centre of
mass of an object, and is the better, the more alike its rays are (polar centerness); the rays are learnt by the
polar IoU, the ratio of what the shorter and the longer of predicted and true rays cover.

==========  ====================================  ========================================================
`Raw`       shape (768 x 1280, COCO)              meaning, a tuple of the levels P3 to P7 each
==========  ====================================  ========================================================
logits      (B, 80, 96, 160) ... (B, 80, 6, 10)   class logits
distances   (B, 4, h, w)                          distances to left, top, right, bottom in pixels
centerness  (B, 1, h, w)                          logits
rays        (B, 36, h, w)                         lengths in pixels of the rays at 0, 10, ... 350 degrees
==========  ====================================  ========================================================

Angle 0 points down, 90 to the right. Rays end on border *pixels*, named by their numbers as in the official code; the
half pixel to their outer edges is added where masks are drawn. Scores are class * (centerness + 0.5), as released: up
to 1.5.

Masks are needed: a ray ends on the outline, of which a box says nothing. An object whose mask is unknown trains
its class and its box, weighted by FCOS' own centerness.

Differences from the official code, all deliberate: rays are found in the loss, for all locations of an object at
once; polygons are drawn without OpenCV, as depths on a coarse grid, and are not clipped corner by corner; crowds are
neither object nor background.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskkit.config import BackboneModelConfig
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry.nms import class_nms
from maskkit.models.base import Model
from maskkit.nn.blocks import numbers
from maskkit.nn.fcos import FcosDetections, flatten, pick, pyramid, require_whole_cells, tower
from maskkit.nn.fcos_targets import assign_locations, find_positives, locate
from maskkit.nn.losses import normaliser
from maskkit.nn.polar import fill, outlines, polar_centerness, polar_iou_loss, ray_targets
from maskkit.ranges import Count, Positive, Share, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class PolarDetectorConfig:
    """The detector of PolarMask; the defaults are the published ones for COCO."""

    width: Count = 256
    """Channels of the pyramid and of the towers."""
    tower_convs: Whole = 4
    """Convolutions in each of the three towers."""
    strides: tuple[Count, ...] = (8, 16, 32, 64, 128)
    """Levels P3, P4, P5 and those made from P5."""
    size_ranges: tuple[Positive, ...] = (64, 128, 256, 512)
    """Upper ends of the size ranges of all levels but the last, which has none, in pixels, as FCOS has them."""
    distance_unit: Literal["strides", "pixels"] = "pixels"
    """Unit of the distances and rays that the network gives; untrained it gives about 1. Strides are nearer to what
    objects need, which counts in short trainings."""
    radius: Positive = 1.5
    """Half side, in strides, of the square around an object's centre of mass whose locations are positive."""
    min_score: Share = 0.05
    """Class probability above which a pair of location and class is a candidate."""
    score_offset: Weight = 0.5
    """Added to the centerness in the score, because the polar one is small even at its best."""
    candidates: Count = 1000
    """Locations per level that are looked at."""
    pairs: Count = 4000
    """Pairs of location and class per image that enter NMS."""
    nms_threshold: Share = 0.5
    detections: Count = 100
    """Objects kept per image."""


@dataclass(frozen=True)
class PolarMaskConfig(BackboneModelConfig):
    """Knobs of PolarMask; the defaults are the published models for COCO."""

    detector: PolarDetectorConfig = field(default_factory=PolarDetectorConfig)
    rays: Count = 36
    """Number of rays; divides 360."""
    grid_stride: Count = 4
    """Input pixels per cell of the grid on which masks are drawn."""


class PolarMaskRaw(NamedTuple):
    """What `PolarMask.forward` gives; the module's docstring explains the fields."""

    logits: tuple[Float[Tensor, "b c _ _"], ...]
    distances: tuple[Float[Tensor, "b 4 _ _"], ...]
    centerness: tuple[Float[Tensor, "b 1 _ _"], ...]
    rays: tuple[Float[Tensor, "b n _ _"], ...]

    def float(self) -> "PolarMaskRaw":
        """The same in fp32."""
        return PolarMaskRaw(*(tuple(level.float() for level in levels) for levels in self))


# network -------------------------------------------------------------------------------------------------------------


class PolarHead(nn.Module):
    """Three towers, one for all levels: classes and centerness, boxes, rays."""

    def __init__(self, config: PolarDetectorConfig, num_classes: int, rays: int) -> None:
        super().__init__()
        width = config.width
        self.class_tower, self.box_tower, self.ray_tower = (
            tower(width, config.tower_convs, bias=False) for _ in range(3)
        )
        self.logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.sides = nn.Conv2d(width, 4, 3, padding=1)
        self.rays = nn.Conv2d(width, rays, 3, padding=1)
        self.units = config.strides if config.distance_unit == "strides" else (1,) * len(config.strides)
        self.side_scales = nn.ParameterList(torch.ones(()) for _ in config.strides)
        self.ray_scales = nn.ParameterList(torch.ones(()) for _ in config.strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -4.595)  # a foreground probability of 0.01 (focal loss, section 4.1)

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> PolarMaskRaw:
        """Predictions on every level."""
        logits, distances, centerness, rays = [], [], [], []
        for level, unit, side_scale, ray_scale in zip(
            levels, self.units, self.side_scales, self.ray_scales, strict=True
        ):
            classes = self.class_tower(level)
            logits.append(self.logits(classes))
            distances.append((self.sides(self.box_tower(level)) * side_scale).float().exp() * unit)
            centerness.append(self.centerness(classes))
            rays.append((self.rays(self.ray_tower(level)) * ray_scale).float().exp() * unit)
        return PolarMaskRaw(tuple(logits), tuple(distances), tuple(centerness), tuple(rays))


class PolarMask(Model[PolarMaskRaw, ObjectMasks[Tensor]]):
    """FCOS with rays."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    decoder = OverInput()
    config: PolarMaskConfig

    def __init__(self, config: PolarMaskConfig) -> None:
        super().__init__()
        self.config = config
        detector = config.detector
        self.backbone, self.fpn = pyramid(config.backbone, detector.width, len(detector.strides))
        self.head = PolarHead(detector, config.num_classes, config.rays)

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> PolarMaskRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        return self.head(self.fpn(list(self.backbone(images).values())))

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: PolarMaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Focal, IoU, centerness and polar IoU terms (section 3.4)."""
        raw = raw.float()
        config = self.config.detector
        locations = locate(raw.logits, config.strides)
        found = [outlines(target) for target in batch.targets]
        assignments = [
            assign_locations(t, o.centres, locations, config.size_ranges, config.radius)
            for t, o in zip(batch.targets, found, strict=True)
        ]
        classes = torch.stack([a.classes for a in assignments])  # (B, P)
        positives = find_positives(assignments, batch.targets, locations)
        truth = ray_targets(positives, found, locations.xy, self.config.rays)
        known = truth.amax(1) > 0  # an object without an outline has no rays
        central = polar_centerness(truth[known])
        weight = positives.centerness.masked_scatter(known, central)

        where = positives.image, positives.location
        distances, rays, centerness = (pick(levels, *where) for levels in (raw.distances, raw.rays, raw.centerness))
        overlap = aligned_iou(distances, positives.distances * locations.stride[positives.location, None])
        labels = F.one_hot(classes.clamp(min=0), self.config.num_classes + 1)[..., 1:].float()
        focal = sigmoid_focal_loss(flatten(raw.logits), labels, alpha=0.25, gamma=2)  # (B, P, K)
        return {
            "classification": (focal * (classes >= 0)[..., None]).sum() / normaliser(len(positives.label) + len(batch)),
            "box": (-overlap.log() * weight).sum() / normaliser(weight.sum(), 1e-6),
            "quality": F.binary_cross_entropy_with_logits(centerness[known, 0], central, reduction="sum")
            / normaliser(len(central)),
            "mask": (polar_iou_loss(rays[known], truth[known]) * central).sum() / normaliser(central.sum(), 1e-6),
        }

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: PolarMaskRaw) -> ObjectMasks[Tensor]:
        """NMS on the boxes, then the polygons of what is left."""
        stride = self.config.detector.strides[0]
        size = raw.logits[0].shape[2] * stride, raw.logits[0].shape[3] * stride
        found = self.detect(raw, size)
        grid = size[0] // self.config.grid_stride, size[1] // self.config.grid_stride
        origins = locate(raw.logits, self.config.detector.strides).xy[found.locations]
        masks = fill(origins, found.extra, grid, self.config.grid_stride)
        relative = found.boxes / numbers((size[1], size[0], size[1], size[0]), found.boxes)
        return ObjectMasks(relative, found.labels, found.scores, masks, found.scores)

    def detect(self, raw: PolarMaskRaw, size: tuple[int, int]) -> FcosDetections:
        """The best boxes of each image, clipped to ``size`` (H, W), with their rays as ``extra``."""
        config = self.config.detector
        raw = raw.float()
        scores, places = [], []
        first = 0
        for logits, centerness in zip(raw.logits, raw.centerness, strict=True):
            of_class, central = logits.sigmoid().flatten(2), centerness.sigmoid().flatten(2)  # (B, K, p), (B, 1, p)
            best = (of_class * central).amax(1).topk(min(config.candidates, of_class.shape[2])).indices  # (B, m)
            score = torch.where(of_class > config.min_score, of_class * (central + config.score_offset), 0)
            scores.append(score.gather(2, best[:, None].expand(-1, score.shape[1], -1)))
            places.append(best + first)
            first += of_class.shape[2]
        score, place = torch.cat(scores, 2), torch.cat(places, 1)  # (B, K, M), (B, M)
        score, order = score.flatten(1).topk(min(config.pairs, score[0].numel()))  # (B, T)
        labels = order // place.shape[1]
        place = place.gather(1, order - labels * place.shape[1])  # `%` of an open size is not in ONNX

        b, t = place.shape
        image = torch.arange(b, device=place.device)[:, None].expand(-1, t)
        xy = locate(raw.logits, config.strides).xy[place]  # (B, T, 2)
        distances = pick(raw.distances, image.flatten(), place.flatten()).view(b, t, 4)
        limit = numbers((size[1], size[0]), distances)
        low, high = (torch.minimum(p.clamp(min=0), limit) for p in (xy - distances[..., :2], xy + distances[..., 2:]))
        # NMS counts the last pixel in, as all of mmdetection 1 did
        kept = class_nms(torch.cat([low, high + 1], 2), labels, score, config.nms_threshold)
        score, best = (score * kept).topk(min(config.detections, t))
        place, boxes = place.gather(1, best), torch.cat([low, high], 2)
        k = best.shape[1]
        rays = pick(raw.rays, image[:, :k].flatten(), place.flatten()).view(b, k, -1)
        return FcosDetections(
            boxes.gather(1, best[..., None].expand(-1, -1, 4)), labels.gather(1, best), score, place, rays
        )


def aligned_iou(distances: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """IoU of boxes around the same points, in pixels of which the last one counts (mmdetection 1)."""

    def cover(s: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
        return (s[:, :2] + s[:, 2:] + 1).prod(1)

    shared = cover(torch.minimum(distances, truth))
    return (shared / (cover(distances) + cover(truth) - shared)).clamp(min=1e-6)
