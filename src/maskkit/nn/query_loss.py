"""Label assignment and losses of queries that each predict one class and one mask (MaskFormer, Mask2Former).

Queries and objects are matched one to one at the least total cost (DETR); masks are compared at points, most of them
where the prediction is uncertain (PointRend).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskkit.geometry.resample_tensors import sample_points
from maskkit.nn.losses import box_cells, normaliser
from maskkit.ranges import Count, Factor, Share, Weight


@dataclass(frozen=True)
class QueryLossConfig:
    """Weights and points of the matching and of the loss; the defaults are those of Mask2Former."""

    class_weight: Weight = 2.0
    """Of the class in the matching and in the loss, as the next two."""
    mask_weight: Weight = 5.0
    dice_weight: Weight = 5.0
    no_object: Weight = 0.1
    """Weight in the cross entropy of a query without an object."""
    points: Count = 12544
    """Points at which masks are compared, in the matching and in the loss."""
    oversample: Factor = 3.0
    """The loss draws this many times as many points, to find the uncertain ones."""
    uncertain: Share = 0.75
    """Share of the loss's points that are the most uncertain; the others are random."""


class Truth(NamedTuple):
    """What the queries of one image should predict."""

    labels: Int[Tensor, "n"]
    masks: Float[Tensor, "n h w"]
    """Empty where only the box is known."""
    known: Bool[Tensor, "n"]
    """Whether the mask is."""
    boxes: Float[Tensor, "n 4"]
    counted: Bool[Tensor, "h w"]
    """Pixels of which it is known what they show."""


class Matches(NamedTuple):
    """Pairs of one image."""

    queries: Int[Tensor, "m"]
    objects: Int[Tensor, "m"]


# label assignment -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def match(
    logits: Float[Tensor, "q d"],
    embeddings: Float[Tensor, "q c"],
    features: Float[Tensor, "c h w"],
    truth: Truth,
    config: QueryLossConfig,
) -> Matches:
    """Pairs of queries and objects with the least total cost; each is in one pair at most."""
    cost = -config.class_weight * logits.softmax(1)[:, truth.labels]  # (Q, N)
    if truth.known.any():
        mask, dice = mask_costs(embeddings, features, truth, config.points)
        cost[:, truth.known] += config.mask_weight * mask + config.dice_weight * dice
    if not truth.known.all():
        # two terms of the size of dice, with the weight of both terms of a known mask
        cost[:, ~truth.known] += (config.mask_weight + config.dice_weight) / 2 * box_costs(embeddings, features, truth)
    pairs = linear_sum_assignment(np.nan_to_num(cost.cpu().numpy(), nan=1e9, posinf=1e9, neginf=-1e9))
    return Matches(*(torch.from_numpy(side).to(logits.device) for side in pairs))


def mask_costs(
    embeddings: Float[Tensor, "q c"], features: Float[Tensor, "c h w"], truth: Truth, count: int
) -> tuple[Float[Tensor, "q n"], Float[Tensor, "q n"]]:
    """Cross entropy and dice of every query with every known mask, at ``count`` random points that all share."""
    points = torch.rand(1, count, 2).to(features.device)
    ours = embeddings @ sample_points(features[None], points)[0]  # (Q, P): the masks are linear in the features
    weight = at_points(truth.counted, points)  # (1, P)
    wanted = sample_points(truth.masks[None, truth.known], points)[0] * weight  # (N, P)
    entropy = F.softplus(-ours) @ wanted.T + F.softplus(ours) @ (weight - wanted).T
    soft = ours.sigmoid() * weight
    dice = 1 - (2 * soft @ wanted.T + 1) / (soft.sum(1)[:, None] + wanted.sum(1) + 1)
    return entropy / weight.sum().clamp(min=1), dice


def box_costs(embeddings: Float[Tensor, "q c"], features: Float[Tensor, "c h w"], truth: Truth) -> Float[Tensor, "q n"]:
    """Dice, per axis, of the projections of the queries' masks and of the boxes of objects without a mask."""
    masks = torch.einsum("qc,chw->qhw", embeddings, features)
    size, grid = (truth.counted.shape[0], truth.counted.shape[1]), (masks.shape[1], masks.shape[2])
    inside = box_cells(truth.boxes[~truth.known], size, grid)  # (N, h, w)
    total = masks.new_zeros(len(masks), len(inside))
    for axis in (1, 2):
        ours, side = masks.amax(axis).sigmoid(), inside.any(axis).float()  # (Q, n), (N, n)
        area = ours.square().sum(1)[:, None] + side.sum(1)
        total = total + 1 - 2 * ours @ side.T / (area + 1e-5)
    return total


# losses ---------------------------------------------------------------------------------------------------------------


def class_loss(logits: Float[Tensor, "b q d"], labels: Int[Tensor, "b q"], no_object: float) -> Float[Tensor, ""]:
    """Mean cross entropy over the queries whose label is not -1; the last class has the weight ``no_object``."""
    weights = logits.new_ones(logits.shape[2])
    weights[-1] = no_object
    share = (weights[labels] * (labels >= 0)).sum()
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights, ignore_index=-1, reduction="sum")
    return total / normaliser(share, 1e-6)


def mask_terms(
    masks: Sequence[Float[Tensor, "_ h w"]],
    wanted: Sequence[Float[Tensor, "_ y x"]],
    counted: Sequence[Bool[Tensor, "y x"]],
    config: QueryLossConfig,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Cross entropy and dice of every image's mask logits at points, most of them where these are near zero."""
    maps = torch.cat(list(masks))[:, None]
    if len(maps) == 0:
        return maps.sum((1, 2, 3)), maps.sum((1, 2, 3))
    with torch.no_grad():
        points = uncertain_points(maps, config)
        places = points.split([len(m) for m in masks])
        truth = sample_points(torch.cat(list(wanted))[:, None], points)[:, 0]  # (N, P)
        weight = torch.cat([at_points(c, p) for c, p in zip(counted, places, strict=True)])
    logits = sample_points(maps, points)[:, 0]  # (N, P)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    soft, truth = logits.sigmoid() * weight, truth * weight
    dice = 1 - (2 * (soft * truth).sum(1) + 1) / (soft.sum(1) + truth.sum(1) + 1)
    return (entropy * weight).sum(1) / weight.sum(1).clamp(min=1), dice


def uncertain_points(masks: Float[Tensor, "n 1 h w"], config: QueryLossConfig) -> Float[Tensor, "n p 2"]:
    """Of many random points those whose logits are nearest to zero, and some random ones (PointRend)."""
    many = torch.rand(len(masks), int(config.points * config.oversample), 2).to(masks.device)
    kept = int(config.points * config.uncertain)
    best = (-sample_points(masks, many)[:, 0].abs()).topk(kept).indices
    others = torch.rand(len(masks), config.points - kept, 2).to(masks.device)
    return torch.cat([many.gather(1, best[..., None].expand(-1, -1, 2)), others], 1)


def at_points(counted: Bool[Tensor, "h w"], points: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p"]:
    """1 at the points that count, 0 at the others."""
    if len(points) == 0 or counted.all():
        return points.new_ones(points.shape[:2])
    return (sample_points(counted[None, None].float(), points.flatten(0, 1)[None]) > 0.5).float().view(points.shape[:2])
