"""FCOS: object detection without anchors. Tian, Shen, Chen, He: "FCOS: Fully Convolutional One-Stage Object Detection"
(ICCV 2019; TPAMI 2020).

Every location inside an object, near its centre and on the level of its size, predicts the class and the distances to
the four sides of the box; a third output says how good that box is. The detector on its own finds boxes and no masks;
CondInst, BoxInst, BlendMask and PolarMask build on its parts (`maskkit.nn.fcos`).

=========  ==========================================  ========================================================
`Raw`      shape (800 x 1216, COCO), finest of levels  meaning
=========  ==========================================  ========================================================
logits     5 x (B, 80, 100, 152)                       class logits
distances  5 x (B, 4, 100, 152)                        left, top, right, bottom in strides
quality    5 x (B, 1, 100, 152)                        logits of centerness, or of the IoU
extra      none                                        what the mask methods add
=========  ==========================================  ========================================================

Differences from the official code, all deliberate: an image without objects is background instead of an error;
background inside a crowd is ignored; the losses of several processes are normalised each by its own positives.
"""

from dataclasses import dataclass, field
from typing import ClassVar, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import BoxesOnly
from maskkit.decode.outputs import Boxes
from maskkit.models.base import Model
from maskkit.nn.blocks import DeformConv, deform_stages
from maskkit.nn.fcos import (
    FcosDetectorConfig,
    FcosHead,
    FcosRaw,
    detect,
    extents_inside,
    fcos_loss,
    pyramid,
    relative_boxes,
    require_whole_cells,
)
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class FcosConfig(BackboneModelConfig):
    """Knobs of FCOS; the defaults are the published ResNet-50 model for COCO."""

    detector: FcosDetectorConfig = field(default_factory=FcosDetectorConfig)
    deformable: bool = False
    """Modulated deformable convolution in the stages C3 to C5, and as the last one of each tower (mmdetection)."""
    spread: bool = False
    """Whether locations are the upper left corners of cells, and as many pixels apart as the cells go into the input
    (torchvision); otherwise they are their middles, a stride apart."""


class Fcos(Model[FcosRaw, Boxes[Tensor]]):
    """The plain detector."""

    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    supervision: ClassVar[frozenset[str]] = frozenset({"boxes"})
    decoder = BoxesOnly()
    config: FcosConfig

    def __init__(self, config: FcosConfig) -> None:
        super().__init__()
        self.config = config
        detector = config.detector
        self.backbone, self.fpn = pyramid(config.backbone, detector.width, len(detector.strides))
        self.head = FcosHead(detector, config.num_classes)
        if config.deformable:
            deform_stages(self.backbone.body, bias=False)
            for tower in (self.head.class_tower, self.head.box_tower):
                tower[-3] = DeformConv(cast(nn.Conv2d, tower[-3]), bias=detector.tower_bias)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> FcosRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        levels = self.fpn(list(self.backbone(images).values()))
        return self.head(levels, extents_inside(images, sizes, self.config.detector))

    def loss_terms(self, raw: FcosRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Focal, GIoU and quality terms."""
        return fcos_loss(raw.float(), batch, self.config.detector, spread=self.config.spread)[0]

    def select(self, raw: FcosRaw) -> Boxes[Tensor]:
        """The best boxes after NMS."""
        found = detect(raw, self.config.detector, self.config.spread)
        return Boxes(relative_boxes(found, raw, self.config.detector), found.labels, found.scores)
