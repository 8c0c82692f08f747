"""Faster R-CNN on a feature pyramid: object detection in two stages.

Ren, He, Girshick, Sun: "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks" (NeurIPS 2015);
Lin et al.: "Feature Pyramid Networks for Object Detection" (CVPR 2017).

A small network slides over every level of the pyramid and says where objects may be; the features of each such region
are pooled to one size, and a second network names the object and refines the box. The detector on its own finds boxes
and no masks; Mask R-CNN and what follows build on its parts (`maskkit.nn.two_stage`).

===============  ===========================  ==============================================================
`BoxRaw`         shape (800 x 1216, COCO)     meaning
===============  ===========================  ==============================================================
rpn.objectness   (B, 242991)                  logits of the anchors of P2 to P6
rpn.deltas       (B, 242991, 4)               their box code
rpn.anchors      (242991, 4)                  in input pixels
sampled.rois     (B 1000, 5)                  image and box of each region; in training the sampled ones
sampled.matched  (B 1000)                     index of the region's object, in training
class_logits     (B 1000, 81)                 background is last
box_deltas       (B 1000, 80, 4)              box code for every class
extents          (B, 2)                       width and height of each image without padding
size             (2)                          width and height of the input
===============  ===========================  ==============================================================

Differences from the official code, all deliberate: background inside a crowd is ignored; regions have a fixed number in
inference (boxes without area fill up), so that the graph can be exported.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.decode import BoxesOnly
from maskkit.decode.outputs import Boxes
from maskkit.models.base import Model
from maskkit.nn.losses import in_fp32
from maskkit.nn.two_stage import FEATURE_STRIDES, BoxRaw, Rcnn, RcnnConfig
from maskkit.ranges import FeatureStride
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class FasterRcnnConfig(RcnnConfig):
    """Knobs of Faster R-CNN; the defaults are detectron2's."""

    feature_strides: tuple[FeatureStride, ...] = FEATURE_STRIDES
    """Strides of the backbone's features that the pyramid is made of; -32 stands for what enters stride 32, the output
    of its first block (MobileNetV3 in torchvision)."""


class FasterRcnn(Rcnn, Model[BoxRaw, Boxes[Tensor]]):
    """The plain detector."""

    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    supervision: ClassVar[frozenset[str]] = frozenset({"boxes"})
    decoder = BoxesOnly()
    config: FasterRcnnConfig

    def __init__(self, config: FasterRcnnConfig) -> None:
        super().__init__(config, config.feature_strides)
        self.config = config

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> BoxRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        return self.boxes(images, sizes, targets)[1]

    def loss_terms(self, raw: BoxRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy and smooth L1 of either stage."""
        return self.box_terms(in_fp32(raw), batch)

    def select(self, raw: BoxRaw) -> Boxes[Tensor]:
        """The best boxes after NMS."""
        found = self.detect(raw)
        return Boxes(found.boxes / raw.size.repeat(2), found.labels, found.scores)
