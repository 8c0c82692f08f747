"""The second stage: features of regions, the box branch on them, and the mask branch of Mask R-CNN.

A region of interest (RoI) is a row ``image x1 y1 x2 y2``, in input pixels. There are three ways to pool its features:

* *RoI Pooling* (Girshick, 2015) takes maxima and rounds twice: the RoI to whole cells of the map, then its bins. At
  stride 16 the first rounding alone moves an edge by up to eight pixels.
* *RoIAlign* (He et al., 2017) does not round: every bin is the mean of bilinear samples.
* RoIAlign with ``aligned`` also shifts by half a cell, since the value of a cell belongs to its centre (detectron2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from maskkit.geometry.boxes import LEAST_SIDE, has_area
from maskkit.geometry.nms import batched_nms
from maskkit.geometry.resample_tensors import taps, weighted_sums
from maskkit.nn.blocks import linear
from maskkit.nn.losses import normaliser
from maskkit.nn.rpn import BACKGROUND, Proposals, Weights, clip, decode, encode, match_boxes, sample
from maskkit.ranges import Count, Share, Weight, Whole
from maskkit.targets import Target

BOX_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
"""Weights of the box code of the second stage."""

_DENSE = 16
"""Dense masks of whole images that are in memory at a time."""


@dataclass(frozen=True)
class PoolingConfig:
    """How the features of regions are pooled; the defaults are detectron2's."""

    kind: Literal["align", "pool"] = "align"
    """RoIAlign or RoI Pooling."""
    aligned: bool = True
    """Whether RoIAlign takes the half cell into account (detectron2) or not (torchvision)."""
    sampling_ratio: Whole = 0
    """Samples of RoIAlign along each side of a bin; 0 takes as many as the bin has cells."""


@dataclass(frozen=True)
class RegionConfig:
    """Which regions the second stage learns from, and which boxes are kept of it; the defaults are detectron2's."""

    sampled: Count = 512
    """Regions per image in the loss."""
    positive: Share = 0.25
    """Largest share of positives among them."""
    iou: Share = 0.5
    """Least IoU of a positive region with its object."""
    crowd_overlap: Share = 0.7
    """Share of a region inside a crowd above which it is not background."""
    smooth_l1: Weight = 0.0
    """Where the smooth L1 loss of the boxes turns linear; 0 is L1."""
    min_score: Share = 0.05
    candidates: Count = 2000
    """Boxes of all classes that enter the last NMS."""
    nms_threshold: Share = 0.5
    detections: Count = 100
    """Objects kept per image."""
    bounded_shrink: bool = False
    """Whether no side shrinks by more than a factor of 62.5, as none grows by more (mmdetection)."""
    least_side: Weight = LEAST_SIDE
    """Boxes with a shorter side, in pixels of the input, are dropped; 0.01 in torchvision."""


class Sampled(NamedTuple):
    """Regions of the second stage, image by image; in training those that were sampled, positives first."""

    rois: Float[Tensor, "n 5"]
    matched: Int[Tensor, "n"]
    """Index of the object in its image's target, or `BACKGROUND`; always that in inference."""


class RankedBoxes(NamedTuple):
    """The K best boxes of each image in input pixels, best first; a padding row has score 0."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]


class BoxLosses(NamedTuple):
    """Terms of `box_loss`."""

    label: Float[Tensor, ""]
    box: Float[Tensor, ""]


def as_rois(boxes: Float[Tensor, "b r 4"]) -> Float[Tensor, "n 5"]:
    """Boxes of each image as regions, image by image."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None, None]
    return torch.cat([image.expand(*boxes.shape[:2], 1), boxes], 2).flatten(0, 1)


# features of regions --------------------------------------------------------------------------------------------------


def pyramid_level(rois: Float[Tensor, "n 5"], strides: Sequence[int]) -> Int[Tensor, "n"]:
    """The level that each region is pooled from (FPN, equation 1): stride 16 for 224 x 224 pixels.

    Of levels of one stride it is the first (torchvision).
    """
    side = (rois[:, 3:] - rois[:, 1:3]).prod(1).clamp(min=0).sqrt()
    level = torch.floor(torch.log2(16 * side / 224 / strides[0] + 1e-8) + 1e-6)
    return level.clamp(0, (strides[-1] // strides[0]).bit_length() - 1).long()


def pool(
    levels: Sequence[Float[Tensor, "b c _ _"]],
    strides: Sequence[int],
    rois: Float[Tensor, "n 5"],
    bins: int,
    config: PoolingConfig,
) -> Float[Tensor, "n c s s"]:
    """Features of each region, pooled to ``bins`` x ``bins`` from the level for its size."""
    which = pyramid_level(rois, strides)
    if len(levels) == 1:
        return _pooled(levels[0], rois, bins, strides[0], config)
    shape = (rois.shape[0], levels[0].shape[1], bins, bins)
    pooled = torch.empty(shape, device=rois.device, memory_format=torch.channels_last)
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        index = torch.nonzero(which == i)[:, 0]
        pooled[index] = _pooled(level, rois[index], bins, stride, config).to(pooled.dtype)
    return pooled


def _pooled(level: Tensor, rois: Tensor, bins: int, stride: int, config: PoolingConfig) -> Tensor:
    ratio, aligned = config.sampling_ratio, config.aligned
    if config.kind == "pool":
        return roi_pool(level.float(), rois, bins, 1 / stride)
    if ratio and level.device.type == "cpu" and not torch.compiler.is_exporting():
        return align_by_rows(level.float(), rois, bins, 1 / stride, aligned, ratio)
    return roi_align(level.float(), rois, bins, 1 / stride, ratio, aligned)


def align_by_rows(
    level: Float[Tensor, "b c h w"],
    rois: Float[Tensor, "n 5"],
    bins: int,
    scale: float,
    aligned: bool,
    sampling_ratio: int,
) -> Float[Tensor, "n c s s"]:
    """RoIAlign by `weighted_sums`: the same function as ``torchvision.ops.roi_align``, many times as fast on
    processors.

    Each bin is the weighted sum of four cells for each of its ``sampling_ratio`` squared samples.
    """
    height, width = level.shape[2:]
    x, x_share = _bin_taps(rois[:, 1], rois[:, 3], bins, width, scale, aligned, sampling_ratio)
    y, y_share = _bin_taps(rois[:, 2], rois[:, 4], bins, height, scale, aligned, sampling_ratio)
    image = rois[:, 0].long()[:, None, None, None, None]
    cells = (image * height + y[:, :, None, :, None]) * width + x[:, None, :, None, :]  # (N, s, s, 2r, 2r)
    shares = y_share[:, :, None, :, None] * x_share[:, None, :, None, :]
    rows = level.permute(0, 2, 3, 1).reshape(-1, level.shape[1])  # (B h w, C)
    return weighted_sums(rows, cells.flatten(3), shares.flatten(3)).permute(0, 3, 1, 2)


def _bin_taps(
    low: Float[Tensor, "n"], high: Float[Tensor, "n"], bins: int, cells: int, scale: float, aligned: bool, ratio: int
) -> tuple[Int[Tensor, "n s t"], Float[Tensor, "n s t"]]:
    """Along one axis, the cells that the samples of each bin lie between, and their shares in the bin."""
    low, high = low * scale, high * scale
    if aligned:
        low, high = low - 0.5, high - 0.5
    length = high - low if aligned else (high - low).clamp(min=1)
    bin, part = (torch.arange(n, device=low.device, dtype=low.dtype) for n in (bins, ratio))
    place = bin[:, None] + (part + 0.5) / ratio  # in bins
    at = low[:, None, None] + place * (length / bins)[:, None, None]  # (N, s, r)
    seen = (at >= -1) & (at <= cells)  # torchvision's rule: samples further out are zero
    near, shares = taps(at.clamp(0, cells - 1), cells)
    return near.flatten(2), (shares * seen[..., None] / ratio).flatten(2)


# the box branch -------------------------------------------------------------------------------------------------------


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits, background last, and a box code for every class.

    With ``alike`` one code serves all classes. Where ``convs`` lead to it there is one fully connected layer
    (torchvision's second version); they keep the number of ``channels``.
    """

    def __init__(
        self,
        channels: int,
        bins: int,
        width: int,
        num_classes: int,
        alike: bool = False,
        convs: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.convs = nn.ModuleList(convs)
        self.fc1 = nn.Linear(channels * bins * bins, width)
        self.fc2 = None if convs else nn.Linear(width, width)
        self.label = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 if alike else num_classes * 4)
        hidden = [layer for layer in (self.fc1, self.fc2) if layer is not None]
        for layer in hidden:
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.label.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (*hidden, self.label, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "n c s s"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k 4"]]:
        """Class logits (N, K + 1) and codes (N, K, 4)."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        y = linear(pooled.flatten(1), self.fc1.weight, self.fc1.bias, "relu")
        if self.fc2 is not None:
            y = linear(y, self.fc2.weight, self.fc2.bias, "relu")
        return self.label(y), self.deltas(y).unflatten(1, (-1, 4)).expand(-1, self.num_classes, -1)


def all_rois(boxes: Float[Tensor, "b r 4"]) -> Sampled:
    """All boxes of each image as regions without an object, as in inference."""
    rois = as_rois(boxes)
    return Sampled(rois, torch.full_like(rois[:, 0], BACKGROUND, dtype=torch.int64))


@torch.no_grad()
def sample_rois(proposals: Proposals, targets: Sequence[Target], config: RegionConfig) -> Sampled:
    """Sample ``config.sampled`` regions of each image, from its proposals and the boxes of its objects, to train the
    second stage."""
    real = [boxes[scores.isfinite()] for boxes, scores in zip(*proposals, strict=True)]
    return sample_boxes(real, targets, config)


@torch.no_grad()
def sample_boxes(boxes_of: Sequence[Float[Tensor, "_ 4"]], targets: Sequence[Target], config: RegionConfig) -> Sampled:
    """Sample ``config.sampled`` regions of each image, from some boxes and from those of its objects.

    At most the share ``config.positive`` of them is positive: they have an IoU of at least ``config.iou`` with their
    object.
    """
    rois, matched = [], []
    for b, (boxes, target) in enumerate(zip(boxes_of, targets, strict=True)):
        boxes = torch.cat([boxes, target.boxes[~target.crowd]])
        mine = match_boxes(boxes, target, config.iou, config.iou, crowd_overlap=config.crowd_overlap)
        chosen = torch.cat(sample(mine, config.sampled, config.positive))
        rois.append(F.pad(boxes[chosen], (1, 0), value=b))
        matched.append(mine[chosen])
    return Sampled(torch.cat(rois), torch.cat(matched))


def objects_of(sampled: Sampled, targets: Sequence[Target]) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Indices of the positive regions, and of their objects in the concatenation of all targets."""
    counts = torch.tensor([0] + [len(t) for t in targets[:-1]], device=sampled.rois.device)
    positive = torch.nonzero(sampled.matched != BACKGROUND)[:, 0]
    first = counts.cumsum(0)[sampled.rois[positive, 0].long()]
    return positive, first + sampled.matched[positive]


def box_loss(
    logits: Float[Tensor, "n d"],
    deltas: Float[Tensor, "n k 4"],
    sampled: Sampled,
    targets: Sequence[Target],
    beta: float,
    weights: Weights = BOX_WEIGHTS,
) -> BoxLosses:
    """Mean cross entropy of the regions, and smooth L1 loss of the positives' box codes, also divided by the number of
    regions."""
    positive, objects = objects_of(sampled, targets)
    labels = torch.cat([t.labels for t in targets])[objects]
    truth = torch.full((len(logits),), deltas.shape[1], device=logits.device)
    truth[positive] = labels
    wanted = encode(torch.cat([t.boxes for t in targets])[objects], sampled.rois[positive, 1:], weights)
    box = F.smooth_l1_loss(deltas[positive, labels], wanted, beta=beta, reduction="sum")
    rows = normaliser(len(logits))
    return BoxLosses(F.cross_entropy(logits, truth, reduction="sum") / rows, box / rows)


@torch.no_grad()
def refine(
    logits: Float[Tensor, "b r d"],
    deltas: Float[Tensor, "b r k 4"],
    boxes: Float[Tensor, "b r 4"],
    extents: Float[Tensor, "b 2"],
    config: RegionConfig,
    weights: Weights = BOX_WEIGHTS,
) -> RankedBoxes:
    """The ``config.candidates`` best refined boxes of all classes above ``config.min_score``, before NMS."""
    classes = deltas.shape[2]
    scores = logits.float().softmax(2)[..., :classes]  # (B, R, K)
    refined = decode(deltas.float(), boxes[:, :, None], weights, config.bounded_shrink)  # (B, R, K, 4)
    refined = clip(refined, extents)
    fine = (scores > config.min_score) & has_area(refined, config.least_side)
    scores = torch.where(fine, scores, 0).flatten(1)
    scores, order = scores.topk(min(config.candidates, scores.shape[1]))
    refined = refined.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 4)) * (scores > 0)[..., None]
    return RankedBoxes(refined, order % classes, scores)


def detect(
    logits: Float[Tensor, "b r d"],
    deltas: Float[Tensor, "b r k 4"],
    boxes: Float[Tensor, "b r 4"],
    extents: Float[Tensor, "b 2"],
    config: RegionConfig,
) -> RankedBoxes:
    """The ``config.detections`` best refined boxes above ``config.min_score`` after NMS within each class.

    Only the best ``config.candidates`` enter NMS; more would matter only if these leave too few.
    """
    return keep(refine(logits, deltas, boxes, extents, config), config)


@torch.no_grad()
def keep(found: RankedBoxes, config: RegionConfig) -> RankedBoxes:
    """The ``config.detections`` best boxes after NMS within each class."""
    scores = found.scores * batched_nms(found.boxes, found.scores, config.nms_threshold, found.labels)
    scores, order = scores.topk(min(config.detections, scores.shape[1]))
    return reordered(found, order, scores)


def reordered(found: RankedBoxes, order: Int[Tensor, "b k"], scores: Float[Tensor, "b k"]) -> RankedBoxes:
    """The boxes in the given ``order``, with new ``scores``."""
    return RankedBoxes(found.boxes.gather(1, order[..., None].expand(-1, -1, 4)), found.labels.gather(1, order), scores)


# the mask branch ------------------------------------------------------------------------------------------------------


def head_convs(channels: int, width: int, count: int, batch_norm: bool = False) -> list[nn.Module]:
    """The 3x3 convolutions of Mask R-CNN's mask head, or of a box head; batch norm takes the place of their biases."""
    convs: list[nn.Module] = []
    for i in range(count):
        conv = nn.Conv2d(width if i else channels, width, 3, padding=1, bias=not batch_norm)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        convs.append(nn.Sequential(conv, nn.BatchNorm2d(width)) if batch_norm else conv)
    return convs


class MaskHead(nn.Module):
    """``convs`` on the features of a region, upsampling by two, a mask for each class (Mask R-CNN, figure 4)."""

    def __init__(self, convs: Sequence[nn.Module], width: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.deconv = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.predictor = nn.Conv2d(width, num_classes, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def features(self, pooled: Float[Tensor, "n c s s"]) -> Float[Tensor, "n d m m"]:
        """The features that all mask logits are predicted from, at twice the resolution."""
        for conv in self.convs:
            pooled = F.relu(conv(pooled))
        return F.relu(self.deconv(pooled))

    def forward(self, pooled: Float[Tensor, "n c s s"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n m m"]:
        """Mask logits of each region for its class; those of other classes are not computed."""
        assert self.predictor.bias is not None
        weight, bias = self.predictor.weight[labels, :, 0, 0], self.predictor.bias[labels]
        return torch.einsum("ndhw,nd->nhw", self.features(pooled), weight) + bias[:, None, None]


@torch.no_grad()
def crop_masks(targets: Sequence[Target], sampled: Sampled, bins: int, aligned: bool = True) -> Float[Tensor, "n s s"]:
    """Mask targets: the mask of each region's object, cropped and resized to the region, soft at its edges.

    All ``sampled`` regions must be positive with a known mask.
    """
    crops = torch.zeros(len(sampled.rois), bins, bins, device=sampled.rois.device)
    for b, target in enumerate(targets):
        mine = torch.nonzero(sampled.rois[:, 0] == b)[:, 0]
        if len(mine) == 0 or target.masks is None:
            continue
        objects, place = sampled.matched[mine].unique(return_inverse=True)
        for first in range(0, len(objects), _DENSE):
            dense = target.masks[objects[first : first + _DENSE]].dense().to(crops.device, torch.float32)
            now = torch.nonzero((place >= first) & (place < first + _DENSE))[:, 0]
            rois = torch.cat([(place[now, None] - first).float(), sampled.rois[mine[now], 1:]], 1)
            crops[mine[now]] = roi_align(dense[:, None], rois, bins, 1.0, 0, aligned)[:, 0]
    return crops
