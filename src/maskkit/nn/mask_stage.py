"""A mask branch behind the two stages: what Mask R-CNN, PANet and MaskLab have in common.

In training the branch sees the positive regions, in inference the final boxes. Objects of which only the box is known
train it by `mask_loss_from_boxes`: their region is the union of proposal and box, widened by a random share on each
side, so that it shows what lies around the object, and neither the middle nor the rim of a region stands for anything.
The image inside the region is to the loss what the whole image is elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from maskkit.config import BoxOnly
from maskkit.nn.losses import FromBoxes, ImageColours, mask_loss_from_colours, normaliser
from maskkit.nn.roi import Sampled, as_rois, crop_masks, objects_of
from maskkit.nn.two_stage import BoxRaw, TwoStage, TwoStageConfig
from maskkit.targets import Batch, Target

_WIDEN = 0.5
"""Largest share of its size by which a region is widened on each side where only the object's box is known."""


@dataclass(frozen=True)
class MaskStageConfig(TwoStageConfig):
    """Knobs of a mask branch."""

    box_only: BoxOnly = field(default_factory=BoxOnly)
    aligned_targets: bool = True
    """Whether mask targets are cropped exactly, or half a pixel off as RoIAlign does it without ``aligned``
    (torchvision)."""
    soft_targets: bool = False
    """Whether mask targets keep the values between 0 and 1 that cropping gives (torchvision), or are cut at 0.5."""


class MaskRegions(NamedTuple):
    """The regions of which masks are drawn, M in all."""

    mask_rois: Float[Tensor, "m 5"]
    """Final boxes; in training the positive regions."""
    mask_labels: Int[Tensor, "m"]
    """Their class; in training their object's."""
    mask_scores: Float[Tensor, "m"]
    """Their score; in training 1."""


class MaskRaw(NamedTuple):
    """What the two stages say, with masks: the fields of `BoxRaw`, those of `MaskRegions`, and the masks."""

    objectness: Float[Tensor, "b a"]
    anchor_deltas: Float[Tensor, "b a 4"]
    anchors: Float[Tensor, "a 4"]
    rois: Float[Tensor, "n 5"]
    matched: Int[Tensor, "n"]
    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n k 4"]
    extents: Float[Tensor, "b 2"]
    size: Float[Tensor, "2"]
    mask_rois: Float[Tensor, "m 5"]
    mask_labels: Int[Tensor, "m"]
    mask_scores: Float[Tensor, "m"]
    mask_logits: Float[Tensor, "m s s"]
    """The mask of the region's class on a grid over the region."""


class MaskStage(TwoStage):
    """Two stages and what is done with the masks of their regions; how these are drawn is for the method to say."""

    config: MaskStageConfig

    # regions ---------------------------------------------------------------------------------------------------------

    def mask_regions(self, raw: BoxRaw, targets: list[Target] | None) -> MaskRegions:
        """The final boxes, or with ``targets`` the regions that train masks."""
        if targets is None:
            found = self.detect(raw)
            return MaskRegions(as_rois(found.boxes), found.labels.flatten(), found.scores.flatten())
        rois, labels = self._positive(Sampled(raw.rois, raw.matched), targets)
        return MaskRegions(rois, labels, torch.ones_like(rois[:, 0]))

    def _positive(self, sampled: Sampled, targets: list[Target]) -> tuple[Tensor, Tensor]:
        """Regions and classes that train masks: the positive ones, widened where only the object's box is known."""
        positive, objects = objects_of(sampled, targets)
        rois = sampled.rois[positive]
        boxes, labels, known = (
            torch.cat([getattr(t, name) for t in targets])[objects] for name in ("boxes", "labels", "has_mask")
        )
        low, high = torch.minimum(rois[:, 1:3], boxes[:, :2]), torch.maximum(rois[:, 3:], boxes[:, 2:])
        more = _WIDEN * torch.rand(2, len(rois), 2).to(rois.device) * (high - low)
        wide = torch.cat([rois[:, :1], low - more[0], high + more[1]], 1)
        return torch.where(known[:, None], rois, wide), labels

    @staticmethod
    def draw(regions: MaskRegions, masks_of: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, "m *c s s"]:
        """What ``masks_of`` makes of the regions and their labels. Padding, which has no score, it need not see."""
        rois, labels, scores = regions
        if torch.compiler.is_exporting() or (scores > 0).all():  # a graph of fixed shapes works for the padding too
            return masks_of(rois, labels)
        real = torch.nonzero(scores > 0)[:, 0]
        masks = masks_of(rois[real], labels[real])
        return masks.new_zeros(len(rois), *masks.shape[1:]).index_copy(0, real, masks)

    # loss ------------------------------------------------------------------------------------------------------------

    def mask_terms(self, raw: MaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of known masks, and what boxes say about the others."""
        positive, objects = objects_of(Sampled(raw.rois, raw.matched), batch.targets)
        known = torch.cat([t.has_mask for t in batch.targets])[objects]
        sampled = Sampled(raw.mask_rois, raw.matched[positive])
        from_boxes = self._from_boxes(raw, torch.cat([t.boxes for t in batch.targets])[objects], ~known, batch)
        return {
            "mask": self._from_masks(raw.mask_logits, sampled, known, batch),
            "mask/projection": from_boxes.projection.sum() / normaliser(len(from_boxes.projection)),
            "mask/pairwise": from_boxes.pairwise,
        }

    def _from_masks(
        self, logits: Float[Tensor, "m s s"], sampled: Sampled, known: Bool[Tensor, "m"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Mean cross entropy over the regions whose object's mask is known."""
        count = normaliser(known.sum())
        if not known.any():
            return logits.sum() * 0
        sampled = Sampled(sampled.rois[known], sampled.matched[known])
        truth = crop_masks(batch.targets, sampled, logits.shape[1], self.config.aligned_targets)
        if not self.config.soft_targets:
            truth = (truth >= 0.5).float()
        wrong = F.binary_cross_entropy_with_logits(logits[known], truth, reduction="none").mean((1, 2))
        return wrong.sum() / count

    def _from_boxes(
        self, raw: MaskRaw, boxes: Float[Tensor, "m 4"], wanted: Bool[Tensor, "m"], batch: Batch
    ) -> FromBoxes:
        """The box-only loss of the ``wanted`` regions, each an image of its own, of two pixels to a cell."""
        logits, rois, boxes = raw.mask_logits[wanted], raw.mask_rois[wanted], boxes[wanted]
        side = 2 * logits.shape[1]
        seen = roi_align(batch.valid[:, None].float(), rois, side, aligned=True)[:, 0] > 0.5
        # the last rows of an image are not the last rows of a region: skip_bottom has no place here
        crops = ImageColours(
            batch.rgb(roi_align(batch.images.float(), rois, side, aligned=True), seen), seen, batch.progress
        )
        scale = side / (rois[:, 3:] - rois[:, 1:3])
        inside = ((boxes.unflatten(1, (2, 2)) - rois[:, None, 1:3]) * scale[:, None]).flatten(1)
        each = torch.arange(len(rois), device=rois.device)
        return mask_loss_from_colours(logits, inside, each, crops, self.config.box_only)

    # selection -------------------------------------------------------------------------------------------------------

    @staticmethod
    def found(raw: MaskRaw) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields of `ObjectMasks`: the final boxes, their classes, scores and masks, and the scores again."""
        b = len(raw.extents)
        boxes = (raw.mask_rois[:, 1:] / raw.size.repeat(2)).unflatten(0, (b, -1))
        labels, scores = raw.mask_labels.unflatten(0, (b, -1)), raw.mask_scores.unflatten(0, (b, -1))
        return boxes, labels, scores, raw.mask_logits.float().sigmoid().unflatten(0, (b, -1)), scores
