"""Masks by dynamic filters on top of FCOS: what CondInst and BoxInst are made of (Tian, Shen, Chen, ECCV 2020).

Each location of the detector predicts, beside its box, all weights of a tiny network of 1x1 convolutions. Applied to
the few channels that `MaskBranch` makes of the whole image, with the offsets to the location as two channels more,
that network draws the mask of its object and of no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskkit.config import BoxOnly
from maskkit.geometry.nms import mask_nms
from maskkit.nn.blocks import may_learn
from maskkit.nn.fcos import (
    FcosDetections,
    FcosDetectorConfig,
    FcosRaw,
    detect,
    keep_best,
    pick,
    propose,
)
from maskkit.nn.fcos_targets import locate
from maskkit.nn.losses import dice_loss, mask_loss_from_boxes, normaliser
from maskkit.ranges import Count, Whole
from maskkit.targets import Batch, Target

P = TypeVar("P", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class DynamicHeadConfig:
    """The mask branch and the dynamic heads."""

    branch_width: Count = 128
    """Channels inside the mask branch."""
    branch_convs: Whole = 4
    """Convolutions of the mask branch after the levels are put together."""
    mask_channels: Count = 8
    """What the mask branch gives to every dynamic head."""
    head_width: Count = 8
    """Channels of the dynamic convolutions."""
    head_convs: Whole = 3

    @property
    def head_widths(self) -> list[int]:
        """Channels between the dynamic convolutions, from input to output."""
        return [self.mask_channels + 2, *[self.head_width] * (self.head_convs - 1), 1]

    @property
    def head_parameters(self) -> int:
        """Numbers that make up one dynamic head: weights and biases."""
        return sum(before * after + after for before, after in pairwise(self.head_widths))


@dataclass(frozen=True)
class DynamicMaskConfig(DynamicHeadConfig):
    """Both, and which masks are kept; the defaults are the published CondInst for COCO."""

    nms: Literal["boxes", "masks"] = "boxes"
    """What must not overlap. With ``masks`` no box has a part in the result."""
    mask_candidates: Count = 500
    """Best candidates of an image whose masks are compared, for ``nms`` ``masks``."""


class MaskBranchRaw(NamedTuple):
    """What `MaskBranch` makes of the whole image, on the resolution of P3."""

    features: Float[Tensor, "b c h w"]
    """The maps that all dynamic heads read."""
    semantic: Float[Tensor, "b k h w"] | None
    """Semantic logits where the auxiliary loss is on; None in inference mode."""

    def float(self) -> "MaskBranchRaw":
        """The same in fp32."""
        return MaskBranchRaw(self.features.float(), None if self.semantic is None else self.semantic.float())


class DynamicMaskRaw(NamedTuple):
    """Detector and mask branch."""

    detector: FcosRaw
    """`FcosRaw.extra` are the parameters of each location's dynamic head."""
    branch: MaskBranchRaw

    def float(self) -> "DynamicMaskRaw":
        """The same in fp32."""
        return DynamicMaskRaw(self.detector.float(), self.branch.float())


# network -------------------------------------------------------------------------------------------------------------


class MaskBranch(nn.Module):
    """P3, P4 and P5, each through a convolution, added up on P3, four convolutions, a few channels.

    The levels have ``before`` channels. Semantic logits of ``semantic`` classes come from P3 alone; 0 builds no such
    output.
    """

    def __init__(self, config: DynamicMaskConfig, before: int, semantic: int = 0) -> None:
        super().__init__()
        width = config.branch_width
        self.refine = nn.ModuleList(_conv(before, width) for _ in range(3))
        self.tower = nn.Sequential(
            *(_conv(width, width) for _ in range(config.branch_convs)), nn.Conv2d(width, config.mask_channels, 1)
        )
        self.semantic = None
        if semantic:
            logits = nn.Conv2d(width, semantic, 1)
            self.semantic = nn.Sequential(_conv(before, width), _conv(width, width), logits)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if semantic:
            nn.init.constant_(logits.bias, -4.595)  # type: ignore[arg-type]  # as the detector's classes

    def forward(self, levels: Sequence[Float[Tensor, "b _ _ _"]]) -> MaskBranchRaw:
        """Mask features and semantic logits, on the grid of P3, of the levels P3 to P5."""
        merged = self.refine[0](levels[0])
        for i, (conv, level) in enumerate(zip(self.refine[1:], levels[1:], strict=True), 1):
            merged = merged + aligned_upsample(conv(level), 2**i)
        semantic = self.semantic if may_learn() else None
        return MaskBranchRaw(self.tower(merged), semantic(levels[0]) if semantic is not None else None)


def _conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def aligned_upsample(maps: Float[Tensor, "b c h w"], factor: int) -> Float[Tensor, "b c _ _"]:
    """Bilinear enlargement that leaves cell i at ``factor * i + factor // 2``, as locations are counted.

    Official "aligned bilinear": the last row and column are repeated beyond the end, the first before the beginning.
    """
    if factor == 1:
        return maps
    height, width = maps.shape[2] * factor, maps.shape[3] * factor
    maps = F.pad(maps, [0, 1, 0, 1], mode="replicate")
    maps = F.interpolate(maps, size=(height + 1, width + 1), mode="bilinear", align_corners=True)
    maps = F.pad(maps, [factor // 2, 0, factor // 2, 0], mode="replicate")
    return maps[..., :height, :width]


# dynamic heads -------------------------------------------------------------------------------------------------------

_TOGETHER = 8
"""Objects whose dynamic heads run at a time."""


def split_parameters(
    parameters: Float[Tensor, "*n p"], widths: list[int]
) -> tuple[list[Float[Tensor, "*n _ _"]], list[Float[Tensor, "*n _"]]]:
    """Weights (n, out, in) and biases (n, out) of each dynamic convolution: all weights come first, then all biases."""
    pairs = list(pairwise(widths))
    parts = parameters.split([before * after for before, after in pairs] + [after for _, after in pairs], -1)
    weights = [part.unflatten(-1, (after, before)) for part, (before, after) in zip(parts, pairs, strict=False)]
    return weights, list(parts[len(pairs) :])


def dynamic_masks(
    parameters: Float[Tensor, "*b n p"],
    xy: Float[Tensor, "*b n 2"],
    stride: Float[Tensor, "*b n"] | Float[Tensor, "*b n 2"],
    features: Float[Tensor, "*b c h w"],
    cell: int,
    widths: list[int],
    corners: bool = False,
) -> Float[Tensor, "*b n h w"]:
    """Mask logits, on the grid of ``features``, of the n objects of an image, or of several, found at locations ``xy``.

    ``cell`` is the side, in pixels, of a cell of that grid, ``widths`` are `DynamicHeadConfig.head_widths`. ``stride``
    may differ in x and y. The offset is measured from the middle of a cell or, with ``corners``, from its upper left
    corner.

    The two coordinate channels are the offset from each cell to the location, divided by eight strides of the
    location's level. They differ from object to object, but only by a constant: what a head makes of the cell's own
    coordinates is part of one matrix product for all of them, the rest goes into the bias, and no input is repeated
    for an object. A few objects at a time keep their maps in the cache: for a hundred objects on 100 x 168 cells one
    processor core takes an eighth of the time of the official grouped convolution, with a twelfth of the memory.
    """
    *batch, _, height, width = features.shape
    start = 0 if corners else cell // 2
    y = torch.arange(height, device=xy.device, dtype=xy.dtype) * cell + start
    x = torch.arange(width, device=xy.device, dtype=xy.dtype) * cell + start
    cells = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])  # (2, h, w)
    shared = torch.cat([cells.expand(*batch, -1, -1, -1), features], -3).flatten(-2)  # (*B, 2 + c, h w)
    unit = stride if stride.ndim == xy.ndim else stride[..., None]  # (*B, n, 1 or 2)
    if isinstance(parameters.shape[-2], torch.SymInt):  # a graph of open size: a varying number of parts is a sequence
        return _run(parameters, xy, unit, shared, widths).unflatten(-1, (height, width))
    rows = zip(parameters.split(_TOGETHER, -2), xy.split(_TOGETHER, -2), unit.split(_TOGETHER, -2), strict=True)
    return torch.cat([_run(*row, shared, widths) for row in rows], -2).unflatten(-1, (height, width))


def _run(
    parameters: Float[Tensor, "*b n p"],
    xy: Float[Tensor, "*b n 2"],
    stride: Float[Tensor, "*b n _"],
    shared: Float[Tensor, "*b c m"],
    widths: list[int],
) -> Float[Tensor, "*b n m"]:
    weights, biases = split_parameters(parameters, widths)
    per_pixel = weights[0][..., :2] / (8 * stride[..., None, :])  # (*B, n, d, 2)
    first = torch.cat([-per_pixel, weights[0][..., 2:]], -1)
    bias = biases[0] + (per_pixel * xy[..., None, :]).sum(-1)  # (*B, n, d)
    maps = (first.flatten(-3, -2) @ shared).unflatten(-2, first.shape[-3:-1]) + bias[..., None]  # (*B, n, d, h w)
    objects, maps = maps.shape[:-2], maps.flatten(0, -3)
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        maps = torch.baddbmm(bias.flatten(0, -2)[..., None], weight.flatten(0, -3), maps.relu())  # (*B n, 1 or d, h w)
    return maps[:, 0].unflatten(0, objects)


# training ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mask_centres(target: Target, size: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Centres of mass of the masks, pixels; of the filled box, cut off at the input's ``size``, where none is known."""
    limits = target.boxes.new_tensor([size[1], size[0]]) - 1
    low, high = target.boxes[:, :2].floor(), torch.minimum(target.boxes[:, 2:].floor(), limits)
    centres = (low + high) / 2
    if target.masks is not None and len(target):
        dense = target.masks.dense().to(centres.device)
        along = [dense.sum(1).float(), dense.sum(2).float()]  # pixels of each column (N, W), of each row (N, H)
        mass = along[0].sum(1)
        of_mask = [(n @ torch.arange(n.shape[1], device=n.device).float()) / mass.clamp(min=1) for n in along]
        known = target.has_mask & (mass > 0)
        centres = torch.where(known[:, None], torch.stack(of_mask, 1), centres)
    return centres


def centres_of(batch: Batch) -> list[Float[Tensor, "_ 2"]]:
    """`mask_centres` of each image."""
    size = (batch.images.shape[2], batch.images.shape[3])
    return [mask_centres(target, size) for target in batch.targets]


class Assigned(Protocol):
    """The n locations of a batch that have an object."""

    @property
    def image(self) -> Int[Tensor, "n"]:
        """Number of the image in the batch."""
        ...

    @property
    def location(self) -> Int[Tensor, "n"]:
        """Index into `maskkit.nn.fcos_targets.Locations`."""
        ...

    @property
    def object(self) -> Int[Tensor, "n"]:
        """Index into the image's target."""
        ...


def some(positives: P, count: int) -> P:
    """At most ``count`` of the positives, a named tuple of n-rowed tensors, at random."""
    found = len(positives[0])
    if found <= count:
        return positives
    kept = torch.randperm(found, device="cpu")[:count].sort().values.to(positives[0].device)
    return type(positives)(*(column[kept] for column in positives))


def mask_terms(
    raw: DynamicMaskRaw,
    positives: Assigned,
    batch: Batch,
    strides: Sequence[int],
    config: DynamicHeadConfig,
    box_only: BoxOnly,
    corners: bool = False,
) -> dict[str, Float[Tensor, ""]]:
    """The terms ``mask`` (dice of known masks), ``mask/projection`` and ``mask/pairwise`` (masks known by box).

    Their sum is a mean over the positives: in a mixture every one counts alike, whatever is known of it. With
    ``corners`` (RTMDet) locations lie there, and masks are enlarged as images are, not by `aligned_upsample`.
    """
    drawn = []
    locations = locate(raw.detector.logits, strides, corners)
    parameters = pick(raw.detector.extra, positives.image, positives.location)
    for b in range(len(batch)):
        mine = positives.image == b
        where = positives.location[mine]
        at = locations.xy[where], locations.stride[where]
        features, widths = raw.branch.features[b], config.head_widths
        maps = dynamic_masks(parameters[mine], *at, features, strides[0], widths, corners)[:, None]  # (n, 1, h, w)
        doubled = F.interpolate(maps, scale_factor=2.0, mode="bilinear") if corners else aligned_upsample(maps, 2)
        drawn.append(doubled[:, 0])  # (n, 2h, 2w)
    return terms_of_logits(drawn, positives, batch, box_only)


def terms_of_logits(
    logits: list[Float[Tensor, "_ h w"]], positives: Assigned, batch: Batch, box_only: BoxOnly
) -> dict[str, Float[Tensor, ""]]:
    """`mask_terms` of the masks that were drawn for the positives of each image, on a grid over the input."""
    known, truth, boxes = [], [], []
    for b, target in enumerate(batch.targets):
        objects = positives.object[positives.image == b]
        known.append(target.has_mask[objects] if target.masks is not None else torch.zeros_like(objects).bool())
        truth.append(mask_targets(target, objects[known[-1]], (logits[b].shape[1], logits[b].shape[2])))
        boxes.append(target.boxes[objects])
    drawn, is_known = torch.cat(logits), torch.cat(known)
    n = normaliser(len(drawn))
    dice = dice_loss(drawn[is_known].sigmoid(), torch.cat(truth), 1e-5)
    boxed = mask_loss_from_boxes(
        drawn[~is_known], torch.cat(boxes)[~is_known], positives.image[~is_known], batch, box_only
    )
    return {
        "mask": dice.sum() / n,
        "mask/projection": boxed.projection.sum() / n,
        "mask/pairwise": boxed.pairwise * (normaliser((~is_known).sum(), 0) / n),
    }


def mask_targets(target: Target, objects: Int[Tensor, "n"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Known masks of ``objects`` on a grid: the pixel in the middle of each cell, not their mean."""
    if target.masks is None:
        return target.boxes.new_zeros(0, *size)
    step = target.masks.size[0] // size[0]
    masks = target.masks.dense()[:, step // 2 :: step, step // 2 :: step]
    return masks.to(objects.device)[objects].float()


def semantic_loss(logits: Float[Tensor, "b k h w"], batch: Batch) -> Float[Tensor, ""]:
    """Focal loss of the class of each cell; of several objects the smallest has it.

    Images with an object whose mask is unknown are left out, and so are cells of a crowd that no object has.
    """
    total, positive = logits.sum() * 0, 0
    for maps, target in zip(logits, batch.targets, strict=True):
        if not target.has_mask.all():
            continue
        label = torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
        if target.masks is not None and len(target):
            size = (maps.shape[1], maps.shape[2])
            masks = mask_targets(target, torch.arange(len(target), device=maps.device), size).bool()
            areas = target.masks.areas().to(maps.device)
            # the largest first, so that smaller ones are painted over it; crowds before all
            for i in torch.argsort(torch.where(target.crowd, torch.inf, areas), descending=True):
                label[masks[i]] = torch.where(target.crowd[i], -1, target.labels[i] + 1)
        truth = F.one_hot(label.clamp(min=0), len(maps) + 1)[..., 1:].permute(2, 0, 1).float()  # (K, h, w)
        total = total + (sigmoid_focal_loss(maps, truth, alpha=0.25, gamma=2) * (label >= 0)).sum()
        positive = positive + (label > 0).sum()
    return total / normaliser(positive)


# inference -----------------------------------------------------------------------------------------------------------


def find(
    raw: DynamicMaskRaw, detector: FcosDetectorConfig, config: DynamicMaskConfig
) -> tuple[FcosDetections, Float[Tensor, "b k h w"]]:
    """The best objects of each image and the probabilities of their masks, on twice the resolution of P3.

    As everywhere in these methods, the value of a cell belongs to its location: to pixel ``4 i + 2`` of the input.
    """
    raw = raw.float()
    found = detect(raw.detector, detector) if config.nms == "boxes" else _detect_by_masks(raw, detector, config)
    return found, aligned_upsample(mask_logits(raw, found, detector.strides, config.head_widths), 2).sigmoid()


def mask_logits(
    raw: DynamicMaskRaw, found: FcosDetections, strides: Sequence[int], widths: list[int], corners: bool = False
) -> Float[Tensor, "b k h w"]:
    """Mask logits, on the grid of P3, of what was found in an fp32 ``raw``."""
    locations = locate(raw.detector.logits, strides, corners)
    xy, stride = locations.xy[found.locations], locations.stride[found.locations]
    return dynamic_masks(found.extra, xy, stride, raw.branch.features, strides[0], widths, corners)


def _detect_by_masks(raw: DynamicMaskRaw, detector: FcosDetectorConfig, config: DynamicMaskConfig) -> FcosDetections:
    """Greedy NMS on the IoU of masks, class by class, among the best candidates: the box has no part in it."""
    found = keep_best(propose(raw.detector, detector), raw.detector, config.mask_candidates)
    masks = mask_logits(raw, found, detector.strides, config.head_widths) > 0  # (B, M, h, w)
    alive = mask_nms(masks, found.labels, detector.nms_threshold) & masks.flatten(2).any(2)
    return keep_best(found._replace(scores=found.scores * alive), raw.detector, detector.detections)
