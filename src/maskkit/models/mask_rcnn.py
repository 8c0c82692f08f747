"""Mask R-CNN: Faster R-CNN with a mask branch.

He, Gkioxari, Dollar, Girshick: "Mask R-CNN" (ICCV 2017).

A third branch reads the features of each region on a finer grid and draws one mask for every class; which of them
counts is for the box branch to say, so that the classes do not compete. In training the branch sees the positive
regions, in inference the final boxes. RoIAlign, which rounds nothing, keeps mask and image together.

============  ===========================  ================================================================
`Raw`         shape (800 x 1216, COCO)     meaning
============  ===========================  ================================================================
...                                        the fields of `BoxRaw`, as in `maskkit.models.faster_rcnn`
mask_rois     (B 100, 5)                   final boxes; in training the positive regions
mask_labels   (B 100)                      their class; in training their object's
mask_scores   (B 100)                      their score; in training 1
mask_logits   (B 100, 28, 28)              the mask of that class on a grid over the box
============  ===========================  ================================================================

Objects of which only the box is known train the mask branch too (`maskkit.nn.mask_stage`).

Differences from the official code, all deliberate: the masks of classes that nobody asks for are never computed;
background inside a crowd is ignored; mask targets are cropped from bitmaps, not drawn from polygons.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.mask_stage import MaskRaw, MaskStage, MaskStageConfig
from maskkit.nn.roi import MaskHead
from maskkit.nn.two_stage import BoxRaw
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class MaskRcnnConfig(MaskStageConfig):
    """Knobs of Mask R-CNN; the defaults are detectron2's."""

    mask_width: int = 256
    mask_convs: int = 4
    mask_bins: int = 14
    """Side of the grid of features that the mask head reads; masks have twice as many cells."""
    paste: Literal["exact", "whole_pixels"] = "exact"
    """Whether masks are put where their boxes are (detectron2), or the boxes are rounded first (torchvision)."""


class MaskRcnn(MaskStage, Model[MaskRaw, ObjectMasks[Tensor]]):
    """Faster R-CNN with a mask branch."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    config: MaskRcnnConfig

    def __init__(self, config: MaskRcnnConfig) -> None:
        super().__init__(config)
        self.decoder = InBoxes(config.paste)
        self.mask_head = MaskHead(config.width, config.mask_width, config.mask_convs, config.num_classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> MaskRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, raw = self.boxes(images, sizes, targets)
        regions = self.mask_regions(raw, targets)
        bins = self.config.mask_bins
        masks = self.draw(regions, lambda rois, labels: self.mask_head(self.pool(levels, rois, bins), labels))
        return MaskRaw(*raw, *regions, masks)

    def loss_terms(self, raw: MaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Faster R-CNN, cross entropy of known masks, and what boxes say about the others."""
        raw = MaskRaw(*(t.float() if t.is_floating_point() else t for t in raw))
        boxes = BoxRaw(*raw[: len(BoxRaw._fields)])
        return {**self.box_terms(boxes, batch), **self.mask_terms(raw, batch)}

    def select(self, raw: MaskRaw) -> ObjectMasks[Tensor]:
        """The final boxes and their masks."""
        return ObjectMasks(*self.found(raw))
