"""A mask branch after the two stages: the common part of Mask R-CNN, PANet and EVA's detector.

In training the branch sees the positive regions, in inference the final boxes. Objects with a known box and no mask
train it by `loss_from_boxes`: their region is the union of proposal and box, enlarged by a random share on each side.
So it contains the surroundings of the object, and the object has no fixed position in it. The loss treats the image
inside the region as other methods treat the whole image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from maskkit.config import BoxOnly
from maskkit.decode.outputs import ObjectMasks
from maskkit.nn.losses import FromBoxes, ImageColours, mask_loss_from_colours, normaliser
from maskkit.nn.roi import RankedBoxes, Sampled, as_rois, crop_masks, objects_of
from maskkit.nn.two_stage import BoxRaw
from maskkit.ranges import Count
from maskkit.targets import Batch, Target

_WIDEN = 0.5
"""Largest share of its size by which a region is widened on each side where only the object's box is known."""


@dataclass(frozen=True)
class MaskConfig:
    """How the masks of regions are drawn and learnt; the defaults are detectron2's."""

    bins: Count = 14
    """Side of the grid of features that the mask head reads; masks have twice as many cells."""
    aligned_targets: bool = True
    """Whether mask targets are cropped exactly, or half a pixel off as RoIAlign does it without ``aligned``
    (torchvision)."""
    soft_targets: bool = False
    """Whether mask targets keep the values between 0 and 1 that cropping gives (torchvision), or are cut at 0.5."""


class MaskRegions(NamedTuple):
    """The regions of which masks are drawn, M in all."""

    rois: Float[Tensor, "m 5"]
    """Final boxes; in training the positive regions."""
    labels: Int[Tensor, "m"]
    """Their class; in training their object's."""
    scores: Float[Tensor, "m"]
    """Their score; in training 1."""


class MaskRaw(NamedTuple):
    """What the two stages say, with masks."""

    boxes: BoxRaw
    regions: MaskRegions
    mask_logits: Float[Tensor, "m s s"]
    """The mask of the region's class on a grid over the region."""


# regions --------------------------------------------------------------------------------------------------------------


def final_regions(found: RankedBoxes) -> MaskRegions:
    """The final boxes of an inference, image by image."""
    return MaskRegions(as_rois(found.boxes), found.labels.flatten(), found.scores.flatten())


def positive_regions(sampled: Sampled, targets: Sequence[Target]) -> MaskRegions:
    """The regions that train masks: the positive ones, widened where only the object's box is known."""
    positive, objects = objects_of(sampled, targets)
    rois = sampled.rois[positive]
    boxes, labels, known = (
        torch.cat([getattr(t, name) for t in targets])[objects] for name in ("boxes", "labels", "has_mask")
    )
    low, high = torch.minimum(rois[:, 1:3], boxes[:, :2]), torch.maximum(rois[:, 3:], boxes[:, 2:])
    more = _WIDEN * torch.rand(2, len(rois), 2).to(rois.device) * (high - low)
    wide = torch.cat([rois[:, :1], low - more[0], high + more[1]], 1)
    return MaskRegions(torch.where(known[:, None], rois, wide), labels, torch.ones_like(rois[:, 0]))


def draw(regions: MaskRegions, masks_of: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, "m *c s s"]:
    """What ``masks_of`` makes of the regions and their labels. Padding, which has no score, it need not see."""
    rois, labels, scores = regions
    if torch.compiler.is_exporting() or (scores > 0).all():  # a graph of fixed shapes works for the padding too
        return masks_of(rois, labels)
    real = torch.nonzero(scores > 0)[:, 0]
    masks = masks_of(rois[real], labels[real])
    return masks.new_zeros(rois.shape[0], *masks.shape[1:]).index_copy(0, real, masks)


# loss -----------------------------------------------------------------------------------------------------------------


def mask_terms(
    boxes: BoxRaw,
    regions: MaskRegions,
    logits: Float[Tensor, "m s s"],
    batch: Batch,
    config: MaskConfig,
    box_only: BoxOnly,
) -> dict[str, Float[Tensor, ""]]:
    """Cross entropy of known masks, and what boxes say about the others."""
    positive, objects = objects_of(boxes.sampled, batch.targets)
    known = torch.cat([t.has_mask for t in batch.targets])[objects]
    sampled = Sampled(regions.rois, boxes.sampled.matched[positive])
    objects_boxes = torch.cat([t.boxes for t in batch.targets])[objects]
    from_boxes = loss_from_boxes(logits[~known], regions.rois[~known], objects_boxes[~known], batch, box_only)
    return {
        "mask": loss_from_masks(logits, sampled, known, batch.targets, config),
        "mask/projection": from_boxes.projection.sum() / normaliser(len(from_boxes.projection)),
        "mask/pairwise": from_boxes.pairwise,
    }


def loss_from_masks(
    logits: Float[Tensor, "m s s"],
    sampled: Sampled,
    known: Bool[Tensor, "m"],
    targets: Sequence[Target],
    config: MaskConfig,
) -> Float[Tensor, ""]:
    """Mean cross entropy over the regions whose object's mask is known."""
    count = normaliser(known.sum())
    if not known.any():
        return logits.sum() * 0
    sampled = Sampled(sampled.rois[known], sampled.matched[known])
    truth = crop_masks(targets, sampled, logits.shape[1], config.aligned_targets)
    if not config.soft_targets:
        truth = (truth >= 0.5).float()
    wrong = F.binary_cross_entropy_with_logits(logits[known], truth, reduction="none").mean((1, 2))
    return wrong.sum() / count


def loss_from_boxes(
    logits: Float[Tensor, "m s s"],
    rois: Float[Tensor, "m 5"],
    boxes: Float[Tensor, "m 4"],
    batch: Batch,
    box_only: BoxOnly,
) -> FromBoxes:
    """The box-only loss of regions with the ``boxes`` of their objects; each region is an image with two pixels per
    cell."""
    side = 2 * logits.shape[1]
    seen = roi_align(batch.valid[:, None].float(), rois, side, aligned=True)[:, 0] > 0.5
    # the last rows of an image are not the last rows of a region: skip_bottom has no place here
    crops = ImageColours(
        batch.rgb(roi_align(batch.images.float(), rois, side, aligned=True), seen), seen, batch.progress
    )
    scale = side / (rois[:, 3:] - rois[:, 1:3])
    inside = ((boxes.unflatten(1, (2, 2)) - rois[:, None, 1:3]) * scale[:, None]).flatten(1)
    each = torch.arange(len(rois), device=rois.device)
    return mask_loss_from_colours(logits, inside, each, crops, box_only)


# selection ------------------------------------------------------------------------------------------------------------


def object_masks(boxes: BoxRaw, regions: MaskRegions, logits: Float[Tensor, "m s s"]) -> ObjectMasks[Tensor]:
    """The final boxes of each image and their masks, ranked by the scores of the boxes."""
    b = boxes.extents.shape[0]
    places = (regions.rois[:, 1:] / boxes.size.repeat(2)).unflatten(0, (b, -1))
    labels, scores = (t.unflatten(0, (b, -1)) for t in (regions.labels, regions.scores))
    return ObjectMasks(places, labels, scores, logits.float().sigmoid().unflatten(0, (b, -1)), scores)
