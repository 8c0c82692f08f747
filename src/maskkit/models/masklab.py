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

import math
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
from maskkit.geometry import boxes as box_math
from maskkit.geometry.boxes import has_area
from maskkit.geometry.resample_tensors import taps, weighted_sums
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.dilation import dilate, last_stage
from maskkit.nn.losses import normaliser
from maskkit.nn.mask_stage import MaskRegions, draw, final_regions
from maskkit.nn.pixels import object_maps
from maskkit.nn.position_sensitive import parts
from maskkit.nn.roi import (
    BOX_WEIGHTS,
    PoolingConfig,
    RankedBoxes,
    RegionConfig,
    Sampled,
    all_rois,
    as_rois,
    box_loss,
    crop_masks,
    detect,
    objects_of,
    pool,
    sample_rois,
)
from maskkit.nn.rpn import (
    BACKGROUND,
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
from maskkit.targets import Batch, Target

_LOW = (2, 4)
"""Strides of conv1 and conv2, whose features refine masks."""
_AT_ONCE = 64
"""Regions that go through the box head together: crops of 41 x 41 cells take much memory."""
_UNKNOWN = -1
"""Of a cell of which a map learns nothing."""


@dataclass(frozen=True)
class MasklabConfig(BackboneModelConfig):
    """Knobs of MaskLab; the defaults are the paper's where it says something."""

    output_stride: Literal[8, 16] = 8
    """Of the features that boxes, classes and directions are read from; the stages behind are atrous."""
    rpn_width: int = 512
    """Channels of the region proposal network."""
    proposals: ProposalConfig = field(
        default_factory=lambda: ProposalConfig(
            anchor_sizes=((64, 128, 256, 512),), smooth_l1=1.0, before=(6000, 6000), after=(300, 300)
        )
    )
    regions: RegionConfig = field(
        default_factory=lambda: RegionConfig(sampled=64, smooth_l1=1.0, min_score=1e-3, nms_threshold=0.6)
    )
    box_crop: int = 41
    """Side of the crops of conv4 that the box classifier reads."""
    box_atrous: bool = True
    """Whether its conv5 keeps their resolution by atrous convolution, or strides."""
    deformable: bool = True
    """Whether parts of these crops are moved to where the object is."""
    offset_grid: int = 7
    """Parts of a crop along each side that move on their own (open: the side of the grid that Faster R-CNN pools)."""
    offset_scale: float = 0.1
    """Share of the box that an offset of 1 stands for (open: as in deformable ConvNets)."""
    box_passes: int = 2
    """How often boxes are regressed: the final ones are put in again as regions."""
    sectors: int = 8
    """Directions to the centre (D)."""
    rings: int = 4
    """Distances to the centre (R)."""
    sector_offset: float = 0.0
    """Share of a sector by which sectors are turned (open: half a one puts the axes into the middle of sectors)."""
    ring_reach: Literal["corner", "side"] = "corner"
    """Where the last ring ends (open: at the half diagonal no ring is cut off, at the half side rings are finer)."""
    in_square: bool = True
    """Whether directions are measured with the box scaled to a square (open: what a pixel learns is then what
    direction pooling reads, whatever the shape of its box), or in pixels."""
    crop: int = 41
    """Side of the crops that masks are made of."""
    low_width: int = 64
    """Channels of each of the low layers in the hypercolumn (open: as many as conv1 has)."""
    refine_width: int = 64
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


# crops ----------------------------------------------------------------------------------------------------------------


def corner_to_corner(rois: Float[Tensor, "n 5"], side: int) -> Float[Tensor, "n 5"]:
    """Regions grown so that the middles of their ``side`` x ``side`` cells reach from corner to corner of ``rois``."""
    half = (rois[:, 3:] - rois[:, 1:3]) / (2 * (side - 1))
    return torch.cat([rois[:, :1], rois[:, 1:3] - half, rois[:, 3:] + half], 1)


def crop_and_resize(
    level: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], side: int, stride: int
) -> Float[Tensor, "n c s s"]:
    """Bilinear samples of features on a grid from corner to corner of each region, one sample to a cell."""
    return pool([level], [stride], corner_to_corner(rois, side), side, PoolingConfig(sampling_ratio=1))


def sample_at(
    level: Float[Tensor, "b c h w"], image: Int[Tensor, "n"], x: Float[Tensor, "n s s"], y: Float[Tensor, "n s s"]
) -> Float[Tensor, "n c s s"]:
    """Bilinear samples of features at places counted in cells, the middle of the first cell being 0; the places learn.

    Where a place lies outside, the nearest cell is read.
    """
    height, width = level.shape[2:]
    across, down = taps(x.clamp(0, width - 1), width), taps(y.clamp(0, height - 1), height)  # (N, s, s, 2)
    shares = (down.weights[..., :, None] * across.weights[..., None, :]).flatten(3)  # (N, s, s, 4)
    cells = (image[:, None, None, None, None] * height + down.cells[..., :, None]) * width + across.cells[..., None, :]
    rows = level.float().permute(0, 2, 3, 1).reshape(-1, level.shape[1])  # (B h w, C)
    return weighted_sums(rows, cells.flatten(3), shares).permute(0, 3, 1, 2)


class DeformableCrop(nn.Module):
    """`crop_and_resize` whose ``grid`` x ``grid`` parts move by offsets that the crop itself suggests.

    An offset (dx, dy) of 1 is ``scale`` times the width or height of the box. Offsets begin at zero.
    """

    def __init__(self, channels: int, side: int, grid: int, scale: float) -> None:
        super().__init__()
        self.side, self.grid, self.scale = side, grid, scale
        self.offsets = nn.Conv2d(channels, 2, 1)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, level: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], stride: int
    ) -> Float[Tensor, "n c s s"]:
        """Features of each region."""
        plain = crop_and_resize(level, rois, self.side, stride)
        offsets = self.offsets(F.adaptive_avg_pool2d(plain, self.grid)).float()  # (N, 2, g, g)
        return self.move(level, rois, stride, offsets)

    def move(
        self,
        level: Float[Tensor, "b c h w"],
        rois: Float[Tensor, "n 5"],
        stride: int,
        offsets: Float[Tensor, "n 2 g g"],
    ) -> Float[Tensor, "n c s s"]:
        """The crops with their parts moved by ``offsets``."""
        low, extent = rois[:, 1:3, None, None], (rois[:, 3:] - rois[:, 1:3])[:, :, None, None]  # (N, 2, 1, 1)
        way = torch.arange(self.side, device=rois.device) / (self.side - 1)
        regular = torch.stack([way.expand(self.side, -1), way[:, None].expand(-1, self.side)])  # (2, s, s): x, y
        part = parts(self.side, self.grid, rois.device)
        shift = self.scale * offsets[:, :, part[:, None], part]  # (N, 2, s, s)
        x, y = ((low + (regular + shift) * extent) / stride - 0.5).unbind(1)
        return sample_at(level, rois[:, 0].long(), x, y)


def crop_class(
    semantic: Float[Tensor, "b c h w"], rois: Float[Tensor, "n 5"], labels: Int[Tensor, "n"], side: int, stride: int
) -> Float[Tensor, "n s s"]:
    """The semantic map of each region's class inside the region; no other map is looked at."""
    planes = semantic.flatten(0, 1)[:, None]  # (B C, 1, h, w)
    plane = rois[:, :1] * semantic.shape[1] + labels[:, None]
    return crop_and_resize(planes, torch.cat([plane, rois[:, 1:]], 1), side, stride)[:, 0]


# directions -----------------------------------------------------------------------------------------------------------


def direction_bins(
    dx: Float[Tensor, "*n"], dy: Float[Tensor, "*n"], reach: Float[Tensor, "*m"], config: MasklabConfig
) -> Int[Tensor, "*n"]:
    """Channel of the direction (dx, dy) from a pixel to the centre: sectors from the x axis on, towards y.

    ``reach`` is the distance at which the last ring ends; what lies further is in that ring too. At the centre itself,
    where there is no direction, it is that of the x axis.
    """
    turn = torch.atan2(dy.double(), dx.double()) / (2 * math.pi) * config.sectors
    # a whole number of sectors is a border: rounding shall not put its pixels now on this side, now on that
    sector = torch.floor(turn + config.sector_offset + 1e-9).long() % config.sectors
    ring = (config.rings * torch.hypot(dx, dy) / reach).floor().clamp(max=config.rings - 1).long()
    return ring * config.sectors + sector


def reach_of(width: Float[Tensor, "*n"], height: Float[Tensor, "*n"], config: MasklabConfig) -> Float[Tensor, "*n"]:
    """Where the last ring of a box ends."""
    return torch.hypot(width, height) / 2 if config.ring_reach == "corner" else torch.maximum(width, height) / 2


def template(side: int, config: MasklabConfig) -> Int[Tensor, "s s"]:
    """For each cell of a box, the channel that leads to the middle of the box from there."""
    away = (side - 1 - 2 * torch.arange(side).double()) / (2 * side)
    one = torch.ones((), dtype=torch.float64)
    return direction_bins(away.expand(side, -1), away[:, None].expand(-1, side), reach_of(one, one, config), config)


def pool_directions(crops: Float[Tensor, "n d s s"], template: Int[Tensor, "s s"]) -> Float[Tensor, "n s s"]:
    """Direction pooling: each cell from the channel that the template names."""
    return crops.gather(1, template.expand(len(crops), 1, -1, -1))[:, 0]


@torch.no_grad()
def map_truths(
    batch: Batch, grid: tuple[int, int], config: MasklabConfig
) -> tuple[Int[Tensor, "b h w"], Int[Tensor, "b h w"]]:
    """Class and direction of each cell of a ``grid`` (h, w), by the pixel at its centre, `_UNKNOWN` for neither.

    The class of background is the number of classes; it has no direction.
    """
    y, x = (
        ((torch.arange(n, device=batch.images.device) + 0.5) * side / n)
        for n, side in zip(grid, batch.images.shape[2:], strict=True)
    )
    owners = object_maps(batch)[:, y.long()[:, None], x.long()]  # (B, h, w)
    classes = torch.full_like(owners, config.num_classes).masked_fill(owners < BACKGROUND, _UNKNOWN)
    directions = torch.full_like(owners, _UNKNOWN)
    for owner, label, direction, target in zip(owners, classes, directions, batch.targets, strict=True):
        row, column = torch.nonzero(owner >= 0).unbind(1)
        mine = owner[row, column]
        centre_x, centre_y, width, height = box_math.to_centres(target.boxes[mine].double()).unbind(1)
        dx, dy = centre_x - x[column], centre_y - y[row]
        if config.in_square:
            dx, dy = dx / width, dy / height
            width = height = torch.ones_like(width)
        label[row, column] = target.labels[mine]
        direction[row, column] = direction_bins(dx, dy, reach_of(width, height, config), config)
    return classes, directions


def map_loss(logits: Float[Tensor, "b c h w"], truth: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean cross entropy of the cells of known truth."""
    total = F.cross_entropy(logits, truth, ignore_index=_UNKNOWN, reduction="sum")
    return total / normaliser((truth != _UNKNOWN).sum())


# the network ----------------------------------------------------------------------------------------------------------


class Conv5BoxHead(nn.Module):
    """A conv5 of its own on crops of conv4, then a class, the last of which is background, and a code for each."""

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
        self.directions = nn.Conv2d(channels[32], config.rings * config.sectors, 1)
        for layer in (self.semantic, self.directions):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.mask_head = MaskHead([channels[stride] for stride in _LOW], config)
        self.register_buffer("template", template(config.crop, config), persistent=False)

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
        size = extents.new_tensor([images.shape[3], images.shape[2]])
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
        found = [self.box_head(shared, some, self.config.output_stride) for some in rois.split(_AT_ONCE)]
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
        config, batch = self.config, (len(extents), -1)
        found = detect(logits.unflatten(0, batch), deltas.unflatten(0, batch), boxes, extents, config.regions)
        labels = found.labels.flatten()
        for _ in range(config.box_passes - 1):
            _, deltas = self.classify(shared, as_rois(found.boxes))
            code = deltas[torch.arange(len(labels), device=labels.device), labels].float().view_as(found.boxes)
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
        classes, directions = map_truths(batch, (raw.semantic.shape[2], raw.semantic.shape[3]), config)
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
        b = len(raw.extents)
        boxes = (raw.mask_rois[:, 1:] / raw.size.repeat(2)).unflatten(0, (b, -1))
        labels, scores = raw.mask_labels.unflatten(0, (b, -1)), raw.mask_scores.unflatten(0, (b, -1))
        masks = F.avg_pool2d(raw.mask_logits.float().sigmoid(), 2, 1).unflatten(0, (b, -1))  # (B, K, s - 1, s - 1)
        return ObjectMasks(boxes, labels, scores, masks, scores)
