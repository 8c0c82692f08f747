"""SOLO: a channel of masks for every cell of a grid, and its decoupled form, a channel for every row and column.

Wang, Kong, Shen, Jiang, Li: "SOLO: Segmenting Objects by Locations" (ECCV 2020).

The image is cut into S x S cells, one grid for each level of the pyramid. The cell that holds an object's centre
predicts its class, and channel i S + j of the mask tensor is reserved for the object of cell (i, j): instances are told
apart by where they are, without boxes and without grouping. The decoupled head has S channels for columns and S for
rows, and the mask of a cell is the product of its two.

============  ============================  ==========================================================
`Raw`         shape (800 x 1216, COCO)      meaning
============  ============================  ==========================================================
category      (B, 80, 3872)                 class logits of each cell of the grids 40, 36, 24, 16, 12
masks_p2      (B, 1600, 200, 304)           mask logits of the cells of the first grid; decoupled: of
                                            its columns, then of its rows (B, 80, 200, 304)
masks_p3      (B, 1296, 200, 304)           the same of the other grids, each at twice the size of its
masks_p4      (B, 576, 100, 152)            level in the head
masks_p5      (B, 256, 50, 76)
masks_p6      (B, 144, 50, 76)
============  ============================  ==========================================================

Differences from the official code (WXinlong/SOLO), all deliberate: a batch without objects has a loss of zero where it
fails; cells in the box of a crowd are not taught to be background; objects of which only the box is known train the
mask through `maskkit.nn.losses`, centred in their box; the best ``candidates`` alone get a mask, so that shapes are
fixed; soft masks go from a quarter of the input to the image in one interpolation, not in two; predictions have boxes,
those of the masks. As in the official code, copies are removed by the Matrix NMS of SOLOv2.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry.resample_tensors import resize
from maskkit.models.base import Model
from maskkit.nn import grid
from maskkit.nn.grid import Deformable, GridConfig
from maskkit.nn.losses import dice_loss, mask_loss_from_boxes, normaliser
from maskkit.nn.positional_encoding import encode_cells, encode_positions
from maskkit.ranges import Count, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class SoloConfig(BackboneModelConfig):
    """Knobs of SOLO; the defaults are the published vanilla ResNet-50 model for COCO."""

    box_only: BoxOnly = field(default_factory=BoxOnly)
    grid: GridConfig = field(default_factory=GridConfig)
    width: Count = 256
    """Channels of the pyramid."""
    deformable: Deformable = "none"
    """Deformable convolution in the stages C3 to C5 and in the head; v2 is modulated."""
    mask_weight: Weight = 3.0
    head: Literal["vanilla", "decoupled", "decoupled-light"] = "vanilla"
    """Masks by cell, by column and row from a tower each, or by column and row from one tower."""
    head_width: Count = 256
    """Channels of the towers."""
    head_convs: Whole = 7
    """Convolutions of each tower."""
    position_frequencies: Whole = 0
    """Frequencies, per axis, of the positional encoding that features get as further channels before the masks'
    convolution (`maskkit.nn.positional_encoding`). Its weights for them start as the encoding of the cell, column or
    row, so that each mask starts there. 0 for none, as published."""


class SoloRaw(NamedTuple):
    """What `Solo.forward` gives; the module's docstring explains the fields."""

    category: Float[Tensor, "b k p"]
    masks_p2: Float[Tensor, "b _ _ _"]
    masks_p3: Float[Tensor, "b _ _ _"]
    masks_p4: Float[Tensor, "b _ _ _"]
    masks_p5: Float[Tensor, "b _ _ _"]
    masks_p6: Float[Tensor, "b _ _ _"]

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Mask logits level by level."""
        return self[1:]


class Solo(Model[SoloRaw, ObjectMasks[Tensor]]):
    """SOLO, Decoupled SOLO and its light form."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = OverInput()
    config: SoloConfig

    def __init__(self, config: SoloConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.fpn = grid.pyramid(config.backbone, config.width, config.deformable)
        head = (config.head_width, config.head_convs, config.deformable, config.head_convs - 1)  # the last one alone
        self.category_tower = grid.tower(config.width, *head)
        self.category = grid.output_conv(config.head_width, config.num_classes)
        coordinates = {"vanilla": [2], "decoupled": [1, 1], "decoupled-light": [2]}[config.head]
        self.towers = nn.ModuleList(grid.tower(config.width + more, *head) for more in coordinates)
        width = config.head_width + 4 * config.position_frequencies
        if config.head == "vanilla":
            outputs = [[grid.output_conv(width, s * s, 1) for s in config.grid.grids]]
        else:  # columns, then rows
            outputs = [[grid.output_conv(width, s) for s in config.grid.grids] for _ in range(2)]
        self.outputs = nn.ModuleList(nn.ModuleList(convs) for convs in outputs)
        if config.position_frequencies:
            for axes, convs in zip(("xy",) if config.head == "vanilla" else ("x", "y"), outputs, strict=True):
                for conv, side in zip(convs, config.grid.grids, strict=True):
                    _start_at_places(conv, side, axes, config.position_frequencies)

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> SoloRaw:
        """Raw outputs of normalised images; their sides are multiples of 32."""
        levels = self.fpn(list(self.backbone(images).values()))  # P2 (B, w, H/4, W/4) to P6
        category, masks = [], []
        for i, (level, side) in enumerate(zip(grid.head_levels(levels), self.config.grid.grids, strict=True)):
            cells = self.category_tower(resize(level, (side, side)))
            category.append(self.category(cells).flatten(2))
            places = grid.coordinates(level)
            given = places.split(1, 1) if len(self.towers) == 2 else [places]  # x for columns, y for rows
            drawn = [t(torch.cat([level, place], 1)) for t, place in zip(self.towers, given, strict=True)]
            large = [resize(x, (x.shape[2] * 2, x.shape[3] * 2)) for x in drawn]
            if self.config.position_frequencies:
                large = [torch.cat([x, encode_cells(x, self.config.position_frequencies)], 1) for x in large]
            large = large * (len(self.outputs) // len(large))  # the light head makes both from one
            masks.append(torch.cat([convs[i](x) for convs, x in zip(self.outputs, large, strict=True)], 1))  # type: ignore[index]
        return SoloRaw(torch.cat(category, 2), *masks)

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: SoloRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Focal loss of the cells and dice loss of their masks (SOLO, section 3.3); masks from boxes where need be."""
        raw = SoloRaw(*(t.float() for t in raw))
        config = self.config
        size = (batch.images.shape[2], batch.images.shape[3])
        owners = [grid.last_object(grid.assign_cells(t, size, config.grid)) for t in batch.targets]
        first = grid.first_cells(config.grid.grids)
        dice, projection, pairwise = raw.category.sum() * 0, raw.category.sum() * 0, raw.category.sum() * 0
        for level, masks in enumerate(raw.masks):
            dice = dice + masks.sum() * 0
            boxed = []
            for b, target in enumerate(batch.targets):
                owner = owners[b][first[level] : first[level + 1]]
                cells = torch.nonzero(owner >= 0)[:, 0]
                objects = owner[cells]
                logits = self.cell_logits(masks[b], cells, config.grid.grids[level])
                known = target.has_mask[objects]
                truth = grid.shrink(target, batch.sizes[b], batch.images.shape[2], (masks.shape[2], masks.shape[3]))
                dice = dice + dice_loss(logits[known].sigmoid(), truth[objects[known]], 0.002).sum()
                boxed.append((logits[~known], target.boxes[objects[~known]], torch.full_like(objects[~known], b)))
            logits, boxes, image = (torch.cat(parts) for parts in zip(*boxed, strict=True))
            from_boxes = mask_loss_from_boxes(logits, boxes, image, batch, config.box_only)
            projection = projection + from_boxes.projection.sum()
            pairwise = pairwise + from_boxes.pairwise * normaliser(len(logits), 0)
        count = normaliser(sum(int((owner >= 0).sum()) for owner in owners))
        boxed_count = sum(
            int((~t.has_mask[owner[owner >= 0]]).sum()) for t, owner in zip(batch.targets, owners, strict=True)
        )
        return {
            "classification": grid.category_loss(raw.category, owners, batch, config.grid.grids),
            "mask": config.mask_weight * dice / count,
            "mask/projection": projection / count,
            "mask/pairwise": pairwise / normaliser(boxed_count),
        }

    def cell_logits(self, masks: Float[Tensor, "c h w"], cells: Int[Tensor, "m"], side: int) -> Float[Tensor, "m h w"]:
        """Mask logits of ``cells`` of one level, counted from its first, on a grid of ``side`` cells a side."""
        if self.config.head == "vanilla":
            return masks[cells]
        x, y = masks[cells % side], masks[side + cells // side]
        # the logit of sigmoid(x) sigmoid(y)
        return -torch.logsumexp(torch.stack([-x, -y, -x - y]), 0)

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: SoloRaw) -> ObjectMasks[Tensor]:
        """Masks of the best cells, ranked and rid of copies by Matrix NMS, at a quarter of the input."""
        return self.select_from(grid.cell_scores(raw.category, self.config.grid.grids), self.soft_masks(raw))

    def soft_masks(self, raw: SoloRaw) -> Float[Tensor, "b c h w"]:
        """Probabilities of the mask channels of all levels, joined, at the size of the finest."""
        size = (raw.masks_p2.shape[2], raw.masks_p2.shape[3])
        return torch.cat([resize(level.float().sigmoid(), size) for level in raw.masks], 1)

    def select_from(self, scores: Float[Tensor, "b k p"], channels: Float[Tensor, "b c h w"]) -> ObjectMasks[Tensor]:
        """The best masks, of the scores of the cells after point NMS and of `soft_masks`."""
        found = grid.find_candidates(scores, self.config.grid)
        image = torch.arange(scores.shape[0], device=scores.device)[:, None]
        if self.config.head == "vanilla":
            masks = channels[image, found.cells]  # (B, k, H/4, W/4)
        else:
            column, row = (index.to(scores.device)[found.cells] for index in self.cell_channels())
            masks = channels[image, column] * channels[image, row]
        best = grid.rank_masks(found, masks, self.config.grid)
        return ObjectMasks(*best, best.scores)

    def cell_channels(self) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
        """Channels of each cell's column and row when those of all levels are joined (decoupled head)."""
        columns, rows, first = [], [], 0
        for side in self.config.grid.grids:
            at = torch.arange(side)
            columns.append(first + at.repeat(side))
            rows.append(first + side + at.repeat_interleave(side))
            first += 2 * side
        return torch.cat(columns), torch.cat(rows)


@torch.no_grad()
def _start_at_places(conv: nn.Conv2d, side: int, axes: str, frequencies: int) -> None:
    """Let each mask start where its cell of a grid of ``side`` cells is, or its column (x) or row (y)."""
    middle = (torch.arange(side) + 0.5) / side
    if axes == "xy":
        places = torch.stack([middle.repeat(side), middle.repeat_interleave(side)], 1)
    else:
        places = middle[:, None].expand(-1, 2)
    kept = torch.tensor([axis in axes for axis in "xyxy"]).repeat_interleave(frequencies)  # sines, cosines
    weight = conv.weight[:, -4 * frequencies :]
    weight.zero_()
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = encode_positions(places, frequencies) * kept
