"""Mask R-CNN: Faster R-CNN with a mask branch.

He, Gkioxari, Dollar, Girshick: "Mask R-CNN" (ICCV 2017).

A third branch reads the features of each region on a finer grid and draws one mask for every class; which of them
counts is for the box branch to say, so that the classes do not compete. In training the branch sees the positive
regions, in inference the final boxes. RoIAlign, which rounds nothing, keeps mask and image together.

==============  ===========================  ===============================================================
`MaskRaw`       shape (800 x 1216, COCO)     meaning
==============  ===========================  ===============================================================
boxes                                        `BoxRaw`, as in `maskkit.models.faster_rcnn`
regions.rois    (B 100, 5)                   final boxes; in training the positive regions
regions.labels  (B 100)                      their class; in training their object's
regions.scores  (B 100)                      their score; in training 1
mask_logits     (B 100, 28, 28)              the mask of that class on a grid over the box
==============  ===========================  ===============================================================

Objects of which only the box is known train the mask branch too (`maskkit.nn.mask_stage`).

Differences from the official code, all deliberate: the masks of classes that nobody asks for are never computed;
background inside a crowd is ignored; mask targets are cropped from bitmaps, not drawn from polygons.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import BoxOnly
from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.losses import in_fp32
from maskkit.nn.mask_stage import (
    MaskConfig,
    MaskRaw,
    draw,
    final_regions,
    mask_terms,
    object_masks,
    positive_regions,
)
from maskkit.nn.roi import MaskHead, head_convs
from maskkit.nn.two_stage import Rcnn, RcnnConfig
from maskkit.ranges import Count, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class MaskRcnnConfig(RcnnConfig):
    """Knobs of Mask R-CNN; the defaults are detectron2's."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    mask_width: Count = 256
    """Channels of the mask head."""
    mask_convs: Whole = 4
    paste: Literal["exact", "whole_pixels"] = "exact"
    """Whether masks are put where their boxes are (detectron2), or the boxes are rounded first (torchvision)."""


class MaskRcnn(Rcnn, Model[MaskRaw, ObjectMasks[Tensor]]):
    """Faster R-CNN with a mask branch."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    config: MaskRcnnConfig

    def __init__(self, config: MaskRcnnConfig) -> None:
        super().__init__(config)
        self.config = config
        self.decoder = InBoxes(config.paste)
        convs = head_convs(config.width, config.mask_width, config.mask_convs, config.batch_norm)
        self.mask_head = MaskHead(convs, config.mask_width, config.num_classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> MaskRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, boxes = self.boxes(images, sizes, targets)
        regions = final_regions(self.detect(boxes)) if targets is None else positive_regions(boxes.sampled, targets)
        bins = self.config.mask.bins
        masks = draw(regions, lambda rois, labels: self.mask_head(self.pool(levels, rois, bins), labels))
        return MaskRaw(boxes, regions, masks)

    def loss_terms(self, raw: MaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Faster R-CNN, cross entropy of known masks, and what boxes say about the others."""
        raw, config = in_fp32(raw), self.config
        return self.box_terms(raw.boxes, batch) | mask_terms(*raw, batch, config.mask, config.box_only)

    def select(self, raw: MaskRaw) -> ObjectMasks[Tensor]:
        """The final boxes and their masks."""
        return object_masks(*raw)
