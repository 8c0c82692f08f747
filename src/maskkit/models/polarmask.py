"""PolarMask: instance segmentation with a polar representation.

Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo: "PolarMask: Single Shot Instance Segmentation with Polar Representation"
(CVPR 2020).

An outline is the lengths of 36 rays from a point inside it. So FCOS, which regresses the four distances to the sides
of a box, becomes an instance segmenter by a third tower with 36 distances. A location is positive near the centre of
mass of an object, and is the better, the more alike its rays are (polar centerness); the rays are learnt by the
polar IoU, the ratio of what the shorter and the longer of predicted and true rays cover.

==========  ====================================  ========================================================
`Raw`       shape (768 x 1280, COCO)              meaning, a tuple of the levels P3 to P7 each
==========  ====================================  ========================================================
logits      (B, 80, 96, 160) ... (B, 80, 6, 10)   class logits
distances   (B, 4, h, w)                          distances to left, top, right, bottom in pixels
centerness  (B, 1, h, w)                          logits
rays        (B, 36, h, w)                         lengths in pixels of the rays at 0, 10, ... 350 degrees
==========  ====================================  ========================================================

Angle 0 points down, 90 to the right. Rays end on border *pixels*, named by their numbers as in the official code; the
half pixel to their outer edges is added where masks are drawn. Scores are class * (centerness + 0.5), as released: up
to 1.5.

Masks are needed: a ray ends on the outline, of which a box says nothing. An object whose mask is unknown trains
its class and its box, weighted by FCOS' own centerness.

Differences from the official code, all deliberate: rays are found in the loss, for all locations of an object at
once; polygons are drawn without OpenCV, as depths on a coarse grid, and are not clipped corner by corner; crowds are
neither object nor background. FCOS' knobs ``level_scales``, ``quality`` and ``score_with_quality`` have no part here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry.nms import class_nms
from maskkit.models.base import Model
from maskkit.nn.fcos import FcosConfig, FcosDetections, flatten, pick, pyramid, require_whole_cells, tower
from maskkit.nn.fcos_targets import Positives, assign_locations, box_centres, find_positives, locate
from maskkit.nn.losses import normaliser
from maskkit.targets import Batch, Target

NO_BORDER = 1e-6
"""Length of a ray that meets no border within three degrees."""


@dataclass(frozen=True)
class PolarMaskConfig(FcosConfig):
    """Knobs of PolarMask; the defaults are the published models for COCO."""

    rays: int = 36
    """Number of rays; divides 360."""
    score_offset: float = 0.5
    """Added to the centerness in the score, because the polar one is small even at its best."""
    nms_threshold: float = 0.5
    pairs: int = 4000
    """Pairs of location and class per image that enter NMS."""
    grid_stride: int = 4
    """Input pixels per cell of the grid on which masks are drawn."""


class PolarMaskRaw(NamedTuple):
    """What `PolarMask.forward` gives; the module's docstring explains the fields."""

    logits: tuple[Float[Tensor, "b c _ _"], ...]
    distances: tuple[Float[Tensor, "b 4 _ _"], ...]
    centerness: tuple[Float[Tensor, "b 1 _ _"], ...]
    rays: tuple[Float[Tensor, "b n _ _"], ...]


# rays of a mask ------------------------------------------------------------------------------------------------------

# (x, y) steps to the eight neighbours, counterclockwise from the right
_STEPS = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))


def _turns() -> list[list[int]]:
    """For a pixel whose neighbours are the bits of a byte, entered from direction d: where its border goes on."""
    return [
        [next(((back + k) % 8 for k in range(1, 9) if byte >> (back + k) % 8 & 1), 0) for back in range(8)]
        for byte in range(256)
    ]


_TURNS = _turns()


def trace(region: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "m 2"]:
    """Pixels (x, y) of the outer border of one 8-connected region, in the order in which a walk around it meets them.

    The walk begins at the first pixel of the first row, goes down the left side, and passes twice through what is one
    pixel wide (Suzuki and Abe, 1985; OpenCV's ``CHAIN_APPROX_NONE``).
    """
    padded = np.pad(region, 1).astype(np.uint8)
    height, width = region.shape
    around = np.zeros_like(padded)
    for d, (x, y) in enumerate(_STEPS):
        around[1:-1, 1:-1] |= padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] << d
    neighbours, strides = around.tobytes(), [y * (width + 2) + x for x, y in _STEPS]
    start, path = int(padded.argmax()), []
    if neighbours[start]:
        first = next(d for d in (0, 7, 6, 5) if neighbours[start] >> d & 1)
        at, back = start, first
        while not path or (at, back) != (start, first):
            path.append(at)
            step = _TURNS[neighbours[at]][back]
            at, back = at + strides[step], step ^ 4
    rows, columns = np.unravel_index(path or [start], padded.shape)
    return np.stack([columns, rows], 1) - 1


def outline(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "m 2"]:
    """Border pixels (x, y) of the part of the mask whose border encloses most; none for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    best, largest = np.zeros((0, 2), np.int64), -1.0
    if len(rows) == 0:
        return best
    corner = np.array([columns[0], rows[0]])
    near = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    parts: np.ndarray = ndimage.label(near, np.ones((3, 3)))[0]  # type: ignore[index]
    for number, (y, x) in enumerate(ndimage.find_objects(parts), 1):
        if (y.stop - y.start - 1) * (x.stop - x.start - 1) <= largest:
            continue
        border = trace(parts[y, x] == number) + np.array([x.start, y.start])
        enclosed = abs(float(_wedges(border).sum()))
        if enclosed > largest:
            best, largest = border + corner, enclosed
    return best


def mass_centre(border: Int[np.ndarray, "m 2"]) -> Int[np.ndarray, "2"]:
    """Centroid (x, y) of the polygon through the border's pixels, cut to whole pixels; the mean of a thin line.

    Summed in the order of the border: a centroid that is a whole number falls to the same side as the official one.
    """
    wedges = _wedges(border)
    area = np.cumsum(wedges)[-1]
    if area == 0:
        return border.mean(0).astype(np.int64)
    moments = wedges[:, None] * (border + np.roll(border, 1, 0)) / 3
    return (np.cumsum(moments, 0)[-1] / area).astype(np.int64)


def _wedges(border: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, "m"]:
    """Signed areas of the triangles between the origin and the neighbours on a border."""
    before = np.roll(border, 1, 0)
    return (border[:, 0] * before[:, 1] - border[:, 1] * before[:, 0]) / 2


def cast_rays(border: Float[Tensor, "m 2"], origins: Float[Tensor, "p 2"], count: int) -> Float[Tensor, "p n"]:
    """Distances from each origin to the border, at ``count`` angles.

    At each angle it is the farthest border pixel seen at that whole degree, else at 1, 2 or 3 degrees beside it, the
    larger angle first; `NO_BORDER` where there is none. Angles below zero are not looked at, as in the official code.
    """
    x, y = (border - origins[:, None]).unbind(2)  # (P, M)
    degrees = torch.atan2(x, y) * 180 / pi
    degrees = torch.where(degrees < 0, degrees + 360, degrees).long()
    seen = x.new_full((len(origins), 363), -1.0)
    seen.scatter_reduce_(1, degrees, torch.sqrt(x.square() + y.square()), "amax")
    angles = torch.arange(0, 360, 360 // count, device=x.device)[:, None]
    near = angles + torch.tensor([0, 1, -1, 2, -2, 3, -3], device=x.device)  # (n, 7)
    lengths = torch.where(near >= 0, seen[:, near.clamp(min=0)], -1)  # (P, n, 7)
    first = (lengths >= 0).int().argmax(2, keepdim=True)  # of several maxima the first
    length = lengths.gather(2, first)[..., 0]
    return torch.where(length >= 0, length, NO_BORDER)


def polar_centerness(rays: Float[Tensor, "*p n"]) -> Float[Tensor, "*p"]:
    """Square root of the shortest over the longest ray (section 3.2)."""
    return (rays.amin(-1) / rays.amax(-1)).sqrt()


def polar_iou_loss(rays: Float[Tensor, "*p n"], truth: Float[Tensor, "*p n"]) -> Float[Tensor, "*p"]:
    """``log(sum max(d, d*) / sum min(d, d*))``: minus the logarithm of the simplified polar IoU (equation 7)."""
    return (torch.maximum(rays, truth).sum(-1) / torch.minimum(rays, truth).sum(-1)).log()


def corners(origins: Float[Tensor, "*k 2"], rays: Float[Tensor, "*k n"]) -> Float[Tensor, "*k n 2"]:
    """Where the rays end, (x, y) in the coordinates of the origins."""
    angle = torch.arange(rays.shape[-1], device=rays.device) * (2 * pi / rays.shape[-1])
    return origins[..., None, :] + rays[..., None] * torch.stack([angle.sin(), angle.cos()], -1)


def fill(
    origins: Float[Tensor, "*k 2"], rays: Float[Tensor, "*k n"], grid: tuple[int, int], stride: int
) -> Float[Tensor, "*k h w"]:
    """Masks of star-shaped polygons on a ``grid`` (h, w) with ``stride`` pixels per cell.

    A cell lies in the sector between two rays, and the side of the polygon that joins them says how deep inside the
    cell's centre is. That depth, as a ramp four cells wide around 0.5, is what interpolation to pixels cuts exactly
    along the side. Corners are border pixels, so that the polygon is half a pixel wider than they are.
    """
    count = rays.shape[-1]
    ends = corners(torch.zeros_like(origins), rays)  # (..., n, 2)
    side = ends.roll(-1, -2) - ends
    length = torch.linalg.vector_norm(side, dim=-1).clamp(min=1e-6)
    # depth of a point (x, y) below side i: slope_x[i] x + slope_y[i] y + level[i]
    slope_x, slope_y = side[..., 1] / length, -side[..., 0] / length  # (..., n)
    level = -(slope_x * ends[..., 0] + slope_y * ends[..., 1])
    y, x = ((torch.arange(cells, device=rays.device) + 0.5) * stride - 0.5 for cells in grid)
    x, y = x - origins[..., :1], y - origins[..., 1:]  # (..., w), (..., h)
    angle = torch.atan2(x[..., None, :], y[..., :, None])  # (..., h, w)
    sector = (angle * (count / (2 * pi))).floor().long().remainder(count).flatten(-2)
    slope_x, slope_y, level = (t.gather(-1, sector).unflatten(-1, grid) for t in (slope_x, slope_y, level))
    depth = slope_x * x[..., None, :] + slope_y * y[..., :, None] + level
    return (0.5 + (depth + 0.5) / (4 * stride)).clamp(0, 1)


# network -------------------------------------------------------------------------------------------------------------


class PolarHead(nn.Module):
    """Three towers, one for all levels: classes and centerness, boxes, rays."""

    def __init__(self, config: PolarMaskConfig) -> None:
        super().__init__()
        width = config.width
        self.class_tower, self.box_tower, self.ray_tower = (
            tower(width, config.tower_convs, bias=False) for _ in range(3)
        )
        self.logits = nn.Conv2d(width, config.num_classes, 3, padding=1)
        self.centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.sides = nn.Conv2d(width, 4, 3, padding=1)
        self.rays = nn.Conv2d(width, config.rays, 3, padding=1)
        self.side_scales = nn.ParameterList(torch.ones(()) for _ in config.strides)
        self.ray_scales = nn.ParameterList(torch.ones(()) for _ in config.strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -4.595)  # a foreground probability of 0.01 (focal loss, section 4.1)

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]]) -> PolarMaskRaw:
        """Predictions on every level."""
        rows = []
        for level, side_scale, ray_scale in zip(levels, self.side_scales, self.ray_scales, strict=True):
            classes = self.class_tower(level)
            distances = (self.sides(self.box_tower(level)) * side_scale).float().exp()
            rays = (self.rays(self.ray_tower(level)) * ray_scale).float().exp()
            rows.append((self.logits(classes), distances, self.centerness(classes), rays))
        return PolarMaskRaw(*zip(*rows, strict=True))


class PolarTruth(NamedTuple):
    """What the outlines of one image's objects say."""

    centres: Float[Tensor, "n 2"]
    """Centres of mass in pixels; of the box where the mask is unknown or empty."""
    borders: list[Float[Tensor, "_ 2"]]
    """Border pixels (x, y), none where the mask is unknown or empty."""


class PolarMask(Model[PolarMaskRaw, ObjectMasks[Tensor]]):
    """FCOS with rays."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    decoder = OverInput()
    config: PolarMaskConfig

    def __init__(self, config: PolarMaskConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.fpn = pyramid(config)
        self.head = PolarHead(config)

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> PolarMaskRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        return self.head(self.fpn(list(self.backbone(images).values())))

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: PolarMaskRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Focal, IoU, centerness and polar IoU terms (section 3.4)."""
        raw = PolarMaskRaw(*(tuple(level.float() for level in levels) for levels in raw))
        locations = locate(raw.logits, self.config.strides)
        outlines = [self.outlines(target) for target in batch.targets]
        assignments = [
            assign_locations(t, o.centres, locations, self.config.size_ranges, self.config.radius)
            for t, o in zip(batch.targets, outlines, strict=True)
        ]
        classes = torch.stack([a.classes for a in assignments])  # (B, P)
        positives = find_positives(assignments, batch.targets, locations)
        truth = self.ray_targets(positives, outlines, locations.xy)
        known = truth.amax(1) > 0  # an object without an outline has no rays
        central = polar_centerness(truth[known])
        weight = positives.centerness.masked_scatter(known, central)

        where = positives.image, positives.location
        distances, rays, centerness = (pick(levels, *where) for levels in (raw.distances, raw.rays, raw.centerness))
        overlap = aligned_iou(distances, positives.distances * locations.stride[positives.location, None])
        labels = F.one_hot(classes.clamp(min=0), self.config.num_classes + 1)[..., 1:].float()
        focal = sigmoid_focal_loss(flatten(raw.logits), labels, alpha=0.25, gamma=2)  # (B, P, K)
        return {
            "classification": (focal * (classes >= 0)[..., None]).sum() / normaliser(len(positives.label) + len(batch)),
            "box": (-overlap.log() * weight).sum() / normaliser(weight.sum(), 1e-6),
            "quality": F.binary_cross_entropy_with_logits(centerness[known, 0], central, reduction="sum")
            / normaliser(len(central)),
            "mask": (polar_iou_loss(rays[known], truth[known]) * central).sum() / normaliser(central.sum(), 1e-6),
        }

    @torch.no_grad()
    def outlines(self, target: Target) -> PolarTruth:
        """Outlines and centres of mass of the objects whose masks are known."""
        centres = box_centres(target)
        borders = [centres.new_zeros(0, 2)] * len(target)
        wanted = torch.nonzero(target.has_mask & ~target.crowd)[:, 0]
        if target.masks is not None and len(wanted):
            masks = target.masks[wanted].dense().cpu().numpy()
            for n, mask in zip(wanted.tolist(), masks, strict=True):
                border = outline(mask)
                if len(border):
                    centres[n] = centres.new_tensor(mass_centre(border))
                    borders[n] = centres.new_tensor(border)
        return PolarTruth(centres, borders)

    @torch.no_grad()
    def ray_targets(
        self, positives: Positives, outlines: Sequence[PolarTruth], xy: Float[Tensor, "p 2"]
    ) -> Float[Tensor, "n r"]:
        """True rays of the positives, object by object; zeros where the outline is unknown."""
        truth = xy.new_zeros(len(positives.label), self.config.rays)
        owners = torch.stack([positives.image, positives.object], 1)
        for image, n in owners.unique(dim=0).tolist():
            border = outlines[image].borders[n]
            if len(border):
                own = (owners == owners.new_tensor([image, n])).all(1)
                truth[own] = cast_rays(border, xy[positives.location[own]], self.config.rays)
        return truth

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: PolarMaskRaw) -> ObjectMasks[Tensor]:
        """NMS on the boxes, then the polygons of what is left."""
        stride = self.config.strides[0]
        size = raw.logits[0].shape[2] * stride, raw.logits[0].shape[3] * stride
        found = self.detect(raw, size)
        grid = size[0] // self.config.grid_stride, size[1] // self.config.grid_stride
        origins = locate(raw.logits, self.config.strides).xy[found.locations]
        masks = fill(origins, found.extra, grid, self.config.grid_stride)
        relative = found.boxes / found.boxes.new_tensor([size[1], size[0], size[1], size[0]])
        return ObjectMasks(relative, found.labels, found.scores, masks, found.scores)

    def detect(self, raw: PolarMaskRaw, size: tuple[int, int]) -> FcosDetections:
        """The best boxes of each image, clipped to ``size`` (H, W), with their rays as ``extra``."""
        config = self.config
        raw = PolarMaskRaw(*(tuple(level.float() for level in levels) for levels in raw))
        scores, places = [], []
        first = 0
        for logits, centerness in zip(raw.logits, raw.centerness, strict=True):
            of_class, central = logits.sigmoid().flatten(2), centerness.sigmoid().flatten(2)  # (B, K, p), (B, 1, p)
            best = (of_class * central).amax(1).topk(min(config.candidates, of_class.shape[2])).indices  # (B, m)
            score = torch.where(of_class > config.min_score, of_class * (central + config.score_offset), 0)
            scores.append(score.gather(2, best[:, None].expand(-1, score.shape[1], -1)))
            places.append(best + first)
            first += of_class.shape[2]
        score, place = torch.cat(scores, 2), torch.cat(places, 1)  # (B, K, M), (B, M)
        score, order = score.flatten(1).topk(min(config.pairs, score[0].numel()))  # (B, T)
        labels, place = order // place.shape[1], place.gather(1, order % place.shape[1])

        b, t = place.shape
        image = torch.arange(b, device=place.device)[:, None].expand(-1, t)
        xy = locate(raw.logits, config.strides).xy[place]  # (B, T, 2)
        distances = pick(raw.distances, image.flatten(), place.flatten()).view(b, t, 4)
        limit = distances.new_tensor([size[1], size[0]])
        low, high = (torch.minimum(p.clamp(min=0), limit) for p in (xy - distances[..., :2], xy + distances[..., 2:]))
        # NMS counts the last pixel in, as all of mmdetection 1 did
        kept = torch.stack(
            [
                class_nms(*rows, config.nms_threshold)
                for rows in zip(torch.cat([low, high + 1], 2), labels, score, strict=True)
            ]
        )
        score, best = (score * kept).topk(min(config.detections, t))
        place, boxes = place.gather(1, best), torch.cat([low, high], 2)
        k = best.shape[1]
        rays = pick(raw.rays, image[:, :k].flatten(), place.flatten()).view(b, k, -1)
        return FcosDetections(
            boxes.gather(1, best[..., None].expand(-1, -1, 4)), labels.gather(1, best), score, place, rays
        )


def aligned_iou(distances: Float[Tensor, "n 4"], truth: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """IoU of boxes around the same points, in pixels of which the last one counts (mmdetection 1)."""

    def cover(s: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
        return (s[:, :2] + s[:, 2:] + 1).prod(1)

    shared = cover(torch.minimum(distances, truth))
    return (shared / (cover(distances) + cover(truth) - shared)).clamp(min=1e-6)
