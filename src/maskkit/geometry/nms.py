"""Non-maximum suppression (NMS) of boxes and of masks, in every form that a method here uses.

============== ======= ======================================================== =================================
function       of      result                                                   used by
============== ======= ======================================================== =================================
`batched_nms`  boxes   which are kept, image by image and group by group        Faster R-CNN and what is built on it
`class_nms`    boxes   the same by class, rounded as torchvision does           FCOS and what is built on it
`greedy_nms`   boxes   indices of the kept boxes                                YOLACT, traditional
`fast_nms`     boxes   which of a ranked list are kept, without a loop          YOLACT
`soft_nms`     boxes   order and decayed scores, nothing is removed             EVA
`mask_nms`     masks   which of a ranked list are kept                          CondInst, on request
`matrix_nms`   masks   decayed scores of a ranked list, without a loop          SOLO, SOLOv2
============== ======= ======================================================== =================================

Boxes are ``x1 y1 x2 y2``. Masks may have any resolution: a quarter of the input's is enough to find duplicates,
and the cost is proportional to the number of cells.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import nms

from maskkit.geometry.boxes import has_area, iou

# boxes ----------------------------------------------------------------------------------------------------------------


def batched_nms(
    boxes: Float[Tensor, "b n 4"], scores: Float[Tensor, "b n"], threshold: float, groups: Tensor | None = None
) -> Bool[Tensor, "b n"]:
    """Which boxes greedy NMS keeps; boxes of other images, or of other ``groups`` (B, N), do not compete.

    Boxes without area are not kept. The result is a mask, not a list of indices, so that its shape does not depend on
    the data and the graph can be exported.
    """
    if not torch.compiler.is_exporting():
        boxes = boxes.double()  # moving groups apart costs float32 digits; ONNX knows NMS of float32 alone
    real = has_area(boxes)
    if groups is not None:  # each group is moved to a separate place
        boxes = boxes + (groups * (boxes.max() + 1))[..., None]
    # boxes without area share one place and vanish at the first of them, so that NMS compares them with nothing else
    boxes = torch.where(real[..., None], boxes, boxes.new_tensor([-3.0, -3.0, -2.0, -2.0]))
    return _nms_mask(boxes, scores.to(boxes.dtype), threshold) & real


def class_nms(
    boxes: Float[Tensor, "b m 4"], labels: Int[Tensor, "b m"], scores: Float[Tensor, "b m"], threshold: float
) -> Float[Tensor, "b m"]:
    """1 for the boxes of each image that greedy NMS within each class keeps, 0 for the others.

    Unlike `batched_nms` it moves the classes apart in float32, as ``torchvision.ops.batched_nms`` does and the results
    of FCOS's official code depend on, and it keeps boxes without area as long as they have a score.
    """
    real = (scores > 0)[..., None]
    boxes = torch.where(real, boxes, 0)
    apart = labels[..., None] * (boxes.amax((1, 2), keepdim=True) + 1)
    far = boxes.abs().amax((1, 2), keepdim=True) + 1
    # rows without a score share one place, far from everything, and vanish at the first of them
    nowhere = far * boxes.new_tensor([-3.0, -3.0, -2.0, -2.0])
    return _nms_mask(torch.where(real, boxes + apart, nowhere), scores, threshold).to(scores.dtype)


def _nms_mask(boxes: Float[Tensor, "b n 4"], scores: Float[Tensor, "b n"], threshold: float) -> Bool[Tensor, "b n"]:
    """Which boxes greedy NMS keeps, image by image; one node in an exported graph, for any number of images."""
    if torch.compiler.is_exporting():
        return torch.ops.maskkit.nms_mask(boxes, scores, threshold)
    return _nms_by_image(boxes, scores, threshold)


def _nms_by_image(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for mask, b, s in zip(kept, boxes, scores, strict=True):
        mask[nms(b, s, threshold)] = True
    return kept


# `maskkit.export.onnx` translates it to ONNX's NonMaxSuppression, which takes all images at once
torch.library.custom_op(
    "maskkit::nms_mask", mutates_args=(), schema="(Tensor boxes, Tensor scores, float threshold) -> Tensor"
)(_nms_by_image).register_fake(lambda boxes, scores, threshold: torch.empty_like(scores, dtype=torch.bool))
NMS_MASK = torch.ops.maskkit.nms_mask.default


def greedy_nms(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n"], threshold: float, *, plus_one: bool = False
) -> Int[Tensor, "k"]:
    """Indices of the boxes that greedy NMS keeps, best first: a box is removed when its IoU with a kept one exceeds
    ``threshold``.

    ``plus_one`` counts sides as ``x2 - x1 + 1``, as the code bases descended from Fast R-CNN do in pixel units, and
    also removes a box whose IoU equals ``threshold``.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    if plus_one:
        ranked = torch.cat([ranked[:, :2], ranked[:, 2:] + 1], 1)
    overlaps = iou(ranked, ranked) >= threshold if plus_one else iou(ranked, ranked) > threshold
    alive = torch.ones(len(ranked), dtype=torch.bool, device=boxes.device)
    for i in range(len(ranked)):
        if alive[i]:
            alive[i + 1 :] &= ~overlaps[i, i + 1 :]
    return order[alive]


def fast_nms(ranked: Float[Tensor, "*b n 4"], threshold: float) -> Bool[Tensor, "*b n"]:
    """Which of the boxes, ranked best first, no better one overlaps: Fast NMS (YOLACT, section 3.3).

    One matrix instead of a loop: a box that is itself suppressed still suppresses others, so slightly more boxes are
    removed than by greedy NMS. Leading dimensions (classes, images) are independent.
    """
    lists = ranked.flatten(0, -3) if ranked.ndim > 2 else ranked[None]  # (L, N, 4)
    # a few lists at a time, so that their overlaps stay in the cache: a third of the time for 80 lists of 200
    parts = (lists,) if torch.compiler.is_exporting() else lists.split(8)
    kept = [~(iou(part, part).triu(1) > threshold).any(-2) for part in parts]
    return torch.cat(kept).reshape(ranked.shape[:-1])


@torch.no_grad()
def soft_nms(
    boxes: Float[Tensor, "b n 4"],
    labels: Int[Tensor, "b n"],
    scores: Float[Tensor, "b n"],
    threshold: float,
    count: int,
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Indices and scores of the ``count`` best boxes after linear Soft-NMS (Bodla et al., ICCV 2017).

    The best box is taken; those of its class whose IoU with it exceeds ``threshold`` have their scores multiplied by
    ``1 - IoU``; then the best of the rest is taken, and so on.
    """
    overlap = iou(boxes, boxes)  # (B, N, N)
    rivals = (overlap > threshold) & (labels[:, :, None] == labels[:, None])
    left = torch.where(rivals, 1 - overlap, 1)
    chosen, values = [], []
    for _ in range(min(count, scores.shape[1])):
        value, best = scores.max(1, keepdim=True)  # (B, 1)
        chosen.append(best)
        values.append(value)
        scores = scores * left.gather(1, best[..., None].expand(-1, -1, scores.shape[1]))[:, 0]
        scores = scores.scatter(1, best, -1.0)
    return torch.cat(chosen, 1), torch.cat(values, 1).clamp(min=0)


# masks ----------------------------------------------------------------------------------------------------------------


def mask_iou(masks: Bool[Tensor, "*b n h w"]) -> Float[Tensor, "*b n n"]:
    """Intersection over union of every pair, by one matrix product; zero for a pair of empty masks."""
    cells = masks.flatten(-2).float()  # (..., N, h w)
    inter = cells @ cells.transpose(-1, -2)  # (..., N, N)
    area = cells.sum(-1)
    return inter / (area[..., :, None] + area[..., None, :] - inter).clamp(min=1)


def mask_nms(
    masks: Bool[Tensor, "*b n h w"], labels: Int[Tensor, "*b n"], threshold: float = 0.5
) -> Bool[Tensor, "*b n"]:
    """Which of the masks, ranked best first, greedy NMS within each class keeps.

    Leading dimensions are independent. There are as many steps as masks, whatever the data, so that it exports.
    """
    same = labels[..., :, None] == labels[..., None, :]
    worse = ((mask_iou(masks) > threshold) & same).triu(1)  # (..., N, N): column j is overlapped by the better row i
    kept = torch.ones_like(labels, dtype=torch.bool)
    for i in range(kept.shape[-1]):
        kept = kept & ~(worse[..., i, :] & kept[..., i, None])
    return kept


def matrix_nms(
    masks: Bool[Tensor, "*b n h w"],
    labels: Int[Tensor, "*b n"],
    scores: Float[Tensor, "*b n"],
    *,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
    stride: int = 1,
) -> Float[Tensor, "*b n"]:
    """Scores after Matrix NMS (SOLOv2, section 3.3), in the order given, which must be best first.

    A mask j is decayed by the better masks i of its class that overlap it: by the least over i of
    ``f(iou_ij) / f(iou_i)``, where ``iou_i`` is the largest overlap of i with a mask better than itself, and ``f(x)``
    is ``exp(-sigma x^2)`` or ``1 - x``. No loop, and nothing is removed. Overlaps are measured on every ``stride``-th
    row and column, since their matrix product takes most of the time. Leading dimensions are independent.
    """
    if scores.shape[-1] == 0:
        return scores
    same = labels[..., :, None] == labels[..., None, :]
    # (..., N, N): row i is the better mask of the pair
    overlap = (mask_iou(masks[..., ::stride, ::stride]) * same).triu(1)
    covered = overlap.amax(-2)[..., :, None]  # (..., N, 1)
    if kernel == "gaussian":
        # the least quotient of exponentials is the exponential of the largest difference: n of them, not n squared
        return scores * torch.exp(-sigma * (overlap.square() - covered.square()).amax(-2))
    tiny = torch.finfo(overlap.dtype).tiny  # a duplicate of a better mask decays others no further than that one does
    return scores * ((1 - overlap) / (1 - covered).clamp(min=tiny)).amin(-2)
