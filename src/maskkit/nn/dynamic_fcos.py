"""The network that CondInst and BoxInst share: FCOS, a mask branch, and a dynamic head for every location."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneConfig
from maskkit.decode.outputs import ObjectMasks
from maskkit.nn.dynamic_mask import DynamicMaskConfig, DynamicMaskRaw, MaskBranch, centres_of, find
from maskkit.nn.fcos import (
    FcosDetectorConfig,
    FcosHead,
    extents_inside,
    fcos_loss,
    input_size,
    pyramid,
    relative_boxes,
    require_whole_cells,
)
from maskkit.nn.fcos_targets import Positives
from maskkit.nn.given_boxes import certainty, draw_in
from maskkit.nn.losses import box_cells
from maskkit.targets import Batch, Target


class DynamicFcos(nn.Module):
    """Both methods but for their loss of masks. ``semantic`` classes get logits of their own; 0: no such output."""

    def __init__(
        self,
        backbone: BackboneConfig,
        num_classes: int,
        detector: FcosDetectorConfig,
        masks: DynamicMaskConfig,
        semantic: int = 0,
    ) -> None:
        super().__init__()
        self._detector, self._masks = detector, masks
        self.backbone, self.fpn = pyramid(backbone, detector.width, len(detector.strides))
        self.head = FcosHead(detector, num_classes, extra=masks.head_parameters)
        self.mask_branch = MaskBranch(masks, detector.width, semantic)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> DynamicMaskRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        levels = self.fpn(list(self.backbone(images).values()))
        found = self.head(levels, extents_inside(images, sizes, self._detector))
        return DynamicMaskRaw(found, self.mask_branch(levels[:3]))

    def detector_terms(self, raw: DynamicMaskRaw, batch: Batch) -> tuple[dict[str, Float[Tensor, ""]], Positives]:
        """The losses of FCOS, and the locations that have an object."""
        return fcos_loss(raw.detector, batch, self._detector, centres_of(batch))

    def select(self, raw: DynamicMaskRaw) -> ObjectMasks[Tensor]:
        """NMS of boxes or of masks; the masks lie on a grid of a quarter of the input."""
        found, masks = find(raw, self._detector, self._masks)
        boxes = relative_boxes(found, raw.detector, self._detector)
        return ObjectMasks(boxes, found.labels, found.scores, masks, found.scores)

    def select_in(self, raw: DynamicMaskRaw, boxes: Float[Tensor, "b n 4"]) -> ObjectMasks[Tensor]:
        """Masks in given boxes (`maskkit.models.base.Model.select_in`); cells outside of them are not judged."""
        height, width = input_size(raw.detector, self._detector)
        given = boxes * boxes.new_tensor([width, height, width, height])
        masks = draw_in(raw, given, self._detector, self._masks)
        inside = box_cells(given.flatten(0, 1), (height, width), (masks.shape[2], masks.shape[3])).view(masks.shape)
        sure = certainty(masks * inside)
        numbers = torch.arange(boxes.shape[1], device=boxes.device).expand(sure.shape)
        return ObjectMasks(boxes, numbers, torch.ones_like(sure), masks, sure)
