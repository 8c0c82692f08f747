"""Mask R-CNN: Faster R-CNN with a mask branch.

He, Gkioxari, Dollar, Girshick: "Mask R-CNN" (ICCV 2017).

A third branch reads the features of each region on a finer grid and draws one mask for every class; which of them
counts is for the box branch to say, so that the classes do not compete. In training the branch sees the positive
regions, in inference the final boxes. RoIAlign, which rounds nothing, keeps mask and picture together.

============  ===========================  ================================================================
`Raw`         shape (800 x 1216, COCO)     meaning
============  ===========================  ================================================================
...                                        the fields of `BoxRaw`, as in `maskkit.models.faster_rcnn`
mask_rois     (B 100, 5)                   final boxes; in training the positive regions
mask_labels   (B 100)                      their class; in training their object's
mask_scores   (B 100)                      their score; in training 1
mask_logits   (B 100, 28, 28)              the mask of that class on a grid over the box
============  ===========================  ================================================================

Objects of which only the box is known train the mask branch by `mask_loss_from_boxes`: their region is the union of
proposal and box, widened by a random share on each side, so that it shows what lies around the object, and neither the
middle nor the rim of a region stands for anything. The picture inside the region is to the loss what the whole picture
is elsewhere.

Differences from the official code, all deliberate: the masks of classes that nobody asks for are never computed;
background inside a crowd is ignored; mask targets are cropped from bitmaps, not drawn from polygons.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from maskkit.config import Preset
from maskkit.losses import FromBoxes, mask_loss_from_boxes
from maskkit.models.base import Model, SelectedInBoxes, SelectedInWholePixels
from maskkit.nn.roi import MaskHead, Sampled, as_rois, crop_masks, objects_of
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
from maskkit.types import Batch, ImageMeta, Target

_WIDEN = 0.5
"""Largest share of its size by which a region is widened on each side where only the object's box is known."""


@dataclass(frozen=True)
class MaskRcnnConfig(TwoStageConfig):
    """Knobs of Mask R-CNN; the defaults are detectron2's."""

    mask_width: int = 256
    mask_convs: int = 4
    mask_bins: int = 14
    """Side of the grid of features that the mask head reads; masks have twice as many cells."""
    soft_targets: bool = False
    """Whether mask targets keep the values between 0 and 1 that cropping gives (torchvision), or are cut at 0.5."""
    paste: Literal["exact", "whole pixels"] = "exact"
    """Whether masks are put where their boxes are (detectron2), or the boxes are rounded first (torchvision)."""


class MaskRcnnRaw(NamedTuple):
    """What `MaskRcnn.forward` gives; the module's docstring explains the fields."""

    objectness: Float[Tensor, "b a"]
    anchor_deltas: Float[Tensor, "b a 4"]
    anchors: Float[Tensor, "a 4"]
    rois: Float[Tensor, "n 5"]
    matched: Int[Tensor, "n"]
    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n k 4"]
    pictures: Float[Tensor, "b 2"]
    size: Float[Tensor, "2"]
    mask_rois: Float[Tensor, "m 5"]
    mask_labels: Int[Tensor, "m"]
    mask_scores: Float[Tensor, "m"]
    mask_logits: Float[Tensor, "m s s"]


class MaskRcnn(TwoStage, Model):
    """Faster R-CNN with a mask branch."""

    tasks: ClassVar[tuple[str, ...]] = ("instance",)
    needs: ClassVar[tuple[str, ...]] = ("masks", "boxes")
    config: MaskRcnnConfig

    def __init__(self, config: MaskRcnnConfig) -> None:
        super().__init__(config)
        self.mask_head = MaskHead(config.width, config.mask_width, config.mask_convs, config.num_classes)

    def forward(self, images: Float[Tensor, "b 3 h w"], targets: list[Target] | None = None) -> MaskRcnnRaw:
        """Raw outputs of normalised pictures; with ``targets`` for a sample of the regions, to train on."""
        levels, raw = self.boxes(images, targets)
        if targets is None:
            found = self.detect(raw)
            rois, labels, scores = as_rois(found.boxes), found.labels.flatten(), found.scores.flatten()
        else:
            rois, labels = self._positive(Sampled(raw.rois, raw.matched), targets)
            scores = torch.ones_like(rois[:, 0])
        return MaskRcnnRaw(*raw, rois, labels, scores, self._masks(levels, rois, labels, scores))

    def _masks(self, levels: list[Tensor], rois: Tensor, labels: Tensor, scores: Tensor) -> Float[Tensor, "m s s"]:
        if torch.compiler.is_exporting() or (scores > 0).all():
            return self.mask_head(self.pool(levels, rois, self.config.mask_bins), labels)
        real = torch.nonzero(scores > 0)[:, 0]  # a graph of fixed shapes works for the padding too, here it need not
        masks = self.mask_head(self.pool(levels, rois[real], self.config.mask_bins), labels[real])
        return masks.new_zeros(len(rois), *masks.shape[1:]).index_copy(0, real, masks)

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

    # loss ------------------------------------------------------------------------------------------------------------

    def loss(self, raw: MaskRcnnRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Faster R-CNN, cross entropy of known masks, and what boxes say about the others."""
        raw = MaskRcnnRaw(*(t.float() if t.is_floating_point() else t for t in raw))
        terms = self.box_terms(BoxRaw(*raw[: len(BoxRaw._fields)]), batch)
        positive, objects = objects_of(Sampled(raw.rois, raw.matched), batch.targets)
        known = torch.cat([t.has_mask for t in batch.targets])[objects]
        sampled = Sampled(raw.mask_rois, raw.matched[positive])
        from_boxes = self._from_boxes(raw, torch.cat([t.boxes for t in batch.targets])[objects], ~known, batch)
        return {
            **terms,
            "mask": self._from_masks(raw.mask_logits, sampled, known, batch),
            "projection": from_boxes.projection.sum() / max(len(from_boxes.projection), 1),
            "pairwise": from_boxes.pairwise,
        }

    def _from_masks(
        self, logits: Float[Tensor, "m s s"], sampled: Sampled, known: Bool[Tensor, "m"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Mean cross entropy over the regions whose object's mask is known."""
        if not known.any():
            return logits.sum() * 0
        sampled = Sampled(sampled.rois[known], sampled.matched[known])
        truth = crop_masks(batch.targets, sampled, logits.shape[1], self.config.aligned)
        if not self.config.soft_targets:
            truth = (truth >= 0.5).float()
        return F.binary_cross_entropy_with_logits(logits[known], truth)

    def _from_boxes(
        self, raw: MaskRcnnRaw, boxes: Float[Tensor, "m 4"], wanted: Bool[Tensor, "m"], batch: Batch
    ) -> FromBoxes:
        """The box-only loss of the ``wanted`` regions, each a picture of its own, of two pixels to a cell."""
        logits, rois, boxes = raw.mask_logits[wanted], raw.mask_rois[wanted], boxes[wanted]
        side = 2 * logits.shape[1]
        seen = roi_align(batch.valid[:, None].float(), rois, side, aligned=True)[:, 0] > 0.5
        crops = Batch(
            roi_align(batch.images.float(), rois, side, aligned=True),
            seen,
            [],
            [ImageMeta(0, "", (side, side), (side, side))] * len(rois),
            batch.mean,
            batch.std,
            batch.progress,
        )
        scale = side / (rois[:, 3:] - rois[:, 1:3])
        inside = ((boxes.unflatten(1, (2, 2)) - rois[:, None, 1:3]) * scale[:, None]).flatten(1)
        each = torch.arange(len(rois), device=rois.device)
        # the last rows of a picture are not the last rows of a region
        return mask_loss_from_boxes(logits, inside, each, crops, replace(self.config.box_only, skip_bottom=0))

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: MaskRcnnRaw) -> SelectedInBoxes | SelectedInWholePixels:
        """The final boxes and their masks."""
        b = len(raw.pictures)
        boxes = (raw.mask_rois[:, 1:] / raw.size.repeat(2)).unflatten(0, (b, -1))
        labels, scores = raw.mask_labels.unflatten(0, (b, -1)), raw.mask_scores.unflatten(0, (b, -1))
        masks = raw.mask_logits.float().sigmoid().unflatten(0, (b, -1))
        if self.config.paste == "exact":
            return SelectedInBoxes(boxes, labels, scores, masks, scores)
        return SelectedInWholePixels(boxes, labels, scores, masks, scores)


MODEL = MaskRcnn

_WEIGHTS = "github.com/facebookresearch/detectron2 (Apache-2.0): download by hand, then `maskkit import`"


def _detectron2(name: str, paper: str, times: int, **knobs: Any) -> Preset:
    """A model of detectron2's zoo, trained on ``times`` 90,000 steps."""
    return Preset(
        name=name,
        model=MaskRcnnConfig(frozen_stride=4, stride_in_1x1=True, **knobs),
        input=replace(CAFFE_INPUT, antialias=True),
        augment=SINGLE_SCALE if times == 1 else MULTI_SCALE,
        train=detectron2_train(times),
        needs=MaskRcnn.needs,
        published=_WEIGHTS,
        paper=f"COCO val mask AP {paper}",
    )


def _small(size: int) -> Preset:
    """A model for two processor cores, on the MobileNetV2 backbone with TensorFlow padding."""
    return Preset(
        name=f"maskrcnn-mobilenetv2-{size}",
        model=MaskRcnnConfig(**small_two_stage(size), mask_width=96, mask_convs=2),
        input=small_input(size),
        augment=SMALL_AUGMENT,
        train=SMALL_TRAIN,
        needs=MaskRcnn.needs,
    )


PRESETS = [
    Preset(
        name="maskrcnn-resnet50",
        model=MaskRcnnConfig(**TORCHVISION, soft_targets=True, paste="whole pixels"),
        input=TORCHVISION_INPUT,
        augment=SINGLE_SCALE,
        train=TORCHVISION_TRAIN,
        needs=MaskRcnn.needs,
        published="torchvision (BSD-3-Clause): `--weights hub` fetches them",
        paper="COCO val mask AP 34.6",
    ),
    _detectron2("maskrcnn-resnet50-d2-1x", "35.2", 1),
    _detectron2("maskrcnn-resnet50-d2-3x", "37.2", 3),
    _detectron2("maskrcnn-resnet101-d2-3x", "38.6", 3, backbone="resnet101"),
    _small(320),
    _small(256),
]
