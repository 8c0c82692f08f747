"""InstanceFCN: windows slide over instance-sensitive score maps and cut an object's mask out of each place.

Dai, He, Li, Ren, Sun: "Instance-sensitive Fully Convolutional Networks" (ECCV 2016).

A fully convolutional network gives k x k score maps, each of which says how much a pixel is this part (upper left,
upper middle, ...) of some object. A window puts a mask together by copying each of its k x k sub-windows from the map
of that part: no weights, no interpolation, and neighbouring windows share what they read. A second branch says whether
an object fills the window around a cell. Windows have one size, so the image is seen at several. What comes out is
class-agnostic: proposals of objects, judged by how many objects are among the best of them (average recall).

===========  ==============================  ========================================================================
`Raw`        shape (900 x 1504, six scales)  meaning
===========  ==============================  ========================================================================
objectness   (B, 39099)                      logits of the windows: scale by scale, row by row
maps         6 x (B, 25, h, w)               score maps of each scale, stride 8: (113, 188) to (15, 25)
windows      (39099, 4)                      their boxes in input pixels; they may reach out of the image
size         (2)                             width and height of the input
===========  ==============================  ========================================================================

All objects are of the one class "object": `maskkit.eval.task` sees the data of a class-agnostic method so, and labels
are 0 whatever ``num_classes`` is.

There is no official code. Ours are: every cell has its window, beyond the image there is no object; a training step
sees all scales, of which an object is taught where it fits the windows, not one scale drawn at random; the losses are
means over windows and pixels, where the paper sums; VGG's poolings are 3x3 as in DeepLab, so that pool4 with stride 1
keeps the size; other backbones are dilated to stride 8 likewise. NMS compares the boxes of the masks, not of the
windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneConfig, BackboneModelConfig
from maskkit.decode import InWindows
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry import boxes as box_math
from maskkit.geometry.masks import dense_boxes
from maskkit.geometry.nms import batched_nms
from maskkit.geometry.resample_tensors import resize_antialiased
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.vgg import Vgg, VggShape
from maskkit.nn.blocks import image_of, numbers
from maskkit.nn.dilation import dilate
from maskkit.nn.losses import OUTSIDE, normaliser
from maskkit.nn.roi import Sampled, crop_masks
from maskkit.nn.rpn import match_boxes, sample
from maskkit.ranges import Count, Positive, Share, Weight
from maskkit.targets import Batch, Target

STRIDE = 8


@dataclass(frozen=True)
class InstanceFcnConfig(BackboneModelConfig):
    """Knobs of InstanceFCN. ``num_classes`` changes nothing."""

    num_classes: Count = 1
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("vgg16"))
    stage: Literal[16, 32] = 32
    """Which features of the backbone are read, by their stride before dilation to 8; VGG's are those of conv5."""
    parts: Count = 5
    """Parts of an object along each side (k)."""
    window: Count = 21
    """Cells along each side of a window (m)."""
    rounding: Literal["floor", "round"] = "floor"
    """Where a part ends when k does not divide m: cell i is of part ``floor(i k / m)``, or part b ends at
    ``round(b m / k)``. The paper does not say."""
    width: Count = 512
    """Channels of the two branches."""
    scales: tuple[Positive, ...] = tuple(1.5**-i for i in range(6))
    """Sizes at which the image is seen, as multiples of the input's."""
    fill: Share | None = 0.8
    """Share of a window's side that the longer side of its object should have; at 0.8 no window of a pyramid with
    steps of 1.5 cuts its object off. None compares windows with the objects' own boxes, as an RPN does."""
    high: Share = 0.7
    """Least IoU, with what an object should fill, of a positive window; each object's best ones are positive too."""
    low: Share = 0.5
    """IoU below which a window is negative; windows between the two are never taught and come out as they like."""
    sampled: Count = 256
    """Windows per image in the loss, at most half of them positive."""
    crowd_overlap: Share = 0.7
    """Share of a window inside a crowd from which on it is not negative."""
    soft_targets: bool = False
    """Whether a cell shall say how much of it belongs to the object, or whether half of it does: cells have 8 pixels,
    and a mask enlarged from shares has its outline between them."""
    mask_weight: Weight = 1.0
    """Of the mean over a window's pixels; the paper's sum would be the square of ``window``."""
    candidates: Count = 2000
    """Windows that masks are cut from, before NMS."""
    nms_threshold: Share = 0.8
    detections: Count = 1000
    """Proposals per image."""


class InstanceFcnRaw(NamedTuple):
    """What `InstanceFcn.forward` gives; the module's docstring explains the fields."""

    objectness: Float[Tensor, "b n"]
    maps: tuple[Float[Tensor, "b k _ _"], ...]
    windows: Float[Tensor, "n 4"]
    size: Float[Tensor, "2"]


# windows --------------------------------------------------------------------------------------------------------------


def part_edges(cells: int, parts: int, rounding: Literal["floor", "round"] = "floor") -> list[int]:
    """Where the parts begin along one side of a window, and where the last one ends."""
    whole = math.ceil if rounding == "floor" else round
    return [whole(b * cells / parts) for b in range(parts + 1)]


def part_of(cells: int, parts: int, rounding: Literal["floor", "round"] = "floor") -> Int[Tensor, "m"]:
    """The part that each cell along one side of a window belongs to."""
    edges = part_edges(cells, parts, rounding)
    return torch.cat([torch.full((end - start,), part) for part, (start, end) in enumerate(pairwise(edges))])


def assemble(
    scores: Float[Tensor, "b t"], image: Int[Tensor, "n"], places: Int[Tensor, "n 3"], part: Int[Tensor, "m"]
) -> Float[Tensor, "n m m"]:
    """Masks of windows, each cell copied from the map of its part (section 3.1): one gather for all of them.

    ``scores`` are the maps of each image as a row of numbers; map ``row k + column`` tells about part (row, column).
    ``places`` (`window_places`) say where in it each window begins, and how many numbers a map and a line of it have.
    """
    cell = torch.arange(part.shape[0], device=part.device)
    maps = part[:, None] * (part.max() + 1) + part  # (m, m)
    first, plane, line = places[:, :, None, None].unbind(1)
    return scores[image[:, None, None], first + maps * plane + cell[:, None] * line + cell]


def window_boxes(
    grids: Sequence[tuple[int, int]], size: tuple[int, int], window: int, device: torch.device | None = None
) -> Float[Tensor, "n 4"]:
    """Boxes of the windows around every cell of each of the ``grids`` (h, w) over an input of ``size`` (H, W)."""
    boxes = []
    for grid in grids:
        low = torch.stack(_cells(grid, device)[::-1], 1) - window // 2
        step = torch.tensor([size[1] / grid[1], size[0] / grid[0]], device=device)
        boxes.append(torch.cat([low * step, (low + window) * step], 1))
    return torch.cat(boxes)


def window_places(
    grids: Sequence[tuple[int, int]], window: int, parts: int, device: torch.device | None = None
) -> Int[Tensor, "n 3"]:
    """Of each of these windows, in the maps of `in_a_row`: the place of its first cell in the first map of its scale,
    and the numbers of a map and of a line of that scale."""
    places, start = [], 0
    for grid in grids:
        y, x = _cells(grid, device)
        line = grid[1] + window - 1
        plane = (grid[0] + window - 1) * line
        first = start + y * line + x
        places.append(torch.stack([first, torch.full_like(first, plane), torch.full_like(first, line)], 1))
        start += parts**2 * plane
    return torch.cat(places)


def _cells(grid: tuple[int, int], device: torch.device | None) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Row and column of every cell."""
    y, x = (torch.arange(n, device=device) for n in grid)
    return y.repeat_interleave(grid[1]), x.repeat(grid[0])


def in_a_row(maps: Sequence[Float[Tensor, "b k _ _"]], window: int) -> Float[Tensor, "b t"]:
    """The maps of every scale as one row of numbers for each image; around them is no object."""
    before, after = window // 2, window - 1 - window // 2
    return torch.cat([F.pad(m, [before, after, before, after], value=OUTSIDE).flatten(1) for m in maps], 1)


def window_losses(logits: Float[Tensor, "n m m"], truth: Float[Tensor, "n m m"]) -> Float[Tensor, "n"]:
    """Sum of the logistic losses of the pixels of each window (equation 1)."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum((1, 2))


def fitting(target: Target, windows: Float[Tensor, "n 4"], fill: float | None) -> Target:
    """The target with its boxes as the windows should be that see its objects: squares, which they ``fill``.

    No square is smaller or larger than all ``windows``: then the best window has its object in the middle.
    """
    if fill is None:
        return target
    centre, size = box_math.to_centres(target.boxes).split(2, 1)
    sides = windows[:, 2:] - windows[:, :2]
    side = (size.amax(1, keepdim=True) / fill).clamp(sides.min(), sides.max())
    squares = box_math.to_corners(torch.cat([centre, side.expand(-1, 2)], 1))
    return replace(target, boxes=torch.where(target.crowd[:, None], target.boxes, squares))


def _grids(maps: Sequence[Float[Tensor, "b k _ _"]]) -> list[tuple[int, int]]:
    return [(m.shape[2], m.shape[3]) for m in maps]


# the network ----------------------------------------------------------------------------------------------------------


class InstanceFcn(Model[InstanceFcnRaw, ObjectMasks[Tensor]]):
    """Instance-sensitive score maps and objectness on features of stride 8."""

    tasks: ClassVar[tuple[str, ...]] = ("proposals", "instance")
    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    decoder = InWindows()
    config: InstanceFcnConfig
    part: Tensor

    def __init__(self, config: InstanceFcnConfig) -> None:
        super().__init__()
        self.config = config
        if config.backbone.name == "vgg16":
            self.backbone = Vgg(VggShape(pool="3x3", output_stride=STRIDE))
            channels = self.backbone.channels[32]
        else:
            self.backbone = dilate(Backbone.of(config.backbone, (config.stage,)), STRIDE)
            channels = self.backbone.channels[config.stage]
        width = config.width
        self.segment = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, config.parts**2, 3, 1, 1)
        )
        self.objectness = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        for first, _, last in (self.segment, self.objectness):
            nn.init.kaiming_normal_(first.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.normal_(last.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(first.bias)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.register_buffer("part", part_of(config.window, config.parts, config.rounding), persistent=False)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> InstanceFcnRaw:
        """Raw outputs of normalised images at every scale."""
        size = (images.shape[2], images.shape[3])
        maps, objectness = [], []
        for scale in self.config.scales:
            height, width = (max(round(side * scale / STRIDE), 1) * STRIDE for side in size)
            y = self.features(resize_antialiased(images, (height, width)))
            maps.append(self.segment(y))  # (B, k k, h/8, w/8)
            objectness.append(self.objectness(y).flatten(1))
        windows = window_boxes(_grids(maps), size, self.config.window, images.device)
        return InstanceFcnRaw(torch.cat(objectness, 1), tuple(maps), windows, numbers((size[1], size[0]), windows))

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Features of stride 8: conv5_3 of VGG-16."""
        if not isinstance(self.backbone, Vgg):
            return self.backbone(images)[self.config.stage]
        y = images
        for number in range(4):
            y, _ = self.backbone.stage(number, y)
        return self.backbone.convolve(4, y)

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: InstanceFcnRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Logistic losses of sampled windows, and of the pixels of the positive ones."""
        config = self.config
        scores = in_a_row([m.float() for m in raw.maps], config.window)
        places = window_places(_grids(raw.maps), config.window, config.parts, scores.device)
        objects, masks, pixels = raw.objectness.float().sum() * 0, scores.sum() * 0, 0
        for b, target in enumerate(batch.targets):
            matched = match_boxes(
                raw.windows,
                fitting(target, raw.windows, config.fill),
                config.low,
                config.high,
                best_too=True,
                crowd_overlap=config.crowd_overlap,
            )
            positive, negative = sample(matched, config.sampled, 0.5)
            logits = raw.objectness[b, torch.cat([positive, negative])].float()
            truth = (torch.arange(len(logits), device=logits.device) < len(positive)).float()
            objects = objects + F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / max(len(logits), 1)
            known = positive[target.has_mask[matched[positive]]]
            if target.masks is None or len(known) == 0:
                continue
            found = assemble(scores, torch.full_like(known, b), places[known], self.part)
            sampled = Sampled(F.pad(raw.windows[known], (1, 0)), matched[known])
            wanted = crop_masks([target], sampled, config.window)
            wanted = wanted if config.soft_targets else (wanted >= 0.5).float()
            masks, pixels = masks + window_losses(found, wanted).sum(), pixels + found.numel()
        return {
            "classification/objectness": objects / len(batch),
            "mask": config.mask_weight * masks / normaliser(pixels),
        }

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: InstanceFcnRaw) -> ObjectMasks[Tensor]:
        """The windows most like objects, after NMS of their masks' boxes."""
        config = self.config
        b, cells = raw.objectness.shape[0], config.window
        scores, order = raw.objectness.float().sigmoid().topk(min(config.candidates, raw.objectness.shape[1]))
        places = window_places(_grids(raw.maps), cells, config.parts, order.device)
        image = image_of(order)
        rows = in_a_row([m.float() for m in raw.maps], cells)
        masks = assemble(rows, image, places[order.flatten()], self.part).sigmoid()  # (B C, m, m)
        windows = raw.windows[order]  # (B, C, 4)
        low, high = windows.split(2, 2)
        tight = dense_boxes(masks >= 0.5).view(b, -1, 4) * ((high - low) / cells).repeat(1, 1, 2) + low.repeat(1, 1, 2)
        # boxes of whole cells often overlap by exactly the threshold, which rounding shall not put on either side
        scores = scores * batched_nms(tight, scores, config.nms_threshold + 1e-5)
        scores, best = scores.topk(min(config.detections, scores.shape[1]))
        chosen = windows.gather(1, best[..., None].expand(-1, -1, 4)) / raw.size.repeat(2)
        masks = masks.view(b, -1, cells, cells).gather(1, best[..., None, None].expand(-1, -1, cells, cells))
        return ObjectMasks(chosen, torch.zeros_like(best), scores, masks, scores)
