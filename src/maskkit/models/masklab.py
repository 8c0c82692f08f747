"""MaskLab: boxes name objects, a semantic map tells classes apart, a direction map tells objects of a class apart.

Chen, Hermans, Papandreou, Schroff, Wang, Adam: "MaskLab: Instance Segmentation by Refining Object Detection with
Semantic and Direction Features" (CVPR 2018).

A Faster R-CNN on one level finds boxes with classes. Beside it the whole image gets semantic logits, a class for each
pixel, and direction logits, in which sector and how far away the centre of the pixel's own object lies. A mask begins
as two crops of a box: the semantic map of its class, and *direction pooling*, where each cell is read from the map of
the direction that leads from this cell to the middle of the box. A 1x1 convolution makes a coarse mask of the two, and
a few convolutions refine it with features of the first layers (a hypercolumn).

=============  ======================  ===============================================================================
`Raw`          shape (800 x 1376)      meaning
=============  ======================  ===============================================================================
objectness     (B, 206400)             logits of the anchors, stride 8
anchor_deltas  (B, 206400, 4)          their box code
anchors        (206400, 4)             in input pixels
rois           (B 300, 5)              image and box of each region; in training those that were sampled
matched        (B 300)                 index of the region's object, in training
class_logits   (B 300, 81)             background is last
box_deltas     (B 300, 80, 4)          box code of each class
extents          (B, 2)                  width and height of each image without padding
size           (2)                     width and height of the input
semantic       (B, 81, 100, 172)       class logits of the cells, background is last
directions     (B, 32, 100, 172)       logits of sector and ring: channel ``ring D + sector``
mask_rois      (B 100, 5)              final boxes; in training the positive regions
mask_labels    (B 100)                 their class; in training their object's
mask_scores    (B 100)                 their score; in training 1
coarse_logits  (B 100, 41, 41)         the mask before its refinement, sampled from corner to corner of the box
mask_logits    (B 100, 41, 41)         the mask
=============  ======================  ===============================================================================

There is no official code. What the paper leaves open are knobs of `MasklabConfig`. Crops are placed exactly, where
TensorFlow's squeeze the image by half a cell at its border; pixels of crowds and of objects without a mask teach
neither map; the scores of masks are those of their boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry.boxes import has_area
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import numbers
from maskkit.nn.crops import DeformableCrop, corner_to_corner, crop_and_resize, crop_class
from maskkit.nn.dilation import dilate, last_stage
from maskkit.nn.directions import DirectionConfig, map_loss, map_targets, pool_directions, template
from maskkit.nn.mask_stage import MaskRegions, draw, final_regions
from maskkit.nn.roi import (
    BOX_WEIGHTS,
    RankedBoxes,
    RegionConfig,
    Sampled,
    all_rois,
    as_rois,
    box_loss,
    crop_masks,
    detect,
    objects_of,
    sample_rois,
)
from maskkit.nn.rpn import (
    ProposalConfig,
    RpnHead,
    RpnRaw,
    cell_anchors,
    clip,
    decode,
    extents_of,
    flatten,
    grid_anchors,
    proposal_terms,
    propose,
)
from maskkit.ranges import Count, Weight, Whole
from maskkit.targets import Batch, Target

_LOW = (2, 4)
"""Strides of conv1 and conv2, whose features refine masks."""
_AT_ONCE = 64
"""Regions that go through the box head together: crops of 41 x 41 cells take much memory."""


@dataclass(frozen=True)
class MasklabConfig(BackboneModelConfig):
    """Knobs of MaskLab; the defaults are the paper's where it says something."""

    output_stride: Literal[8, 16] = 8
    """Of the features that boxes, classes and directions are read from; the stages behind are atrous."""
    rpn_width: Count = 512
    """Channels of the region proposal network."""
    proposals: ProposalConfig = field(
        default_factory=lambda: ProposalConfig(
            anchor_sizes=((64, 128, 256, 512),), smooth_l1=1.0, before=(6000, 6000), after=(300, 300)
        )
    )
    regions: RegionConfig = field(
        default_factory=lambda: RegionConfig(sampled=64, smooth_l1=1.0, min_score=1e-3, nms_threshold=0.6)
    )
    box_crop: Count = 41
    """Side of the crops of conv4 that the box classifier reads."""
    box_atrous: bool = True
    """Whether its conv5 keeps their resolution by atrous convolution, or strides."""
    deformable: bool = True
    """Whether parts of these crops are moved to where the object is."""
    offset_grid: Count = 7
    """Parts of a crop along each side that move on their own (open: the side of the grid that Faster R-CNN pools)."""
    offset_scale: Weight = 0.1
    """Share of the box that an offset of 1 stands for (open: as in deformable ConvNets)."""
    box_passes: Whole = 2
    """How often boxes are regressed: the final ones are put in again as regions."""
    direction: DirectionConfig = field(default_factory=DirectionConfig)
    crop: Count = 41
    """Side of the crops that masks are made of."""
    low_width: Count = 64
    """Channels of each of the low layers in the hypercolumn (open: as many as conv1 has)."""
    refine_width: Count = 64
    """Channels of the three 5x5 convolutions."""


class MasklabRaw(NamedTuple):
    """What `Masklab.forward` gives; the module's docstring explains the fields."""

    objectness: Float[Tensor, "b a"]
    anchor_deltas: Float[Tensor, "b a 4"]
    anchors: Float[Tensor, "a 4"]
    rois: Float[Tensor, "n 5"]
    matched: Int[Tensor, "n"]
    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n k 4"]
    extents: Float[Tensor, "b 2"]
    size: Float[Tensor, "2"]
    semantic: Float[Tensor, "b c h w"]
    directions: Float[Tensor, "b d h w"]
    mask_rois: Float[Tensor, "m 5"]
    mask_labels: Int[Tensor, "m"]
    mask_scores: Float[Tensor, "m"]
    coarse_logits: Float[Tensor, "m s s"]
    mask_logits: Float[Tensor, "m s s"]


class Conv5BoxHead(nn.Module):
    """A separate conv5 on crops of conv4, then a class, the last of which is background, and a code for each."""

    def __init__(self, backbone: Backbone, config: MasklabConfig) -> None:
        super().__init__()
        channels = backbone.channels[16]
        self.frozen = config.backbone.norm == "frozen"
        self.side = config.box_crop
        self.crop = None
        if config.deformable:
            self.crop = DeformableCrop(channels, config.box_crop, config.offset_grid, config.offset_scale)
        self.stage = last_stage(backbone, config.box_atrous)
        self.label = nn.Linear(backbone.channels[32], config.num_classes + 1)
        self.deltas = nn.Linear(backbone.channels[32], config.num_classes * 4)
        nn.init.normal_(self.label.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.label, self.deltas):
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> "Conv5BoxHead":
        """Set the mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        for module in self.stage.modules():
            if self.frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(
        self, level: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], stride: int
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k 4"]]:
        """Class logits (N, K + 1) and codes (N, K, 4)."""
        crops = crop_and_resize(level, rois, self.side, stride) if self.crop is None else self.crop(level, rois, stride)
        y = self.stage(crops).mean((2, 3))
        return self.label(y), self.deltas(y).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """A coarse mask of the two crops, and its refinement with the low layers."""

    def __init__(self, channels: Sequence[int], config: MasklabConfig) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(2, 1, 1)
        self.low = nn.ModuleList(nn.Conv2d(c, config.low_width, 1) for c in channels)
        layers: list[nn.Module] = []
        before = 1 + len(channels) * config.low_width
        for _ in range(3):
            layers += [nn.Conv2d(before, config.refine_width, 5, padding=2), nn.ReLU()]
            before = config.refine_width
        self.refine = nn.Sequential(*layers, nn.Conv2d(before, 1, 1))
        for layer in self.refine:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.ones_(self.coarse.weight)
        assert self.coarse.bias is not None
        nn.init.zeros_(self.coarse.bias)

    def hypercolumn(self, low: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b d _ _"]]:
        """The low layers of whole images, ready to be cropped."""
        return [F.relu(conv(features)) for conv, features in zip(self.low, low, strict=True)]

    def forward(
        self,
        semantic: Float[Tensor, "n s s"],
        direction: Float[Tensor, "n s s"],
        low: Sequence[Float[Tensor, "n d s s"]],
    ) -> Float[Tensor, "n 2 s s"]:
        """Logits of the coarse and of the refined mask."""
        coarse = self.coarse(torch.stack([semantic, direction], 1))  # (N, 1, s, s)
        return torch.cat([coarse, self.refine(torch.cat([coarse, *low], 1))], 1)


class Masklab(Model[MasklabRaw, ObjectMasks[Tensor]]):
    """Faster R-CNN on one atrous level, semantic and direction maps, and masks made of them."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    decoder = InBoxes()
    config: MasklabConfig
    template: Tensor

    def __init__(self, config: MasklabConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone.of(config.backbone, (*_LOW, 16, 32))
        self.box_head = Conv5BoxHead(self.backbone, config)
        dilate(self.backbone, config.output_stride)
        channels = self.backbone.channels
        self.rpn = RpnHead(channels[16], config.proposals.anchors_per_cell, config.rpn_width)
        self.semantic = nn.Conv2d(channels[32], config.num_classes + 1, 1)
        self.directions = nn.Conv2d(channels[32], config.direction.rings * config.direction.sectors, 1)
        for layer in (self.semantic, self.directions):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.mask_head = MaskHead([channels[stride] for stride in _LOW], config)
        self.register_buffer("template", template(config.crop, config.direction), persistent=False)

    def adopt_backbone(self) -> None:
        """The box head's conv5 begins as the backbone's."""
        plain = Backbone.of(self.config.backbone, self.backbone.strides)
        plain.load_state_dict(self.backbone.state_dict())
        self.box_head.stage.load_state_dict(last_stage(plain, self.config.box_atrous).state_dict())

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> MasklabRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        config = self.config
        *low, shared, deep = self.backbone(images).values()
        semantic, directions = self.semantic(deep), self.directions(deep)  # (B, ., H/8, W/8)
        level, extents = self.anchored(shared), extents_of(images, sizes)
        proposals = propose([level], extents, config.proposals, training=targets is not None)
        sampled = all_rois(proposals.boxes) if targets is None else sample_rois(proposals, targets, config.regions)
        logits, deltas = self.classify(shared, sampled.rois)
        if targets is None:
            regions = final_regions(self.detect(shared, logits, deltas, proposals.boxes, extents))
        else:
            positive, objects = objects_of(sampled, targets)
            labels = torch.cat([t.labels for t in targets])[objects]
            regions = MaskRegions(sampled.rois[positive], labels, torch.ones_like(sampled.rois[positive, 0]))
        columns = self.mask_head.hypercolumn(low)

        def masks_of(rois: Tensor, labels: Tensor) -> Tensor:
            side, stride = config.crop, config.output_stride
            towards = pool_directions(crop_and_resize(directions, rois, side, stride), self.template)
            details = [crop_and_resize(c, rois, side, s) for c, s in zip(columns, _LOW, strict=True)]
            return self.mask_head(crop_class(semantic, rois, labels, side, stride), towards, details)

        coarse, masks = draw(regions, masks_of).unbind(1)
        size = numbers((images.shape[3], images.shape[2]), extents)
        return MasklabRaw(
            *level, *sampled, logits, deltas, extents, size, semantic, directions, *regions, coarse, masks
        )

    def anchored(self, features: Float[Tensor, "b c h w"]) -> RpnRaw:
        """What the region proposal network says."""
        stride, proposals = self.config.output_stride, self.config.proposals
        cells = cell_anchors(proposals.anchor_sizes[0], proposals.anchor_ratios).to(features.device)
        grid = (features.shape[2], features.shape[3])
        return RpnRaw(*flatten(*self.rpn(features)), grid_anchors(cells + stride / 2, grid, (stride, stride)))

    def classify(
        self, shared: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k 4"]]:
        """Class logits and box codes of regions, some at a time."""
        parts = (rois,) if torch.compiler.is_exporting() else rois.split(_AT_ONCE)
        found = [self.box_head(shared, some, self.config.output_stride) for some in parts]
        logits, deltas = (torch.cat(each) for each in zip(*found, strict=True))
        return logits, deltas

    def detect(
        self,
        shared: Float[Tensor, "b c h w"],
        logits: Float[Tensor, "n d"],
        deltas: Float[Tensor, "n k 4"],
        boxes: Float[Tensor, "b r 4"],
        extents: Float[Tensor, "b 2"],
    ) -> RankedBoxes:
        """The final boxes, whose code for their class is read and applied again and again."""
        config, batch = self.config, (extents.shape[0], -1)
        found = detect(logits.unflatten(0, batch), deltas.unflatten(0, batch), boxes, extents, config.regions)
        labels = found.labels.flatten()
        for _ in range(config.box_passes - 1):
            _, deltas = self.classify(shared, as_rois(found.boxes))
            code = deltas[torch.arange(labels.shape[0], device=labels.device), labels].float().view_as(found.boxes)
            moved = clip(decode(code.detach(), found.boxes, BOX_WEIGHTS), extents)
            found = found._replace(boxes=torch.where(has_area(moved)[..., None], moved, found.boxes))
        return found

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: MasklabRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Terms of the proposals, the regions, both maps, and the masks of regions whose object's mask is known."""
        config, targets = self.config, batch.targets
        raw = MasklabRaw(*(t.float() if t.is_floating_point() else t for t in raw))
        first = proposal_terms(RpnRaw(raw.objectness, raw.anchor_deltas, raw.anchors), targets, config.proposals)
        sampled = Sampled(raw.rois, raw.matched)
        second = box_loss(raw.class_logits, raw.box_deltas, sampled, targets, config.regions.smooth_l1)
        size = (raw.semantic.shape[2], raw.semantic.shape[3])
        classes, directions = map_targets(batch, size, config.num_classes, config.direction)
        coarse, mask = self._mask_losses(raw, sampled, targets)
        return first | {
            "classification": second.label,
            "box": second.box,
            "semantic": map_loss(raw.semantic, classes),
            "mask/direction": map_loss(raw.directions, directions),
            "mask/coarse": coarse,
            "mask": mask,
        }

    def _mask_losses(
        self, raw: MasklabRaw, sampled: Sampled, targets: list[Target]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean cross entropy of the coarse and of the refined masks."""
        positive, objects = objects_of(sampled, targets)
        known = torch.cat([t.has_mask for t in targets])[objects]
        if not known.any():
            return raw.coarse_logits.sum() * 0, raw.mask_logits.sum() * 0
        side = self.config.crop
        rois = corner_to_corner(raw.mask_rois[known], side)
        truth = (crop_masks(targets, Sampled(rois, raw.matched[positive][known]), side) >= 0.5).float()
        coarse = F.binary_cross_entropy_with_logits(raw.coarse_logits[known], truth)
        return coarse, F.binary_cross_entropy_with_logits(raw.mask_logits[known], truth)

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: MasklabRaw) -> ObjectMasks[Tensor]:
        """The final boxes and their masks, each cell the mean of the four samples at its corners."""
        b = raw.extents.shape[0]
        boxes = (raw.mask_rois[:, 1:] / raw.size.repeat(2)).unflatten(0, (b, -1))
        labels, scores = raw.mask_labels.unflatten(0, (b, -1)), raw.mask_scores.unflatten(0, (b, -1))
        masks = F.avg_pool2d(raw.mask_logits.float().sigmoid(), 2, 1).unflatten(0, (b, -1))  # (B, K, s - 1, s - 1)
        return ObjectMasks(boxes, labels, scores, masks, scores)
