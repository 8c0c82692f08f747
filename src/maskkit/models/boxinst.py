"""BoxInst: instance segmentation from boxes alone.

Tian, Shen, Wang, Chen: "BoxInst: High-Performance Instance Segmentation with Box Annotations" (CVPR 2021).

The network is CondInst's (`maskkit.nn.dynamic_mask`) with sixteen mask maps; what is new is how it learns. A mask has
to be as wide and as high as its box, and neighbours of one colour have to be on the same side of its outline
(`maskkit.nn.losses.mask_loss_from_boxes`). Masks are never looked at, not even where a data set has them.

===================  ==========================================  =====================================================
`Raw`                shape (800 x 1216, COCO), finest of levels  meaning
===================  ==========================================  =====================================================
detector.logits      5 x (B, 80, 100, 152)                       class logits
detector.distances   5 x (B, 4, 100, 152)                        left, top, right, bottom in strides
detector.quality     5 x (B, 1, 100, 152)                        centerness logits
detector.extra       5 x (B, 233, 100, 152)                      parameters of the dynamic heads
branch.features      (B, 16, 100, 152)                           what every dynamic head reads
===================  ==========================================  =====================================================

Differences from the official code, all deliberate: an image without objects is background instead of an error;
background inside a crowd is ignored; a mask cell next to the image's edge is not compared beyond it, which officially
has weight zero; masks go from a quarter of the input to the original in one interpolation.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.dynamic_fcos import DynamicFcos
from maskkit.nn.dynamic_mask import DynamicMaskConfig, DynamicMaskRaw, mask_terms
from maskkit.nn.fcos import FcosDetectorConfig, FcosRaw, pick
from maskkit.nn.fcos_targets import Positives
from maskkit.ranges import Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class BoxInstConfig(BackboneModelConfig):
    """Knobs of BoxInst; the defaults are the published ResNet-50 model for COCO."""

    detector: FcosDetectorConfig = field(default_factory=lambda: FcosDetectorConfig(score_with_quality=True))
    masks: DynamicMaskConfig = field(default_factory=lambda: DynamicMaskConfig(mask_channels=16))
    box_only: BoxOnly = field(default_factory=BoxOnly)
    masks_to_train: Whole = 64
    """Positives of an image that enter the mask loss, shared out equally among its objects, best scored first."""


class BoxInst(DynamicFcos, Model[DynamicMaskRaw, ObjectMasks[Tensor]]):
    """CondInst's network, taught by boxes."""

    supervision: ClassVar[frozenset[str]] = frozenset({"boxes"})
    draws_in_boxes = True
    decoder = OverInput(offset=0.5)
    config: BoxInstConfig

    def __init__(self, config: BoxInstConfig) -> None:
        super().__init__(config.backbone, config.num_classes, config.detector, config.masks)
        self.config = config

    def loss_terms(self, raw: DynamicMaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The detector's terms, ``mask/projection`` and ``mask/pairwise``."""
        raw = raw.float()
        batch = replace(batch, targets=[without_masks(target) for target in batch.targets])
        config = self.config
        losses, positives = self.detector_terms(raw, batch)
        chosen = shared_out(positives, raw.detector, config.masks_to_train)
        terms = mask_terms(raw, chosen, batch, config.detector.strides, config.masks, config.box_only)
        return losses | {name: terms[name] for name in ("mask/projection", "mask/pairwise")}


def without_masks(target: Target) -> Target:
    """The target with all its masks unknown."""
    return replace(target, masks=None, has_mask=torch.zeros_like(target.has_mask))


@torch.no_grad()
def shared_out(positives: Positives, raw: FcosRaw, per_image: int) -> Positives:
    """The positives with the best class times centerness, as many for each object: at least one.

    Official ``TOPK_PROPOSALS_PER_IM``: an object gets ``per_image // objects of the image that have positives``.
    """
    where = positives.image, positives.location
    score = pick(raw.logits, *where).amax(1).sigmoid() * pick(raw.quality, *where)[:, 0].sigmoid()
    order = score.argsort(descending=True, stable=True)
    owners, owner, sizes = torch.stack([positives.image, positives.object]).unique(
        dim=1, return_inverse=True, return_counts=True
    )
    order = order[owner[order].argsort(stable=True)]  # object by object, best first
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[owner[order]]
    objects = owners[0].bincount(minlength=len(raw.logits[0]))  # of each image
    share = (per_image // objects.clamp(min=1)).clamp(min=1)
    kept = order[rank < share[positives.image[order]]]
    return Positives(*(column[kept] for column in positives))
