"""Targets and losses of methods that group pixels into objects: the object and the class of every pixel."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskkit.nn.losses import box_cells, normaliser
from maskkit.targets import Batch, Target

BACKGROUND, UNKNOWN = -1, -2
"""Values of `object_maps` for pixels without a known object."""


@torch.no_grad()
def object_maps(batch: Batch) -> Int[Tensor, "b h w"]:
    """For each pixel the index of its object in the image's target, `BACKGROUND` or `UNKNOWN`."""
    return torch.stack([object_map(t, v) for t, v in zip(batch.targets, batch.valid, strict=True)])


def object_map(target: Target, valid: Bool[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """The map of one image. The padding, crowds, and the boxes of objects without a known mask are unknown.

    Where masks overlap, the smallest is on top; a known mask covers what is unknown.
    """
    size = (valid.shape[0], valid.shape[1])
    owners = torch.full(size, BACKGROUND, device=valid.device)
    unknown = ~target.has_mask
    owners[box_cells(target.boxes[unknown], size, size).any(0)] = UNKNOWN
    if target.masks is not None:
        masks = target.masks.dense(size).to(valid.device)  # (N, h, w)
        owners[masks[target.crowd & ~unknown].any(0)] = UNKNOWN
        area = masks.sum((1, 2))
        for i in area.argsort(descending=True).tolist():
            if not unknown[i] and not target.crowd[i]:
                owners[masks[i]] = i
    return owners.masked_fill(~valid, UNKNOWN)


def class_loss(
    logits: Float[Tensor, "b k h w"], owners: Int[Tensor, "b _ _"], targets: list[Target]
) -> Float[Tensor, ""]:
    """Mean cross entropy over the cells of objects. A cell belongs to the object at its centre."""
    size = logits.shape[2:]
    owners = F.interpolate(owners[:, None].float(), size, mode="nearest-exact")[:, 0].long()  # (B, h, w)
    truth = torch.full_like(owners, BACKGROUND)
    for row, owner, target in zip(truth, owners, targets, strict=True):
        row[owner >= 0] = target.labels[owner[owner >= 0]]
    total = F.cross_entropy(logits.float(), truth, ignore_index=BACKGROUND, reduction="sum")
    return total / normaliser((truth >= 0).sum())


def likeliest(logits: Float[Tensor, "b k _ _"], size: tuple[int, int]) -> Int[Tensor, "b h w"]:
    """Class of the highest logit on a grid of ``size`` (h, w); class 0 where a model of one class has no logits."""
    if logits.shape[1] == 0:
        return torch.zeros(logits.shape[0], *size, dtype=torch.int64, device=logits.device)
    best = logits.argmax(1, keepdim=True).float()  # (B, 1, h', w')
    return F.interpolate(best, size, mode="nearest-exact")[:, 0].long()
