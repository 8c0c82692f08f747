"""Faster R-CNN on a feature pyramid: object detection in two stages.

Ren, He, Girshick, Sun: "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks" (NeurIPS 2015);
Lin et al.: "Feature Pyramid Networks for Object Detection" (CVPR 2017).

A small network slides over every level of the pyramid and says where objects may be; the features of each such region
are pooled to one size, and a second network names the object and refines the box. The detector on its own finds boxes
and no masks; Mask R-CNN and what follows build on its parts (`maskkit.nn.two_stage`).

=============  ===========================  ================================================================
`Raw`          shape (800 x 1216, COCO)     meaning
=============  ===========================  ================================================================
objectness     (B, 242991)                  logits of the anchors of P2 to P6
anchor_deltas  (B, 242991, 4)               their box code
anchors        (242991, 4)                  in input pixels
rois           (B 1000, 5)                  picture and box of each region; in training the sampled ones
matched        (B 1000)                     index of the region's object, in training
class_logits   (B 1000, 81)                 background is last
box_deltas     (B 1000, 80, 4)              box code for every class
pictures       (B, 2)                       width and height of each picture without padding
size           (2)                          width and height of the input
=============  ===========================  ================================================================

Differences from the official code, all deliberate: background inside a crowd is ignored; regions have a fixed number in
inference (boxes without area fill up), so that the graph can be exported.
"""

from dataclasses import replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from maskkit.config import Preset
from maskkit.models.base import Model, SelectedBoxes
from maskkit.nn.two_stage import TORCHVISION, BoxRaw, TwoStage, TwoStageConfig, small_two_stage
from maskkit.recipes import (
    CAFFE_INPUT,
    MULTI_SCALE,
    SINGLE_SCALE,
    SMALL_AUGMENT,
    SMALL_TRAIN,
    TORCHVISION_INPUT,
    TORCHVISION_TRAIN,
    detectron2_train,
    small_input,
)
from maskkit.types import Batch, Target


class FasterRcnn(TwoStage, Model):
    """The plain detector."""

    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    needs: ClassVar[tuple[str, ...]] = ("boxes", "masks")
    config: TwoStageConfig

    def forward(self, images: Float[Tensor, "b 3 h w"], targets: list[Target] | None = None) -> BoxRaw:
        """Raw outputs of normalised pictures; with ``targets`` for a sample of the regions, to train on."""
        return self.boxes(images, targets)[1]

    def loss(self, raw: BoxRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy and smooth L1 of either stage."""
        return self.box_terms(BoxRaw(*(t.float() if t.is_floating_point() else t for t in raw)), batch)

    def select(self, raw: BoxRaw) -> SelectedBoxes:
        """The best boxes after NMS."""
        found = self.detect(raw)
        return SelectedBoxes(found.boxes / raw.size.repeat(2), found.labels, found.scores)


MODEL = FasterRcnn

_WEIGHTS = "github.com/facebookresearch/detectron2 (Apache-2.0): download by hand, then `maskkit import`"


def _detectron2(name: str, paper: str, times: int, **knobs: Any) -> Preset:
    """A model of detectron2's zoo, trained on ``times`` 90,000 steps."""
    return Preset(
        name=name,
        model=TwoStageConfig(frozen_stride=4, stride_in_1x1=True, **knobs),
        input=replace(CAFFE_INPUT, antialias=True),
        augment=SINGLE_SCALE if times == 1 else MULTI_SCALE,
        train=detectron2_train(times),
        published=_WEIGHTS,
        paper=f"COCO val box AP {paper}",
    )


def _small(size: int) -> Preset:
    """A detector for two processor cores, on the MobileNetV2 backbone with TensorFlow padding."""
    return Preset(
        name=f"fasterrcnn-mobilenetv2-{size}",
        model=TwoStageConfig(**small_two_stage(size)),
        input=small_input(size),
        augment=SMALL_AUGMENT,
        train=SMALL_TRAIN,
    )


PRESETS = [
    Preset(
        name="fasterrcnn-resnet50",
        model=TwoStageConfig(**TORCHVISION),
        input=TORCHVISION_INPUT,
        augment=SINGLE_SCALE,
        train=TORCHVISION_TRAIN,
        published="torchvision (BSD-3-Clause): `--weights hub` fetches them",
        paper="COCO val box AP 37.0",
    ),
    _detectron2("fasterrcnn-resnet50-d2-1x", "37.9", 1),
    _detectron2("fasterrcnn-resnet50-d2-3x", "40.2", 3),
    _detectron2("fasterrcnn-resnet101-d2-3x", "42.0", 3, backbone="resnet101"),
    _small(320),
    _small(256),
]
