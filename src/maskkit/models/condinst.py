"""CondInst: masks by filters that each object brings along.

Tian, Shen, Chen: "Conditional Convolutions for Instance Segmentation" (ECCV 2020).

FCOS finds the objects, and a controller beside its box output gives every location 169 numbers: the weights of a tiny
network of three 1x1 convolutions. Run on eight maps of the whole image, with the offset to the location as two
channels more, this network draws the mask of its own object. No region is cut out, no mask is tied to a box.

===================  ==========================================  =====================================================
`Raw`                shape (800 x 1216, COCO), finest of levels  meaning
===================  ==========================================  =====================================================
detector.logits      5 x (B, 80, 100, 152)                       class logits
detector.distances   5 x (B, 4, 100, 152)                        left, top, right, bottom in strides
detector.quality     5 x (B, 1, 100, 152)                        centerness logits
detector.extra       5 x (B, 169, 100, 152)                      parameters of the dynamic heads
branch.features      (B, 8, 100, 152)                            what every dynamic head reads
branch.semantic      (B, 80, 100, 152)                           semantic logits where that loss is on, used by it alone
===================  ==========================================  =====================================================

Masks of objects of which only the box is known are learnt from the box (`maskkit.nn.losses`), beside others whose masks
are known. `BoxInst` is the same network with the knobs that suit boxes alone.

Differences from the official code, all deliberate: an object with an empty mask is taken at the centre of its box,
where the official code may lose all objects of the image; an image without objects is background instead of an
error; background inside a crowd is ignored; masks go from a quarter of the input to the original in one interpolation.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.dynamic_fcos import DynamicFcos
from maskkit.nn.dynamic_mask import DynamicMaskConfig, DynamicMaskRaw, mask_terms, semantic_loss, some
from maskkit.nn.fcos import FcosDetectorConfig
from maskkit.ranges import Weight, Whole
from maskkit.targets import Batch


@dataclass(frozen=True)
class CondInstConfig(BackboneModelConfig):
    """Knobs of CondInst; the defaults are the published ResNet-50 model for COCO."""

    detector: FcosDetectorConfig = field(default_factory=lambda: FcosDetectorConfig(score_with_quality=True))
    masks: DynamicMaskConfig = field(default_factory=DynamicMaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    semantic_weight: Weight = 0.0
    """Weight of the auxiliary semantic loss on P3; 0 builds no such branch."""
    masks_to_train: Whole = 500
    """Positives of a batch that enter the mask loss, chosen at random."""


class CondInst(DynamicFcos, Model[DynamicMaskRaw, ObjectMasks[Tensor]]):
    """FCOS with a mask branch and a dynamic mask head for every object."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    draws_in_boxes = True
    decoder = OverInput(offset=0.5)
    config: CondInstConfig

    def __init__(self, config: CondInstConfig) -> None:
        semantic = config.num_classes if config.semantic_weight else 0
        super().__init__(config.backbone, config.num_classes, config.detector, config.masks, semantic)
        self.config = config

    def loss_terms(self, raw: DynamicMaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The detector's terms, dice of known masks, BoxInst's terms of the others, and the semantic option."""
        raw = raw.float()
        config = self.config
        losses, positives = self.detector_terms(raw, batch)
        chosen = some(positives, config.masks_to_train)
        losses |= mask_terms(raw, chosen, batch, config.detector.strides, config.masks, config.box_only)
        if raw.branch.semantic is not None:
            losses["semantic"] = config.semantic_weight * semantic_loss(raw.branch.semantic, batch)
        return losses
