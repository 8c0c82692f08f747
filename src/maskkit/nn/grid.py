"""What SOLO and SOLOv2 share: a grid of cells over the image, each responsible for the object centred in it.

The *cells* of all levels are concatenated, level by level, row by row: ``P = sum(s * s for s in grids)``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskkit.config import BackboneConfig
from maskkit.geometry import masks as mask_math
from maskkit.geometry.nms import matrix_nms
from maskkit.geometry.resample_tensors import resize, taps
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import DeformConv, deform_stages, numbers
from maskkit.nn.fpn import Fpn
from maskkit.nn.losses import normaliser, processes
from maskkit.ranges import Count, Positive, Share, Weight, Whole
from maskkit.targets import Batch, Target

Deformable = Literal["none", "v1", "v2"]


@dataclass(frozen=True)
class GridConfig:
    """The grids: their label assignment and how masks are selected. The defaults are the published models for COCO."""

    grids: tuple[Count, ...] = (40, 36, 24, 16, 12)
    """Cells per side on each of the levels P2 to P6."""
    scale_ranges: tuple[tuple[Weight, Weight], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    """Root of the box area, in input pixels, of the objects of each level, both ends included."""
    centre: Positive = 0.2
    """Share of an object's box, around its centre of mass, whose cells are positive."""
    min_score: Share = 0.1
    """Pairs of cell and class need a higher score than this."""
    candidates: Count = 500
    """Pairs of cell and class, best scores first, whose masks are computed."""
    min_area: tuple[Whole, ...] = (8, 8, 16, 32, 32)
    """Masks of at most so many pixels, at a quarter of the resolution, are dropped; per level."""
    nms: Literal["gaussian", "linear"] = "gaussian"
    """Kernel of Matrix NMS."""
    nms_sigma: Positive = 2.0
    nms_top: Count = 500
    """Masks that enter Matrix NMS."""
    nms_stride: Count = 1
    """Overlaps are measured on every n-th row and column of the masks; 2 suffices unless objects are tiny."""
    nms_min_score: Share = 0.05
    """Masks of a lower score after Matrix NMS are dropped."""
    detections: Count = 100
    """Objects kept per image."""


# network -------------------------------------------------------------------------------------------------------------


class ConvNorm(nn.Sequential):
    """Convolution without bias, group norm of 32 groups, ReLU."""

    def __init__(self, before: int, after: int, size: int = 3, *, deformable: Deformable = "none") -> None:
        conv = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
        nn.init.normal_(conv.weight, std=0.01)
        super().__init__(deform(conv, deformable), nn.GroupNorm(32, after), nn.ReLU())


def tower(before: int, width: int, convs: int, deformable: Deformable = "none", first: int = 0) -> nn.Sequential:
    """``convs`` times `ConvNorm`, ``deformable`` from number ``first`` on."""
    return nn.Sequential(
        *(
            ConvNorm(before if i == 0 else width, width, deformable=deformable if i >= first else "none")
            for i in range(convs)
        )
    )


def output_conv(before: int, after: int, size: int = 3, *, prior: float | None = 0.01) -> nn.Conv2d:
    """The last convolution of a branch, whose outputs start at the probability ``prior`` (None: at zero)."""
    conv = nn.Conv2d(before, after, size, padding=size // 2)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, 0.0 if prior is None else -math.log((1 - prior) / prior))
    return conv


def deform(conv: nn.Conv2d, kind: Deformable) -> nn.Module:
    """``conv``, made deformable if ``kind`` says so."""
    return conv if kind == "none" else DeformConv(conv, modulated=kind == "v2", bias=False)


def pyramid(config: BackboneConfig, width: int, deformable: Deformable) -> tuple[Backbone, Fpn]:
    """The backbone, its stages C3 to C5 ``deformable``, and over it the pyramid of P2 to P6 with ``width`` channels."""
    backbone = Backbone.of(config, strides=(4, 8, 16, 32))
    if deformable != "none":
        deform_stages(backbone.body, modulated=deformable == "v2", bias=False)
    channels = list(backbone.channels.values())
    return backbone, Fpn(channels, width, 1, interpolation="nearest", relu=False, extra_kind="pool")


def coordinates(like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2 h w"]:
    """CoordConv: x and y of each cell, from -1 for the first to 1 for the last."""
    b, _, height, width = like.shape
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).expand(b, -1, -1, -1)


def head_levels(levels: list[Float[Tensor, "b c _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
    """The levels at strides 8, 8, 16, 32, 32, as the heads take them: P2 is halved, P6 gets the size of P5."""
    p2, p3, p4, p5, p6 = levels
    half = (p2.shape[2] // 2, p2.shape[3] // 2)
    return [resize(p2, half), p3, p4, p5, resize(p6, (p5.shape[2], p5.shape[3]))]


# targets and loss ----------------------------------------------------------------------------------------------------


def cell_levels(grids: Sequence[int]) -> Int[Tensor, "p"]:
    """The level of each cell."""
    return torch.cat([torch.full((side**2,), level) for level, side in enumerate(grids)])


def first_cells(grids: Sequence[int]) -> list[int]:
    """The number of each level's first cell, and P at the end."""
    return list(accumulate((s * s for s in grids), initial=0))


@torch.no_grad()
def assign_cells(target: Target, size: tuple[int, int], config: GridConfig) -> Bool[Tensor, "n p"]:
    """Label assignment: which cells are positive for which objects in an input of ``size`` (H, W) (SOLO, section 3.3).

    An object is assigned to every level whose range contains its size, and there to the cells that its central region
    touches, at most one away from the cell of its centre. Crowds and objects with an empty mask get no cells. Cells are
    found by division in float32, as in the official code, so that a centre on a border falls into the same cell.
    """
    boxes = target.boxes.float()
    centre, real = centres(target)
    extent = boxes[:, 2:] - boxes[:, :2]
    side = extent.prod(1).sqrt()
    half = 0.5 * config.centre * extent
    whole = boxes.new_tensor([size[1], size[0]])

    def cell(at: Tensor, grid: int) -> Tensor:
        return (at / whole).div(1 / grid, rounding_mode="floor")  # (N, 2): column, row

    parts = []
    for grid, (least, most) in zip(config.grids, config.scale_ranges, strict=True):
        middle = cell(centre, grid)
        low = torch.maximum(cell(centre - half, grid).clamp(min=0), middle - 1)
        high = torch.minimum(cell(centre + half, grid).clamp(max=grid - 1), middle + 1)
        place = torch.arange(grid, device=boxes.device)
        columns, rows = ((place >= low[:, a, None]) & (place <= high[:, a, None]) for a in (0, 1))  # (N, S)
        chosen = real & ~target.crowd & (side >= least) & (side <= most)
        parts.append((rows[:, :, None] & columns[:, None] & chosen[:, None, None]).flatten(1))  # (N, S S)
    return torch.cat(parts, 1)


def centres(target: Target) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, "n"]]:
    """Centre of mass (x, y) of each object, in pixel indices, and which objects count: those whose mask is not empty.

    The centre of an object without a known mask is that of its box.
    """
    middle = (target.boxes[:, :2] + target.boxes[:, 2:]).float() / 2 - 0.5
    if target.masks is None or len(target) == 0:
        return middle, torch.ones(len(target), dtype=torch.bool, device=middle.device)
    dense = target.masks.dense().to(middle.device)
    sums = [dense.sum(axis).double() for axis in (1, 2)]  # (N, W), (N, H)
    mass = sums[0].sum(1)
    moments = [(s * torch.arange(s.shape[1], device=s.device)).sum(1) for s in sums]
    centre = (torch.stack(moments, 1) / mass.clamp(min=1)[:, None]).float()
    return torch.where(target.has_mask[:, None], centre, middle), (mass > 0) | ~target.has_mask


def last_object(lit: Bool[Tensor, "n p"]) -> Int[Tensor, "p"]:
    """The object of each cell: the last one if there are several, -1 if there are none."""
    number = torch.arange(1, len(lit) + 1, device=lit.device)[:, None]
    none = torch.zeros(1, lit.shape[1], dtype=torch.int64, device=lit.device)
    return torch.cat([none, lit * number]).amax(0) - 1


@torch.no_grad()
def shrink(
    target: Target, inside: Int[Tensor, "2"], input_height: int, size: tuple[int, int]
) -> Float[Tensor, "n h w"]:
    """Target masks of 0 and 1 on a grid of ``size`` over the input. The image without its padding, whose (H, W) is
    ``inside``, is resized to whole cells.

    The official code resizes bytes with OpenCV. This gives the same bits: bilinear with weights of 11 bits, the
    contribution of either row truncated to quarters, and one half counts as foreground.
    """
    factor = size[0] / input_height
    height, width = inside.tolist()
    cells = (int(height * factor + 0.5), int(width * factor + 0.5))
    shrunk = torch.zeros(len(target), *size, device=inside.device)
    if target.masks is None or len(target) == 0:
        return shrunk
    rows, down = _opencv_taps(height, cells[0], inside.device)
    columns, across = _opencv_taps(width, cells[1], inside.device)
    corners = target.masks.dense().to(inside.device)[:, rows][:, :, columns].int()  # (N, 2 h', 2 w')
    near, far = (corners * across).chunk(2, 2)
    above, below = (((near + far >> 4) * down[:, None]) >> 16).chunk(2, 1)  # (N, h', w') each
    shrunk[:, : cells[0], : cells[1]] = above + below >= 2
    return shrunk


def _opencv_taps(source: int, result: int, device: torch.device) -> tuple[Int[Tensor, "2r"], Int[Tensor, "2r"]]:
    """Cells that OpenCV reads, the lower ones of all pairs first, and their weights as multiples of 1 / 2048."""
    cells, weights = taps((torch.arange(result, device=device) + 0.5) * (source / result) - 0.5, source)
    return cells.mT.flatten(), (weights.mT.flatten() * 2048).round().int()


def category_loss(
    category: Float[Tensor, "b k p"], owners: list[Int[Tensor, "p"]], batch: Batch, grids: Sequence[int]
) -> Float[Tensor, ""]:
    """Classification loss: focal loss of all cells over the number of positives. ``owners`` are the objects of each
    image's cells, from `last_object`.

    Negative cells whose centre lies in the box of a crowd are ignored.
    """
    height, width = batch.images.shape[2:]
    middle = cell_middles(grids).to(category.device) * category.new_tensor([width, height])  # (P, 2)
    truth, counted, positives = torch.zeros_like(category), torch.ones_like(category), 0
    for b, (target, owner) in enumerate(zip(batch.targets, owners, strict=True)):
        cells = torch.nonzero(owner >= 0)[:, 0]
        positives += len(cells)
        truth[b, target.labels[owner[cells]], cells] = 1
        crowds = target.boxes[target.crowd][:, None]  # (M, 1, 4)
        inside = ((middle >= crowds[..., :2]) & (middle < crowds[..., 2:])).all(-1).any(0)  # (P,)
        counted[b, :, inside & (owner < 0)] = 0
    losses = sigmoid_focal_loss(category, truth, alpha=0.25, gamma=2)
    return (losses * counted).sum() / normaliser(positives + 1 / processes())


def cell_middles(grids: Sequence[int]) -> Float[Tensor, "p 2"]:
    """Centre (x, y) of each cell, relative to the input."""
    parts = []
    for grid in grids:
        at = (torch.arange(grid) + 0.5) / grid
        parts.append(torch.stack([at.repeat(grid), at.repeat_interleave(grid)], 1))
    return torch.cat(parts)


# selection -----------------------------------------------------------------------------------------------------------


class Candidates(NamedTuple):
    """The best pairs of cell and class of each image, in fixed shapes; padding has a score of 0."""

    scores: Float[Tensor, "b k"]
    labels: Int[Tensor, "b k"]
    cells: Int[Tensor, "b k"]


class Ranked(NamedTuple):
    """The best masks of each image in fixed shapes, best score first; boxes are relative to the input."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    masks: Float[Tensor, "b k h w"]


def cell_scores(category: Float[Tensor, "b k p"], grids: Sequence[int]) -> Float[Tensor, "b k p"]:
    """Scores after point NMS: 0 where the neighbour above, to the left, or diagonally above left has a higher one."""
    parts = []
    for part, side in zip(category.float().sigmoid().split([s * s for s in grids], 2), grids, strict=True):
        level = part.unflatten(2, (side, side))
        best = F.max_pool2d(level, 2, stride=1, padding=1)[:, :, :-1, :-1]
        parts.append((level * (level == best)).flatten(2))
    return torch.cat(parts, 2)


def find_candidates(scores: Float[Tensor, "b k p"], config: GridConfig) -> Candidates:
    """The best pairs of cell and class of each image."""
    cells = scores.shape[2]
    best, index = scores.flatten(1).topk(min(config.candidates, scores[0].numel()))  # (B, k)
    return Candidates(best * (best > config.min_score), index // cells, index % cells)


def rank_masks(found: Candidates, masks: Float[Tensor, "b k h w"], config: GridConfig) -> Ranked:
    """Rescore the candidates by the maskness of their soft ``masks``, apply Matrix NMS, keep the best (SOLOv2,
    section 3.3).

    Boxes are the tight boxes of the masks, relative to the input.
    """
    likely = masks > 0.5
    area = likely.sum((2, 3))
    least = torch.tensor(config.min_area, device=masks.device)[cell_levels(config.grids).to(masks.device)][found.cells]
    scores = found.scores * mask_math.maskness(masks) * (area > least)
    image = torch.arange(masks.shape[0], device=masks.device)[:, None]

    scores, order = scores.topk(min(config.nms_top, scores.shape[1]))  # (B, n)
    labels = found.labels.gather(1, order)
    ranked = likely[image, order]
    scores = matrix_nms(ranked, labels, scores, kernel=config.nms, sigma=config.nms_sigma, stride=config.nms_stride)
    scores = scores * (scores >= config.nms_min_score)

    scores, best = scores.topk(min(config.detections, scores.shape[1]))  # (B, d)
    chosen = order.gather(1, best)
    height, width = masks.shape[2:]
    boxes = mask_math.dense_boxes(likely[image, chosen].flatten(0, 1)).unflatten(0, chosen.shape)
    boxes = boxes / numbers((width, height, width, height), boxes)
    return Ranked(boxes, labels.gather(1, best), scores, masks[image, chosen])
