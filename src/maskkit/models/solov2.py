"""SOLOv2: every cell of a grid predicts the convolution that draws its object's mask.

Wang, Zhang, Kong, Li, Shen: "SOLOv2: Dynamic and Fast Instance Segmentation" (NeurIPS 2020).

As in SOLO, the image is cut into grids, one for each level of the pyramid, and the cell that holds an object's centre
answers for it. Instead of a channel of a mask tensor, a cell predicts a kernel: its 1x1 convolution of one feature map,
shared by all levels, is the mask. No boxes, no cropping; Matrix NMS removes copies without a loop.

===========  ============================  ==========================================================
`Raw`        shape (800 x 1216, COCO)      meaning
===========  ============================  ==========================================================
category     (B, 80, 3872)                 class logits of each cell of the grids 40, 36, 24, 16, 12
kernels      (B, 256, 3872)                weights of each cell's 1x1 convolution
feature      (B, 256, 200, 304)            the unified mask feature, at a quarter of the input
===========  ============================  ==========================================================

Differences from the official codes (WXinlong/SOLO and AdelaiDet), all deliberate: a batch without objects has a loss of
zero where theirs fails; cells in the box of a crowd are not taught to be background; objects of which only the box is
known train the mask through `maskkit.nn.losses`, centred in their box; the best ``candidates`` alone get a mask, so
that shapes are fixed; soft masks go from a quarter of the input to the image in one interpolation, not in two;
predictions have boxes, those of the masks.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry.resample_tensors import resize
from maskkit.models.base import Model
from maskkit.nn import grid
from maskkit.nn.grid import ConvNorm, Deformable, GridConfig
from maskkit.nn.losses import dice_loss, mask_loss_from_boxes, normaliser
from maskkit.nn.positional_encoding import encode_cells
from maskkit.ranges import Count, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class Solov2Config(BackboneModelConfig):
    """Knobs of SOLOv2; the defaults are the published ResNet-50 model for COCO."""

    box_only: BoxOnly = field(default_factory=BoxOnly)
    grid: GridConfig = field(default_factory=GridConfig)
    width: Count = 256
    """Channels of the pyramid."""
    deformable: Deformable = "none"
    """Deformable convolution in the stages C3 to C5 and in the head; v2 is modulated."""
    mask_weight: Weight = 3.0
    head_width: Count = 512
    """Channels of the towers for classes and kernels."""
    head_convs: Whole = 4
    """Convolutions of each tower."""
    feature_width: Count = 128
    """Channels inside of the mask branch."""
    kernel: Count = 256
    """Channels of the mask feature, and weights of a kernel."""
    position_frequencies: Whole = 0
    """Frequencies, per axis, of the positional encoding that the mask feature gets as further channels
    (`maskkit.nn.positional_encoding`). The kernel's weights for them are the encoding of its cell times a predicted
    factor: masks start near their cell, which is slow to learn otherwise. 0 for none, as in the paper."""
    deformable_feature: bool = False
    """Deformable convolution in the mask branch too."""
    deformable_last: bool = False
    """Of each tower only the last convolution is deformable (mmdetection's light models), not all."""


class Solov2Raw(NamedTuple):
    """What `Solov2.forward` gives; the module's docstring explains the fields."""

    category: Float[Tensor, "b k p"]
    kernels: Float[Tensor, "b d p"]
    feature: Float[Tensor, "b d h w"]


class MaskBranch(nn.Module):
    """The unified mask feature: P2 to P5, each convolved and doubled up to the size of P2, added, mixed by a 1x1."""

    def __init__(self, config: Solov2Config) -> None:
        super().__init__()
        kind: Deformable = config.deformable if config.deformable_feature else "none"
        self.levels = nn.ModuleList()
        for level in range(4):
            before = config.width + 2 * (level == 3)  # P5 knows where it is
            convs = max(level, 1)
            self.levels.append(grid.tower(before, config.feature_width, convs, kind))
        self.position_frequencies = config.position_frequencies
        self.mix = ConvNorm(config.feature_width, config.kernel, 1, deformable=kind)

    def forward(self, levels: list[Float[Tensor, "b c _ _"]]) -> Float[Tensor, "b d h w"]:
        """The feature, (B, D, H/4, W/4), of P2 to P5."""
        p2, p3, p4, p5 = levels
        total = self.levels[0](p2)
        inputs = [p3, p4, torch.cat([p5, grid.coordinates(p5)], 1)]
        for convs, x in zip(list(self.levels)[1:], inputs, strict=True):
            for conv in convs:  # type: ignore[attr-defined]
                x = conv(x)
                x = resize(x, (x.shape[2] * 2, x.shape[3] * 2))
            total = total + x
        return torch.cat([self.mix(total), encode_cells(total, self.position_frequencies)], 1)


class Solov2(Model[Solov2Raw, ObjectMasks[Tensor]]):
    """SOLOv2, its light variants and those with deformable convolution."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = OverInput()
    config: Solov2Config

    def __init__(self, config: Solov2Config) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.fpn = grid.pyramid(config.backbone, config.width, config.deformable)
        first = config.head_convs - 1 if config.deformable_last else 0
        head = (config.head_width, config.head_convs, config.deformable, first)
        self.category_tower = grid.tower(config.width, *head)
        self.kernel_tower = grid.tower(config.width + 2, *head)
        self.category = grid.output_conv(config.head_width, config.num_classes)
        self.kernel = grid.output_conv(config.head_width, config.kernel + 4 * config.position_frequencies, prior=None)
        nn.init.constant_(self.kernel.bias[config.kernel :], 0.5)  # type: ignore[index]
        self.mask_branch = MaskBranch(config)

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> Solov2Raw:
        """Raw outputs of normalised images; their sides are multiples of 32."""
        levels = self.fpn(list(self.backbone(images).values()))  # P2 (B, w, H/4, W/4) to P6
        frequencies = self.config.position_frequencies
        category, kernels = [], []
        for level, side in zip(grid.head_levels(levels), self.config.grid.grids, strict=True):
            cells = resize(torch.cat([level, grid.coordinates(level)], 1), (side, side))  # (B, w + 2, S, S)
            category.append(self.category(self.category_tower(cells[:, :-2])).flatten(2))
            kernel, local = self.kernel(self.kernel_tower(cells)).split([self.config.kernel, 4 * frequencies], 1)
            kernels.append(torch.cat([kernel, local * encode_cells(local, frequencies)], 1).flatten(2))
        return Solov2Raw(torch.cat(category, 2), torch.cat(kernels, 2), self.mask_branch(levels[:4]))

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: Solov2Raw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Focal loss of the cells and dice loss of their masks (SOLOv2, section 3.2); masks from boxes where need be.

        A cell that answers for several objects learns the class of the last and the masks of all, as the official code.
        """
        raw = Solov2Raw(*(t.float() for t in raw))
        size = (batch.images.shape[2], batch.images.shape[3])
        nothing = raw.kernels.sum() * 0 + raw.feature.sum() * 0
        owners, dice, boxed = [], [], []
        for b, target in enumerate(batch.targets):
            lit = grid.assign_cells(target, size, self.config.grid)
            owners.append(grid.last_object(lit))
            objects, cells = torch.nonzero(lit, as_tuple=True)
            logits = torch.einsum("dm,dhw->mhw", raw.kernels[b, :, cells], raw.feature[b])
            known = target.has_mask[objects]
            truth = grid.shrink(target, batch.sizes[b], batch.images.shape[2], (logits.shape[1], logits.shape[2]))
            dice.append(dice_loss(logits[known].sigmoid(), truth[objects[known]], 0.002))
            boxed.append((logits[~known], target.boxes[objects[~known]], torch.full_like(objects[~known], b)))
        masks = torch.cat(dice)
        logits, boxes, image = (torch.cat(parts) for parts in zip(*boxed, strict=True))
        from_boxes = mask_loss_from_boxes(logits, boxes, image, batch, self.config.box_only)
        count = normaliser(len(masks) + len(logits))
        return {
            "classification": grid.category_loss(raw.category, owners, batch, self.config.grid.grids),
            "mask": self.config.mask_weight * masks.sum() / count + nothing,
            "mask/projection": from_boxes.projection.sum() / count,
            "mask/pairwise": from_boxes.pairwise,
        }

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: Solov2Raw) -> ObjectMasks[Tensor]:
        """Masks of the best cells, ranked and rid of copies by Matrix NMS, at a quarter of the input."""
        return self.select_from(grid.cell_scores(raw.category, self.config.grid.grids), raw)

    def select_from(self, scores: Float[Tensor, "b k p"], raw: Solov2Raw) -> ObjectMasks[Tensor]:
        """The best masks, of the scores of the cells after point NMS and of the kernels and the feature of ``raw``."""
        found = grid.find_candidates(scores, self.config.grid)
        kernels = raw.kernels.float().gather(2, found.cells[:, None].expand(-1, raw.kernels.shape[1], -1))  # (B, D, k)
        masks = torch.einsum("bdk,bdhw->bkhw", kernels, raw.feature.float()).sigmoid()  # (B, k, H/4, W/4)
        best = grid.rank_masks(found, masks, self.config.grid)
        return ObjectMasks(*best, best.scores)
