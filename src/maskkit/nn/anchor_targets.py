"""The targets of a single-shot detector on anchors, as in YOLACT: label assignment and classification loss.

Bolya, Zhou, Xiao, Lee: "YOLACT: Real-time Instance Segmentation" (ICCV 2019), after Liu et al.: "SSD: Single Shot
MultiBox Detector" (ECCV 2016).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.geometry import boxes as box_math
from maskkit.targets import Target


class Matches(NamedTuple):
    """What each anchor of one image should predict."""

    classes: Int[Tensor, "p"]
    """Class + 1 for an object, 0 for background, -1 for neither."""
    objects: Int[Tensor, "p"]
    """Index of the best object."""


@torch.no_grad()
def assign_anchors(
    target: Target,
    priors: Float[Tensor, "p 4"],
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    crowd_overlap: float = 0.7,
) -> Matches:
    """Label assignment: every anchor gets an object, the background or nothing.

    ``priors`` are ``cx cy w h``, boxes of ``target`` are relative to the input too. Every object gets one anchor
    whatever the overlap: the best pair first, then the best of the rest. An anchor that is not positive and has a
    larger share than ``crowd_overlap`` inside a crowd gets nothing.
    """
    anchors = box_math.to_corners(priors)
    plain, crowd = target[~target.crowd], target[target.crowd]
    best = torch.zeros(len(anchors), device=priors.device)
    objects = torch.zeros(len(anchors), dtype=torch.int64, device=priors.device)
    if len(plain):
        overlaps = box_math.iou(plain.boxes, anchors)  # (N, P)
        best, objects = overlaps.max(0)
        value, where = overlaps.max(1)
        for _ in range(len(plain)):
            n = value.argmax()
            p = where[n]
            best[p], objects[p] = 2, n
            overlaps[:, p], overlaps[n], value[n] = -1, -1, -1
            for stale in torch.nonzero((where == p) & (value >= 0))[:, 0]:
                value[stale], where[stale] = overlaps[stale].max(0)
        classes = plain.labels[objects] + 1
        classes[best < positive_iou] = -1
        classes[best < negative_iou] = 0
    else:
        classes = torch.zeros_like(objects)
    if len(crowd):
        covered = box_math.intersection(anchors, crowd.boxes) / box_math.area(anchors)[:, None]
        classes[(classes <= 0) & (covered.amax(1) > crowd_overlap)] = -1
    return Matches(classes, objects)


def hard_negative_loss(
    conf: Float[Tensor, "b p c"], classes: Int[Tensor, "b p"], negatives_per_positive: int
) -> Float[Tensor, ""]:
    """Sum of the cross entropy of the positives and of the hardest negatives of each image (SSD).

    ``classes`` are those of `assign_anchors`; class 0 of the logits ``conf`` is background.
    """
    positive, background = classes > 0, classes == 0
    with torch.no_grad():
        hardness = (conf.logsumexp(2) - conf[..., 0]).masked_fill(~background, 0)  # (B, P)
        rank = hardness.argsort(1, descending=True).argsort(1)
        wanted = negatives_per_positive * positive.sum(1, keepdim=True)
        chosen = positive | (background & (rank < wanted.clamp(max=classes.shape[1] - 1)))
    if not chosen.any():
        return conf.sum() * 0
    return F.cross_entropy(conf[chosen], classes[chosen], reduction="sum")
