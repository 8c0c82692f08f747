"""The network that CondInst and BoxInst share: FCOS, a mask branch, and a dynamic head for every location."""

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
    pyramid,
    relative_boxes,
    require_whole_cells,
)
from maskkit.nn.fcos_targets import Positives
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
