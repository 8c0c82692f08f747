"""FCOS, the anchor-free detector under CondInst, BoxInst, BlendMask and PolarMask (Tian et al., ICCV 2019; TPAMI 2020).

Every location of every pyramid level is a sample: it predicts its class, the distances to the four sides of its box,
and how good that box is. A mask method lets each location predict something more (`extra`) on the box tower and reads
it where a box was found.

`FcosHead` gives `FcosRaw`. In training `fcos_loss` compares it with the label assignment of `maskkit.nn.fcos_targets`
and also returns the `Positives` for a mask loss; in inference `detect` gives `FcosDetections`. Distances are in units
of the stride inside the network and in `FcosRaw`, in pixels elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskkit.config import BackboneConfig
from maskkit.errors import MaskkitError
from maskkit.geometry.nms import class_nms
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import image_of, numbers
from maskkit.nn.fcos_targets import Positives, assign_locations, box_centres, find_positives, locate
from maskkit.nn.fpn import Fpn
from maskkit.nn.losses import normaliser
from maskkit.nn.rpn import clip, extents_of
from maskkit.ranges import Count, Positive, Share, Whole
from maskkit.targets import Batch


@dataclass(frozen=True)
class FcosDetectorConfig:
    """The detector, a part of every method on top of it; the defaults are the published ones for COCO."""

    width: Count = 256
    """Channels of the pyramid and of the towers."""
    tower_convs: Whole = 4
    """Convolutions in each of the two towers."""
    strides: tuple[Count, ...] = (8, 16, 32, 64, 128)
    """Levels P3, P4, P5 and those made from P5."""
    size_ranges: tuple[Positive, ...] = (64, 128, 256, 512)
    """Upper ends of the size ranges of all levels but the last, which has none. The size of an object at a location is
    the distance to the farthest side of its box, in pixels."""
    level_scales: bool = True
    """Whether the distances of each level are multiplied by a learned factor."""
    distance_activation: Literal["relu", "exp"] = "relu"
    """Keeps distances positive: ReLU, as in the official code, which can die in a short training with a high learning
    rate; or the exponential, as in the paper."""
    distance_unit: Literal["strides", "pixels"] = "strides"
    """What the box output counts in; pixels where the exponential is that of FCOS's first edition (mmdetection)."""
    tower_bias: bool = True
    """Whether the towers' convolutions have biases before their group norms."""
    radius: Positive = 1.5
    """Half side, in strides, of the square around an object's centre whose locations are positive."""
    quality: Literal["centerness", "iou"] = "centerness"
    """What the third output predicts: how central the location is in its box, or the IoU of the box."""
    quality_tower: Literal["box", "class"] = "box"
    """The tower that the third output reads."""
    score: Literal["root", "product"] = "root"
    """``root``: candidates are the best by class times quality, whose square root is their score (AdelaiDet);
    ``product``: they are the best by class alone, and class times quality is their score (mmdetection)."""
    score_with_quality: bool = False
    """Whether ``min_score`` is asked of class times quality instead of the class alone."""
    min_score: Share = 0.05
    candidates: Count = 1000
    """Pairs of location and class per level that enter NMS."""
    clip: bool = False
    """Whether boxes are cut at the image's border before NMS, and dropped where nothing is left (mmdetection)."""
    nms_threshold: Share = 0.6
    detections: Count = 100
    """Objects kept per image."""


class Strided(Protocol):
    """The config of a detector of this kind, as far as its levels go."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels, finest first."""
        ...


class FcosRaw(NamedTuple):
    """What the head says on each level, finest first."""

    logits: tuple[Float[Tensor, "b c _ _"], ...]
    distances: tuple[Float[Tensor, "b 4 _ _"], ...]
    """Distances to left, top, right, bottom in strides, never negative."""
    quality: tuple[Float[Tensor, "b 1 _ _"], ...]
    """Logits; no levels at all for a detector without them (RTMDet)."""
    extra: tuple[Float[Tensor, "b d _ _"], ...]
    """What the method predicts besides; no levels at all for the plain detector."""
    extents: Float[Tensor, "b 2"] | None = None
    """Width and height of each image inside the input; None where the whole input is image."""

    def float(self) -> "FcosRaw":
        """The same in fp32."""
        logits, distances, quality, extra = (tuple(level.float() for level in levels) for levels in self[:4])
        return FcosRaw(logits, distances, quality, extra, self.extents)


class FcosDetections(NamedTuple):
    """The K best boxes of each image after NMS, best first; a padding row has score 0."""

    boxes: Float[Tensor, "b k 4"]
    """``x1 y1 x2 y2`` in pixels of the input, clipped only where `FcosDetectorConfig.clip` says so."""
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    locations: Int[Tensor, "b k"]
    """Index into `Locations`."""
    extra: Float[Tensor, "b k d"]
    """What the location predicts besides."""


# network -------------------------------------------------------------------------------------------------------------


def pyramid(config: BackboneConfig, width: int, levels: int) -> tuple[Backbone, Fpn]:
    """Backbone and feature pyramid of ``levels`` maps with ``width`` channels; P6 comes from P5, P7 from ReLU(P6)."""
    backbone = Backbone.of(config)
    fpn = Fpn(
        list(backbone.channels.values()),
        width,
        extra=levels - 3,
        interpolation="nearest",
        relu=False,
        extra_kind="relu-conv",
    )
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return backbone, fpn


def extents_inside(
    images: Float[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"] | None, config: FcosDetectorConfig
) -> Float[Tensor, "b 2"] | None:
    """`FcosRaw.extents` of images, for the detectors that look at them."""
    return extents_of(images, sizes) if config.clip and sizes is not None else None


def require_whole_cells(images: Float[Tensor, "b 3 h w"]) -> None:
    """Raise `MaskkitError` for an input that P3 to P5 do not divide: their maps would not lie on each other."""
    height, width = images.shape[2:]
    if height % 32 or width % 32:
        raise MaskkitError(
            f"the network's input is {height} x {width} pixels; this method needs multiples of 32 "
            f"(--input.size {-(-height // 32) * 32} {-(-width // 32) * 32})"
        )


def tower(width: int, convs: int, bias: bool = True) -> nn.Sequential:
    """``convs`` 3x3 convolutions, each with group norm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        norm = nn.GroupNorm(min(32, width // 4), width)
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=bias), norm, nn.ReLU()]
    return nn.Sequential(*layers)


class FcosHead(nn.Module):
    """Two towers, one for all levels: classes on the first, distances, quality and ``extra`` channels on the second."""

    def __init__(self, config: FcosDetectorConfig, num_classes: int, extra: int = 0) -> None:
        super().__init__()
        width = config.width
        self.class_tower = tower(width, config.tower_convs, config.tower_bias)
        self.box_tower = tower(width, config.tower_convs, config.tower_bias)
        self.logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.sides = nn.Conv2d(width, 4, 3, padding=1)
        self.quality = nn.Conv2d(width, 1, 3, padding=1)
        self.extra = nn.Conv2d(width, extra, 3, padding=1) if extra else None
        self.config = config
        scaled = config.strides if config.level_scales else ()
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in scaled)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -4.595)  # a foreground probability of 0.01 (focal loss, section 4.1)

    def forward(
        self, levels: Sequence[Float[Tensor, "b c _ _"]], extents: Float[Tensor, "b 2"] | None = None
    ) -> FcosRaw:
        """Predictions on every level. ``extents`` are those of `FcosRaw`."""
        config = self.config
        logits, distances, quality, extra = [], [], [], []
        for i, level in enumerate(levels):
            classes, boxes = self.class_tower(level), self.box_tower(level)
            distance = self.sides(boxes) * (self.scales[i] if self.scales else 1)
            distance = distance.float().exp() if config.distance_activation == "exp" else F.relu(distance)
            logits.append(self.logits(classes))
            distances.append(distance / config.strides[i] if config.distance_unit == "pixels" else distance)
            quality.append(self.quality(boxes if config.quality_tower == "box" else classes))
            if self.extra is not None:
                extra.append(self.extra(boxes))
        return FcosRaw(tuple(logits), tuple(distances), tuple(quality), tuple(extra), extents)


# locations -----------------------------------------------------------------------------------------------------------


def flatten(levels: Sequence[Float[Tensor, "b d _ _"]]) -> Float[Tensor, "b p d"]:
    """All levels as one list of locations."""
    return torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)


def pick(
    levels: Sequence[Float[Tensor, "b d _ _"]], image: Int[Tensor, "n"], location: Int[Tensor, "n"]
) -> Float[Tensor, "n d"]:
    """Rows of n locations; reads these alone, which matters where a location has hundreds of channels."""
    picked = levels[0].new_zeros(location.shape[0], levels[0].shape[1])
    first = 0
    for level in levels:
        cells = level.shape[2] * level.shape[3]
        inside = (location >= first) & (location < first + cells)
        rows = level.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, d)
        rows = rows[image * cells + (location - first).clamp(0, cells - 1)]
        picked = torch.where(inside[:, None], rows, picked)
        first += cells
    return picked


# training ------------------------------------------------------------------------------------------------------------


def overlap(
    distances: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """IoU and GIoU of boxes around the same points, in strides.

    Intersection and union are each one square stride larger, as in the official code: small boxes count as better.
    """
    shared = (torch.minimum(distances, truth)[:, :2] + torch.minimum(distances, truth)[:, 2:]).prod(1)
    around = (torch.maximum(distances, truth)[:, :2] + torch.maximum(distances, truth)[:, 2:]).prod(1)
    union = (distances[:, :2] + distances[:, 2:]).prod(1) + (truth[:, :2] + truth[:, 2:]).prod(1) - shared
    iou = (shared + 1) / (union + 1)
    return iou, iou - (around - union) / around


def fcos_loss(
    raw: FcosRaw,
    batch: Batch,
    config: FcosDetectorConfig,
    centres: Sequence[Float[Tensor, "_ 2"]] | None = None,
    spread: bool = False,
) -> tuple[dict[str, Float[Tensor, ""]], Positives]:
    """The terms ``classification`` (focal), ``box`` (GIoU) and ``quality`` of an fp32 ``raw``, and the positives.

    ``centres`` are the objects' centres for every image; by default the centres of their boxes. With ``spread``
    locations are the corners of cells, and spread over the input (`maskkit.nn.fcos_targets.locate`).
    """
    locations = locate(raw.logits, config.strides, spread, spread)
    if centres is None:
        centres = [box_centres(t) for t in batch.targets]
    assignments = [
        assign_locations(t, c, locations, config.size_ranges, config.radius)
        for t, c in zip(batch.targets, centres, strict=True)
    ]
    classes = torch.stack([a.classes for a in assignments])  # (B, P)
    positives = find_positives(assignments, batch.targets, locations)
    count = normaliser(len(positives.label))

    truth = F.one_hot(classes.clamp(min=0), raw.logits[0].shape[1] + 1)[..., 1:].float()
    focal = sigmoid_focal_loss(flatten(raw.logits), truth, alpha=0.25, gamma=2)  # (B, P, K)
    distances = flatten(raw.distances)[positives.image, positives.location]
    quality = flatten(raw.quality)[positives.image, positives.location, 0]
    iou, giou = overlap(distances, positives.distances)
    if config.quality == "centerness":
        good, weight = positives.centerness, positives.centerness
        norm = normaliser(weight.sum(), 1e-6)
    else:
        good, weight, norm = iou.detach(), torch.ones_like(iou), count
    losses = {
        "classification": (focal * (classes >= 0)[..., None]).sum() / count,
        "box": ((1 - giou) * weight).sum() / norm,
        "quality": F.binary_cross_entropy_with_logits(quality, good, reduction="sum") / count,
    }
    return losses, positives


# inference -----------------------------------------------------------------------------------------------------------


def input_size(raw: FcosRaw, config: Strided) -> tuple[int, int]:
    """Height and width of the network's input, which the finest level divides."""
    rows, columns = raw.logits[0].shape[2:]
    return rows * config.strides[0], columns * config.strides[0]


def relative_boxes(found: FcosDetections, raw: FcosRaw, config: Strided) -> Float[Tensor, "b k 4"]:
    """Boxes relative to the network's input, and clipped to it."""
    height, width = input_size(raw, config)
    return (found.boxes / numbers((width, height, width, height), found.boxes)).clamp(0, 1)


def propose(raw: FcosRaw, config: FcosDetectorConfig, spread: bool = False) -> FcosDetections:
    """The ``candidates`` best pairs of location and class of every level that reach ``min_score``, before NMS.

    ``spread`` as in `fcos_loss`.
    """
    raw, ranks, scores = raw.float(), [], []
    for logits, quality in zip(raw.logits, raw.quality, strict=True):
        of_class = logits.sigmoid()
        score = of_class * quality.sigmoid()  # (B, K, h, w)
        passed = score if config.score_with_quality else of_class
        ranks.append(torch.where(passed > config.min_score, score if config.score == "root" else of_class, 0))
        scores.append(score)
    found = best_pairs(ranks, raw, config.strides, config.candidates, scores, spread, spread)
    if config.score == "root":
        found = found._replace(scores=found.scores.sqrt())
    if config.clip:
        whole = numbers(input_size(raw, config)[::-1], found.boxes).expand(found.boxes.shape[0], 2)
        boxes = clip(found.boxes, whole if raw.extents is None else raw.extents)
        score = found.scores * (boxes[..., 2:] > boxes[..., :2]).all(2)
        found = found._replace(boxes=boxes, scores=score)
    return found


def best_pairs(
    ranks: Sequence[Float[Tensor, "b k _ _"]],
    raw: FcosRaw,
    strides: Sequence[int],
    count: int,
    scores: Sequence[Float[Tensor, "b k _ _"]] | None = None,
    corners: bool = False,
    spread: bool = False,
) -> FcosDetections:
    """The ``count`` pairs of location and class of the highest ``ranks`` of every level, with the boxes of an fp32
    ``raw``.

    Pairs of rank 0 have the score 0, others that of ``scores``, or the rank itself. ``corners`` and ``spread`` say
    where locations lie (`maskkit.nn.fcos_targets.locate`). The `extra` have no columns.
    """
    values, labels, locations = [], [], []
    first = 0
    for i, rank in enumerate(ranks):
        cells = rank.shape[2] * rank.shape[3]
        best, order = rank.flatten(1).topk(min(count, rank.shape[1] * cells))  # of K h w pairs
        values.append(best if scores is None else scores[i].flatten(1).gather(1, order) * (best > 0))
        label = order // cells
        labels.append(label)
        locations.append(order - label * cells + first)
        first += cells
    location = torch.cat(locations, 1)  # (B, M)
    b, m = location.shape
    points = locate(raw.logits, strides, corners, spread)
    xy, stride = points.xy[location], points.stride[location]
    distances = pick(raw.distances, image_of(location), location.flatten()).view(b, m, 4) * stride[..., None]
    boxes = torch.cat([xy - distances[..., :2], xy + distances[..., 2:]], 2)
    return FcosDetections(boxes, torch.cat(labels, 1), torch.cat(values, 1), location, boxes.new_zeros(b, m, 0))


def detect(raw: FcosRaw, config: FcosDetectorConfig, spread: bool = False) -> FcosDetections:
    """The best boxes of each image after NMS class by class, with what their locations predict besides; ``spread`` as
    in `fcos_loss`."""
    found = propose(raw, config, spread)
    kept = class_nms(*found[:3], config.nms_threshold)
    return keep_best(found._replace(scores=found.scores * kept), raw, config.detections)


def keep_best(found: FcosDetections, raw: FcosRaw, count: int) -> FcosDetections:
    """The ``count`` best rows, best first, with the `extra` of their locations."""
    scores, order = found.scores.topk(min(count, found.scores.shape[1]))
    boxes = found.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    locations = found.locations.gather(1, order)
    extra = boxes.new_zeros(*order.shape, 0)
    if raw.extra:
        b, k = order.shape
        extra = pick(raw.extra, image_of(order), locations.flatten()).float().view(b, k, -1)
    return FcosDetections(boxes, found.labels.gather(1, order), scores, locations, extra)
