"""How NanoDet-Plus learns: dynamic soft label assignment and the losses of its boxes and scores.

Which locations belong to an object is decided by what the network predicts at present (as in OTA; Ge et al., CVPR
2021): an object gets as many positives as the IoUs of its best boxes sum up to, those of the lowest cost. The class
score of a positive learns the IoU of its box (quality focal loss), its sides learn their distributions (distribution
focal loss; Li et al., "Generalized Focal Loss", NeurIPS 2020), its box learns by GIoU.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from maskkit.geometry import boxes as box_math
from maskkit.nn.fcos import flatten
from maskkit.nn.fcos_targets import Assignment, Locations, Positives, distances_to_sides, find_positives
from maskkit.nn.losses import normaliser
from maskkit.nn.nanodet import NanoDetConfig, NanoDetRaw, all_boxes, priors
from maskkit.nn.soft_labels import match_costs, shares_of
from maskkit.targets import Batch, Target


@torch.no_grad()
def assign(
    logits: Float[Tensor, "p k"],
    boxes: Float[Tensor, "p 4"],
    target: Target,
    locations: Locations,
    assigned: int,
) -> Assignment:
    """Label assignment of one image: every location gets an object, the background, or is ignored.

    Only locations inside an object's box can have it. The cost of a match is three times ``-log IoU`` and the quality
    focal loss that it would have. Of several objects a location has the one of the lowest cost. A background location
    inside a crowd is ignored.
    """
    classes = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    objects = torch.zeros_like(classes)
    inside = (distances_to_sides(locations.xy[:, None], target.boxes) > 0).all(2)  # (P, N)
    classes[(inside & target.crowd).any(1)] = -1
    real = torch.nonzero(~target.crowd)[:, 0]
    near = torch.nonzero(inside[:, real].any(1))[:, 0]  # locations in the box of any object
    if len(real) == 0 or len(near) == 0:
        return Assignment(classes, objects)
    cost, iou = match_costs(logits[near], boxes[near], target.labels[real], target.boxes[real])
    cost = torch.where(inside[near][:, real], cost, torch.inf)
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    for j, count in enumerate(shares_of(iou, assigned).tolist()):
        chosen[cost[:, j].topk(count, largest=False).indices, j] = True
    chosen &= cost < torch.inf
    best = torch.where(chosen, cost, torch.inf).argmin(1)  # (near,)
    found = chosen.any(1)
    where = near[found]
    objects[where] = real[best[found]]
    classes[where] = target.labels[objects[where]] + 1
    return Assignment(classes, objects)


def nanodet_loss(
    raw: NanoDetRaw, batch: Batch, config: NanoDetConfig
) -> tuple[dict[str, Float[Tensor, ""]], Positives]:
    """The terms ``classification``, ``box/overlap`` and ``box/distribution`` of an fp32 ``raw``, and the positives."""
    locations = priors(raw)
    logits, boxes = flatten(raw.logits), all_boxes(raw, locations)
    assignments = [
        assign(of_image, b, t, locations, config.assigned)
        for of_image, b, t in zip(logits, boxes.detach(), batch.targets, strict=True)
    ]
    classes = torch.stack([a.classes for a in assignments])  # (B, P)
    found = find_positives(assignments, batch.targets, locations)
    where = found.image, found.location
    truth = torch.cat([t.boxes[found.object[found.image == i]] for i, t in enumerate(batch.targets)])
    mine = boxes[where]
    iou = _pair_iou(mine.detach(), truth)
    quality = torch.zeros_like(logits)
    quality[*where, found.label] = iou
    cross = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    focal = cross * (logits.sigmoid() - quality).square() * (classes >= 0)[..., None]
    weight = logits[where].detach().sigmoid().amax(1)
    norm = normaliser(weight.sum())
    giou = generalized_box_iou_loss(mine, truth)
    spread = distribution_loss(flatten(raw.sides)[where], found.distances)
    losses = {
        "classification": config.classification_weight * focal.sum() / normaliser(len(found.label)),
        "box/overlap": config.overlap_weight * (giou * weight).sum() / norm,
        "box/distribution": config.distribution_weight * (spread * weight).sum() / norm,
    }
    return losses, found


def distribution_loss(sides: Float[Tensor, "n d"], distances: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """Cross-entropy of the two bins around each true distance, which is in strides; the mean of the four sides."""
    logs = sides.unflatten(-1, (4, sides.shape[-1] // 4)).log_softmax(-1)  # (n, 4, bins)
    true = distances.clamp(0, logs.shape[-1] - 1.1)
    low = true.long()
    share = true - low
    at = logs.gather(2, torch.stack([low, low + 1], 2))  # (n, 4, 2)
    return -(at[..., 0] * (1 - share) + at[..., 1] * share).mean(1)


def _pair_iou(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """IoU of each pair of rows."""
    corners = torch.cat([torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])], 1)
    shared = box_math.area(corners)
    return shared / (box_math.area(a) + box_math.area(b) - shared).clamp(min=1e-6)
