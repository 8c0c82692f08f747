"""The region proposal network (Ren et al., 2015), and the anchors, matching and sampling that two-stage methods share.

Boxes are ``x1 y1 x2 y2`` in input pixels throughout. Proposals have a fixed number of rows for each image, so that the
network can be exported; a padding row is a box without area and with a score of minus infinity.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.geometry import boxes as box_math
from maskkit.geometry.boxes import LEAST_SIDE, has_area
from maskkit.geometry.nms import batched_nms
from maskkit.ranges import Count, Positive, Share, Weight
from maskkit.targets import Target, full_sizes

BACKGROUND = -1
"""`match_boxes` for a box that belongs to no object."""
NEITHER = -2
"""`match_boxes` for a box that is neither object nor background for certain, and is left out of the loss."""

Weights = tuple[float, float, float, float]
ONES: Weights = (1.0, 1.0, 1.0, 1.0)

_LARGEST_GROWTH = math.log(1000 / 16)


@dataclass(frozen=True)
class ProposalConfig:
    """The anchors, and how a region proposal network learns and what is kept of it; the defaults are detectron2's."""

    anchor_sizes: tuple[tuple[Positive, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Anchor sizes in input pixels, for each level."""
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    """Height to width."""
    high: Share = 0.7
    """Least IoU of a positive anchor with its object; the best anchor of each object is positive in any case."""
    low: Share = 0.3
    """IoU from which on an anchor is not background."""
    crowd_overlap: Share = 0.7
    """Share of an anchor inside a crowd above which it is not background."""
    sampled: Count = 256
    """Anchors per image in the loss, at most half of them positive."""
    smooth_l1: Weight = 0.0
    """Where the smooth L1 loss of the boxes turns linear; 0 is L1."""
    before: tuple[Count, Count] = (2000, 1000)
    """Anchors of each level that enter NMS, in training and in inference."""
    after: tuple[Count, Count] = (1000, 1000)
    """Proposals of each image, in training and in inference."""
    nms_threshold: Share = 0.7
    min_score: Share = 0.0
    """Least objectness of a proposal, as a probability."""
    bounded_shrink: bool = False
    """Whether no side shrinks by more than a factor of 62.5, as none grows by more (mmdetection)."""

    @property
    def anchors_per_cell(self) -> int:
        """Anchors at every position of a level."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)


class Proposals(NamedTuple):
    """The R best boxes of each image, best first."""

    boxes: Float[Tensor, "b r 4"]
    scores: Float[Tensor, "b r"]
    """Objectness logits."""


class RpnRaw(NamedTuple):
    """What the network says of the anchors, of one level or of all, in the order level, row, column, anchor."""

    objectness: Float[Tensor, "b n"]
    """Logits."""
    deltas: Float[Tensor, "b n 4"]
    """Box code."""
    anchors: Float[Tensor, "n 4"]


# anchors and the box code ---------------------------------------------------------------------------------------------


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False) -> Float[Tensor, "a 4"]:
    """Anchors centred at the origin: one with the area ``size**2`` for each pair of ratio (height to width) and size.

    ``rounded`` to whole pixels, as in torchvision; detectron2 does not round them.
    """
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
    side = torch.tensor(sizes, dtype=torch.float32)
    half = torch.stack([(side / root).flatten(), (side * root).flatten()], 1) / 2  # (A, 2): width, height
    anchors = torch.cat([-half, half], 1)
    return anchors.round() if rounded else anchors


def window_cell_anchors(window: int, scales: Sequence[float], ratios: Sequence[float]) -> Float[Tensor, "a 4"]:
    """Anchors of the first Faster R-CNN: a square ``window`` at the origin, reshaped to each of the ``ratios`` with
    sides of whole pixels, and then scaled around its middle."""
    ratio = torch.tensor(ratios, dtype=torch.float64)
    width = (window**2 / ratio).sqrt().round()
    half = torch.stack([width, (width * ratio).round()], 1)[:, None] * torch.tensor(scales)[:, None] / 2  # (r, s, 2)
    return (window / 2 + torch.cat([-half, half], 2)).flatten(0, 1).float()


def grid_anchors(cells: Float[Tensor, "a 4"], grid: tuple[int, int], stride: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """The anchors ``cells`` at every position of a ``grid`` (h, w) with ``stride`` (down, right), from the origin."""
    y = torch.arange(grid[0], device=cells.device) * stride[0]
    x = torch.arange(grid[1], device=cells.device) * stride[1]
    corner = torch.stack([x.expand(grid), y[:, None].expand(grid)], -1)  # (h, w, 2)
    return (torch.cat([corner, corner], -1)[:, :, None] + cells).reshape(-1, 4)


Anchors = Callable[
    [ProposalConfig, Sequence[Float[Tensor, "b _ _ _"]], Sequence[int], tuple[int, int]], list[Float[Tensor, "_ 4"]]
]
"""Anchors of each of some levels, with their strides, of an input of the given (height, width)."""


def detectron2_anchors(
    config: ProposalConfig, levels: Sequence[Float[Tensor, "b _ _ _"]], strides: Sequence[int], size: tuple[int, int]
) -> list[Float[Tensor, "_ 4"]]:
    """Anchors of exact size, around the upper left corner of every cell."""
    cells = [cell_anchors(sizes, config.anchor_ratios) for sizes in config.anchor_sizes]
    return _on_grids(cells, levels, [(stride, stride) for stride in strides])


def torchvision_anchors(
    config: ProposalConfig, levels: Sequence[Float[Tensor, "b _ _ _"]], strides: Sequence[int], size: tuple[int, int]
) -> list[Float[Tensor, "_ 4"]]:
    """Anchors of whole pixels, as many apart as the grid of cells goes into the input."""
    cells = [cell_anchors(sizes, config.anchor_ratios, rounded=True) for sizes in config.anchor_sizes]
    steps = [(size[0] // level.shape[2], size[1] // level.shape[3]) for level in levels]
    return _on_grids(cells, levels, steps)


def caffe_anchors(
    config: ProposalConfig, levels: Sequence[Float[Tensor, "b _ _ _"]], strides: Sequence[int], size: tuple[int, int]
) -> list[Float[Tensor, "_ 4"]]:
    """Anchors of the first Faster R-CNN (`window_cell_anchors`), around the middle of every cell."""
    cells = [
        window_cell_anchors(stride, [size / stride for size in sizes], config.anchor_ratios)
        for stride, sizes in zip(strides, config.anchor_sizes, strict=True)
    ]
    return _on_grids(cells, levels, [(stride, stride) for stride in strides])


def _on_grids(
    cells: Sequence[Tensor], levels: Sequence[Tensor], steps: Sequence[tuple[int, int]]
) -> list[Float[Tensor, "_ 4"]]:
    return [
        grid_anchors(cell.to(level.device), (level.shape[2], level.shape[3]), step)
        for cell, level, step in zip(cells, levels, steps, strict=True)
    ]


def encode(
    boxes: Float[Tensor, "*n 4"], references: Float[Tensor, "*n 4"], weights: Weights = ONES
) -> Float[Tensor, "*n 4"]:
    """R-CNN box code: offset of the centre relative to the size of the reference and log of the scale, times
    ``weights``."""
    centre, size = box_math.to_centres(boxes).split(2, -1)
    at, extent = box_math.to_centres(references).split(2, -1)
    code = torch.cat([(centre - at) / extent, torch.log(size / extent)], -1)
    return code * code.new_tensor(weights)


def decode(
    deltas: Float[Tensor, "*n 4"],
    references: Float[Tensor, "*m 4"],
    weights: Weights = ONES,
    bounded_shrink: bool = False,
) -> Float[Tensor, "*n 4"]:
    """Boxes of a code, the inverse of `encode`.

    No side grows, or with ``bounded_shrink`` shrinks, by more than a factor of 62.5.
    """
    shift, growth = (deltas / deltas.new_tensor(weights)).split(2, -1)
    at, extent = box_math.to_centres(references).split(2, -1)
    centre = at + shift * extent
    least = -_LARGEST_GROWTH if bounded_shrink else None
    half = 0.5 * extent * growth.clamp(min=least, max=_LARGEST_GROWTH).exp()
    return torch.cat([centre - half, centre + half], -1)


def extents_of(images: Float[Tensor, "b 3 h w"], sizes: Int[Tensor, "b 2"] | None) -> Float[Tensor, "b 2"]:
    """(Width, height) of each image inside the input, in the order of box coordinates; ``sizes`` as in `Batch`."""
    return (full_sizes(images) if sizes is None else sizes).flip(1).float()


def clip(boxes: Float[Tensor, "b *n 4"], extents: Float[Tensor, "b 2"]) -> Float[Tensor, "b *n 4"]:
    """The part of each box that lies in its image, whose width and height are ``extents``."""
    limit = extents.repeat(1, 2).view(-1, *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


# matching and sampling ------------------------------------------------------------------------------------------------


@torch.no_grad()
def match_boxes(
    references: Float[Tensor, "n 4"],
    target: Target,
    low: float,
    high: float,
    *,
    best_too: bool = False,
    crowd_overlap: float = 1.0,
) -> Int[Tensor, "n"]:
    """Match reference boxes (anchors, proposals) to objects: for each the index of its object, `BACKGROUND` or
    `NEITHER`.

    A reference is matched to the object of highest IoU if that is at least ``high``, and is background below ``low``;
    with ``best_too`` the references of highest IoU with each object are matched whatever the IoU. Crowds are not
    objects; background of which more than the share ``crowd_overlap`` lies inside a crowd becomes `NEITHER`.
    """
    plain, crowd = torch.nonzero(~target.crowd)[:, 0], target.boxes[target.crowd]
    matched = torch.full((len(references),), BACKGROUND, device=references.device)
    if len(plain):
        overlaps = box_math.iou(target.boxes[plain], references)  # (N, n)
        best, which = overlaps.max(0)
        positive = best >= high
        matched[best >= low] = NEITHER
        if best_too:
            most = overlaps.amax(1, keepdim=True)
            positive |= ((overlaps == most) & (most > 0)).any(0)
        matched[positive] = plain[which[positive]]
    if len(crowd):
        covered = box_math.intersection(references, crowd).amax(1) / box_math.area(references).clamp(min=LEAST_SIDE)
        matched[(matched == BACKGROUND) & (covered > crowd_overlap)] = NEITHER
    return matched


def sample(matched: Int[Tensor, "n"], count: int, share: float) -> tuple[Int[Tensor, "p"], Int[Tensor, "q"]]:
    """Indices of random positives, at most ``share`` of ``count``, and of random background to make up ``count``."""
    positive, negative = torch.nonzero(matched >= 0)[:, 0], torch.nonzero(matched == BACKGROUND)[:, 0]
    # drawn on the CPU, so that every device gets the same sample
    positive = positive[torch.randperm(len(positive))[: int(count * share)].to(matched.device)]
    negative = negative[torch.randperm(len(negative))[: count - len(positive)].to(matched.device)]
    return positive, negative


# the network ----------------------------------------------------------------------------------------------------------


class RpnHead(nn.Module):
    """3x3 convolutions, then an objectness logit and a box code for each of ``anchors`` at every position."""

    def __init__(self, channels: int, anchors: int, width: int | None = None, convs: int = 1) -> None:
        super().__init__()
        width = width or channels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for _ in range(convs - 1):
            layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.conv = layers[0] if convs == 1 else nn.Sequential(*layers)
        self.objectness = nn.Conv2d(width, anchors, 1)
        self.deltas = nn.Conv2d(width, anchors * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, level: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b a h w"], Float[Tensor, "b d h w"]]:
        """Objectness (B, A, h, w) and codes (B, 4A, h, w)."""
        y = F.relu(self.conv(level))
        return self.objectness(y), self.deltas(y)


def flatten(
    objectness: Float[Tensor, "b a h w"], deltas: Float[Tensor, "b d h w"]
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n 4"]]:
    """Maps of `RpnHead` in the order of the anchors: row, column, anchor."""
    b, a, h, w = objectness.shape
    codes = deltas.reshape(b, a, 4, h, w).permute(0, 3, 4, 1, 2).reshape(b, -1, 4)  # (B, hwA, 4)
    return objectness.permute(0, 2, 3, 1).reshape(b, -1), codes


def rpn_levels(
    head: RpnHead, levels: Sequence[Float[Tensor, "b _ _ _"]], anchors: Sequence[Float[Tensor, "_ 4"]]
) -> list[RpnRaw]:
    """What the network says on each level."""
    return [RpnRaw(*flatten(*head(level)), mine) for level, mine in zip(levels, anchors, strict=True)]


def joined(levels: Sequence[RpnRaw]) -> RpnRaw:
    """What is said on all levels, one after the other."""
    objectness, deltas, anchors = zip(*levels, strict=True)
    return RpnRaw(torch.cat(objectness, 1), torch.cat(deltas, 1), torch.cat(anchors))


@torch.no_grad()
def propose(
    levels: Sequence[RpnRaw],
    extents: Float[Tensor, "b 2"],
    config: ProposalConfig,
    *,
    training: bool,
    least_side: float = LEAST_SIDE,
) -> Proposals:
    """Proposals: the ``config.before`` best anchors of each level are decoded and go through NMS; of all levels the
    ``config.after`` best are kept.

    Boxes with a side shorter than ``least_side`` pixels are dropped.
    """
    before, after = (counts[0 if training else 1] for counts in (config.before, config.after))
    found = []
    for objectness, deltas, anchors in levels:
        scores, order = objectness.float().topk(min(before, objectness.shape[1]))  # (B, k)
        deltas = deltas.float().gather(1, order[..., None].expand(-1, -1, 4))
        boxes = clip(decode(deltas, anchors[order], bounded_shrink=config.bounded_shrink), extents)
        good = batched_nms(boxes * has_area(boxes, least_side)[..., None], scores, config.nms_threshold)
        if config.min_score:
            good = good & (scores.sigmoid() >= config.min_score)
        found.append((boxes * good[..., None], scores.masked_fill(~good, -math.inf)))
    boxes, scores = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    scores, order = scores.topk(min(after, scores.shape[1]))
    return Proposals(boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores)


class RpnLosses(NamedTuple):
    """Terms of `rpn_loss`."""

    objectness: Float[Tensor, ""]
    box: Float[Tensor, ""]


def rpn_loss(
    raw: RpnRaw,
    matched: Sequence[Int[Tensor, "n"]],
    targets: Sequence[Target],
    config: ProposalConfig,
    share: float = 0.5,
) -> RpnLosses:
    """Cross entropy of the sampled anchors of each image and smooth L1 of the positives, both per sampled anchor.

    At most ``share`` of the sampled anchors are positive.
    """
    objectness, deltas, anchors = raw
    object_loss, box_loss = objectness.sum() * 0, deltas.sum() * 0
    for b, (mine, target) in enumerate(zip(matched, targets, strict=True)):
        positive, negative = sample(mine, config.sampled, share)
        logits = objectness[b, torch.cat([positive, negative])]
        truth = (torch.arange(len(logits), device=logits.device) < len(positive)).float()
        object_loss = object_loss + F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        wanted = encode(target.boxes[mine[positive]], anchors[positive])
        box_loss = box_loss + F.smooth_l1_loss(deltas[b, positive], wanted, beta=config.smooth_l1, reduction="sum")
    count = config.sampled * len(targets)
    return RpnLosses(object_loss / count, box_loss / count)


def proposal_terms(raw: RpnRaw, targets: Sequence[Target], config: ProposalConfig) -> dict[str, Float[Tensor, ""]]:
    """The loss terms of a proposal network: its anchors matched as ``config`` says, and `rpn_loss` of them."""
    matched = [
        match_boxes(raw.anchors, target, config.low, config.high, best_too=True, crowd_overlap=config.crowd_overlap)
        for target in targets
    ]
    found = rpn_loss(raw, matched, targets, config)
    return {"classification/objectness": found.objectness, "box/proposals": found.box}
