"""What the methods that group pixels share: whose pixel it is, and of which class."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskkit.nn.losses import box_cells, normaliser
from maskkit.targets import Batch, Target

BACKGROUND, UNKNOWN = -1, -2
"""What `object_maps` say of a pixel that is no known object's."""


@torch.no_grad()
def object_maps(batch: Batch) -> Int[Tensor, "b h w"]:
    """For each pixel the number of its object in the image's target, `BACKGROUND` or `UNKNOWN`."""
    return torch.stack([object_map(t, v) for t, v in zip(batch.targets, batch.valid, strict=True)])


def object_map(target: Target, valid: Bool[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """The map of one image. Unknown are the padding, crowds, and the boxes of objects without a known mask.

    Of masks that overlap the smallest is seen, of a mask and something unknown the mask.
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
    """Mean cross entropy of the classes of cells of objects; which objects, the centres of the cells say."""
    size = logits.shape[2:]
    owners = F.interpolate(owners[:, None].float(), size, mode="nearest-exact")[:, 0].long()  # (B, h, w)
    truth = torch.full_like(owners, BACKGROUND)
    for row, owner, target in zip(truth, owners, targets, strict=True):
        row[owner >= 0] = target.labels[owner[owner >= 0]]
    total = F.cross_entropy(logits.float(), truth, ignore_index=BACKGROUND, reduction="sum")
    return total / normaliser((truth >= 0).sum())


def likeliest(logits: Float[Tensor, "b k _ _"], size: tuple[int, int]) -> Int[Tensor, "b h w"]:
    """The class of the highest logit on a grid of ``size`` (h, w); class 0 where there is but one and so no map."""
    if logits.shape[1] == 0:
        return torch.zeros(len(logits), *size, dtype=torch.int64, device=logits.device)
    best = logits.argmax(1, keepdim=True).float()  # (B, 1, h', w')
    return F.interpolate(best, size, mode="nearest-exact")[:, 0].long()
