"""BlendMask: masks blended from a few bases by small attention maps.

Chen, Sun, Tian, Shen, Huang, Yan: "BlendMask: Top-Down Meets Bottom-Up for Instance Segmentation" (CVPR 2020).

FCOS finds the objects, and every location predicts beside its box a coarse attention map for each of four bases, which
a branch makes of the whole image, like YOLACT's prototypes. The bases are cut out along the box; the attention maps,
enlarged to the same size, say at every place which basis is to be believed. Their weighted sum is the mask, 56 x 56.

===================  ==========================================  =====================================================
`Raw`                shape (800 x 1216, COCO), finest of levels  meaning
===================  ==========================================  =====================================================
detector.logits      5 x (B, 80, 100, 152)                       class logits
detector.distances   5 x (B, 4, 100, 152)                        left, top, right, bottom in strides
detector.quality     5 x (B, 1, 100, 152)                        centerness logits
detector.extra       5 x (B, 784, 100, 152)                      attention of each location: 4 maps of 14 x 14
basis.bases          (B, 4, 200, 304)                            bases at a quarter of the input
basis.semantic       (B, 81, 100, 152)                           semantic logits, 0 is background; for the loss alone
===================  ==========================================  =====================================================

Where only the box of an object is known, its mask is laid out on the grid of the bases, certain background around the
box, and learnt from the box (`maskkit.nn.losses`), beside others whose masks are known.

Differences from the official code, all deliberate: an image without objects is background instead of an error;
background inside a crowd is ignored; of several objects the smallest has a cell of the semantic target, whatever the
order of the annotations, and images with unknown masks have none. Kept as released: bases are cut out along the whole
box even where it reaches beyond the image, and the mask is put into the part inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.blocks import numbers
from maskkit.nn.fcos import (
    FcosDetectorConfig,
    FcosHead,
    FcosRaw,
    detect,
    extents_inside,
    fcos_loss,
    input_size,
    pick,
    pyramid,
    require_whole_cells,
)
from maskkit.nn.fcos_targets import Positives
from maskkit.nn.losses import OUTSIDE, mask_loss_from_boxes, normaliser
from maskkit.nn.roi import PoolingConfig, Sampled, as_rois, crop_masks, pool
from maskkit.ranges import Count, Weight, Whole
from maskkit.targets import Batch, Target

STRIDE = 4
"""Input pixels per cell of the bases."""
IGNORED = -100
"""Label of a cell that the semantic loss leaves out."""


@dataclass(frozen=True)
class BlendMaskConfig(BackboneModelConfig):
    """Knobs of BlendMask; the defaults are the published models for COCO."""

    detector: FcosDetectorConfig = field(
        default_factory=lambda: FcosDetectorConfig(level_scales=False, score_with_quality=True)
    )
    box_only: BoxOnly = field(default_factory=BoxOnly)
    bases: Count = 4
    """Number K of bases."""
    base_width: Count = 128
    """Channels of the branch that makes the bases."""
    base_convs: Whole = 3
    """Convolutions of that branch between the sum of the levels and the enlargement."""
    attention: Count = 14
    """Side of the attention maps."""
    crop: Count = 56
    """Side of a mask inside its box."""
    mask_weight: Weight = 1.0
    semantic_weight: Weight = 0.3
    masks_to_train: Whole = 500
    """Positives of a batch that learn a mask from their box alone, chosen at random; each needs a separate map."""


class BasisRaw(NamedTuple):
    """What `Basis` makes of the whole image."""

    bases: Float[Tensor, "b k h w"]
    semantic: Float[Tensor, "b c _ _"]


class BlendMaskRaw(NamedTuple):
    """What `BlendMask.forward` gives; the module's docstring explains the fields."""

    detector: FcosRaw
    basis: BasisRaw

    def float(self) -> "BlendMaskRaw":
        """The same in fp32."""
        return BlendMaskRaw(self.detector.float(), BasisRaw(self.basis.bases.float(), self.basis.semantic.float()))


class Basis(nn.Module):
    """The bottom module (section 3.2): bases from P3, P4 and P5, added up on P3, and a semantic output on P3."""

    def __init__(self, before: int, width: int, convs: int, bases: int, num_classes: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(nn.Sequential(*_conv(before, width)) for _ in range(3))
        self.tower = nn.Sequential(
            *(nn.Sequential(*_conv(width, width)) for _ in range(convs)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Sequential(*_conv(width, width)),
            nn.Conv2d(width, bases, 1),
        )
        classes = nn.Conv2d(width, num_classes + 1, 1)
        self.semantic = nn.Sequential(*_conv(before, width), *_conv(width, width), classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> BasisRaw:
        """Bases (B, K, H/4, W/4) and semantic logits (B, C, H/8, W/8) of the levels P3 to P5."""
        merged = self.refine[0](levels[0])
        for conv, level in zip(self.refine[1:], levels[1:], strict=True):
            size = merged.shape[2:]
            merged = merged + F.interpolate(conv(level), size=size, mode="bilinear", align_corners=False)
        return BasisRaw(self.tower(merged), self.semantic(levels[0]))


def _conv(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def blend(crops: Float[Tensor, "n k s s"], attention: Float[Tensor, "n d"], side: int) -> Float[Tensor, "n s s"]:
    """Mask logits: at every place the bases' mean, weighted by the softmax of the enlarged attention (equation 5)."""
    maps = attention.unflatten(1, (crops.shape[1], side, side))
    maps = F.interpolate(maps, size=crops.shape[2:], mode="bilinear", align_corners=False)
    return (crops * maps.softmax(1)).sum(1)


def lay_out(
    masks: Float[Tensor, "n s s"], boxes: Float[Tensor, "n 4"], grid: tuple[int, int], stride: int
) -> Float[Tensor, "n h w"]:
    """Logits inside boxes, in pixels, as logits on a ``grid`` of cells of ``stride`` pixels; background around."""
    axes = []
    for axis, cells in ((0, grid[1]), (1, grid[0])):
        centre = (torch.arange(cells, device=boxes.device) + 0.5) * stride
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        axes.append(2 * (centre - low) / (high - low).clamp(min=1e-6) - 1)  # -1 to 1 from side to side
    x, y = axes
    shape = (boxes.shape[0], *grid)
    at = torch.stack([x[:, None].expand(shape), y[..., None].expand(shape)], 3)
    spread = F.grid_sample(masks[:, None], at, padding_mode="border", align_corners=False)[:, 0]
    return spread.masked_fill((at.abs() > 1).any(3), OUTSIDE)


class BlendMask(Model[BlendMaskRaw, ObjectMasks[Tensor]]):
    """FCOS with attention, bases, and a blender without parameters."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = InBoxes()
    config: BlendMaskConfig

    def __init__(self, config: BlendMaskConfig) -> None:
        super().__init__()
        self.config = config
        detector = config.detector
        self.backbone, self.fpn = pyramid(config.backbone, detector.width, len(detector.strides))
        self.head = FcosHead(detector, config.num_classes, extra=config.bases * config.attention**2)
        self.basis = Basis(detector.width, config.base_width, config.base_convs, config.bases, config.num_classes)

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> BlendMaskRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        levels = self.fpn(list(self.backbone(images).values()))
        found = self.head(levels, extents_inside(images, sizes, self.config.detector))
        return BlendMaskRaw(found, self.basis(levels[:3]))

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: BlendMaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The detector's terms, cross entropy of known masks, the terms of boxes for the others, the semantic term."""
        raw = raw.float()
        losses, positives = fcos_loss(raw.detector, batch, self.config.detector)
        losses |= self._mask_terms(raw, positives, batch)
        losses["semantic"] = self.config.semantic_weight * semantic_loss(raw.basis.semantic, batch)
        return losses

    def _mask_terms(self, raw: BlendMaskRaw, positives: Positives, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Masks of the positives inside their objects' true boxes, weighted by centerness where the mask is known.

        In a mixture every positive counts alike, whatever is known of it.
        """
        targets = batch.targets
        known = torch.zeros_like(positives.object, dtype=torch.bool)
        boxes = known.new_zeros(len(known), 4, dtype=torch.float32)
        for b, target in enumerate(targets):
            mine = positives.image == b
            boxes[mine] = target.boxes[positives.object[mine]]
            if target.masks is not None:
                known[mine] = target.has_mask[positives.object[mine]]
        rois = torch.cat([positives.image[:, None].float(), boxes], 1)

        logits = self._blend(raw, rois[known], positives.image[known], positives.location[known])
        truth = crop_masks(targets, Sampled(rois[known], positives.object[known]), self.config.crop) >= 0.5
        wrong = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none").mean((1, 2))
        mask = (wrong * positives.centerness[known]).sum() / normaliser(positives.centerness.sum(), 1e-6)

        boxed = torch.nonzero(~known)[:, 0]
        share = normaliser(len(boxed), 0) / normaliser(len(known))
        boxed = boxed[torch.randperm(len(boxed), device="cpu")[: self.config.masks_to_train].to(boxed.device)]
        image = positives.image[boxed]
        logits = self._blend(raw, rois[boxed], image, positives.location[boxed])
        spread = lay_out(logits, boxes[boxed], (raw.basis.bases.shape[2], raw.basis.bases.shape[3]), STRIDE)
        learnt = mask_loss_from_boxes(spread, boxes[boxed], image, batch, self.config.box_only)
        return {
            "mask": self.config.mask_weight * mask,
            "mask/projection": share * learnt.projection.sum() / normaliser(len(boxed)),
            "mask/pairwise": share * learnt.pairwise,
        }

    def _blend(
        self, raw: BlendMaskRaw, rois: Float[Tensor, "n 5"], image: Int[Tensor, "n"], location: Int[Tensor, "n"]
    ) -> Float[Tensor, "n s s"]:
        """Mask logits of n locations inside regions ``image x1 y1 x2 y2``."""
        attention = pick(raw.detector.extra, image, location).float()
        return blend(self.crops(raw.basis.bases, rois), attention, self.config.attention)

    def crops(self, bases: Float[Tensor, "b k h w"], rois: Float[Tensor, "n 5"]) -> Float[Tensor, "n k s s"]:
        """The bases inside regions, one bilinear sample per bin."""
        return pool([bases.float()], [STRIDE], rois, self.config.crop, PoolingConfig(sampling_ratio=1))

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: BlendMaskRaw) -> ObjectMasks[Tensor]:
        """The best boxes after NMS and the masks inside them."""
        detector = self.config.detector
        found = detect(raw.detector, detector)
        crops = self.crops(raw.basis.bases, as_rois(found.boxes))
        logits = blend(crops, found.extra.flatten(0, 1), self.config.attention)
        height, width = input_size(raw.detector, detector)
        boxes = found.boxes / numbers((width, height, width, height), found.boxes)
        masks = logits.sigmoid().unflatten(0, found.scores.shape)
        return ObjectMasks(boxes, found.labels, found.scores, masks, found.scores)


def semantic_loss(logits: Float[Tensor, "b c h w"], batch: Batch) -> Float[Tensor, ""]:
    """Cross entropy of the class of each cell, background and padding 0; of several objects the smallest has it.

    Images with an object whose mask is unknown are left out, and so are cells of a crowd that no object has.
    """
    labels = torch.zeros_like(logits[:, 0], dtype=torch.int64)  # (B, h, w)
    for label, target in zip(labels, batch.targets, strict=True):
        if not target.has_mask.all():
            label[:] = IGNORED
        elif target.masks is not None and len(target):
            step = target.masks.size[0] // label.shape[0]
            masks = target.masks.dense()[:, ::step, ::step].to(label.device)
            order = target.masks.areas().to(label.device).argsort(descending=True, stable=True)
            order = order[(~target.crowd[order]).argsort(stable=True)]  # crowds first: every object lies over them
            for n in order:
                label[masks[n]] = torch.where(target.crowd[n], IGNORED, target.labels[n] + 1)
    count = normaliser((labels != IGNORED).sum())
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / count
