"""FCIS: regions are found, named and segmented by the same position-sensitive maps.

Li, Qi, Dai, Ji, Wei: "Fully Convolutional Instance-aware Semantic Segmentation" (CVPR 2017).

For every class and each of k x k parts of an object there are two maps: how much a pixel lies *inside* of an object at
that part, and how much *outside* of one while within its box. A region proposal puts its pixels together from the maps
of their parts. Where either is high there is an object, so that the mean of their maximum is the score of the class;
where inside beats outside is its mask. No weights belong to regions, which makes them nearly free: in inference the
proposals are refined and looked at again, and all of them vote on the masks.

===============  ======================  =============================================================================
`FcisRaw`        shape (608 x 1008)      meaning
===============  ======================  =============================================================================
rpn.objectness   (B, 28728)              logits of the anchors
rpn.deltas       (B, 28728, 4)           their box code
rpn.anchors      (28728, 4)              in input pixels
sampled.rois     (B 600, 5)              image and box of each region: 300 proposals, then these refined; in training
                                         proposals and objects' own boxes
sampled.matched  (B 600)                 index of the region's object, in training
read             for each region         what is read from the maps:
  class_logits   (B 600, 81)             background is last
  box_deltas     (B 600, 4)              box code, whatever the class
  mask_logits    (B 600, 21, 21)         inside less outside, of the likeliest class; in training of the object's
extents          (B, 2)                  width and height of each image without padding
size             (2)                     width and height of the input
===============  ======================  =============================================================================

Differences from the official code, all deliberate: objectness is one logit, the difference of the official two, and
boxes have no code for background, which nothing reads (so the box maps are 4 k^2, as in the paper); masks are cut from
what was voted, not from a copy of it on 21 x 21 cells; too few proposals are filled up with none, not with random
repetitions; background inside a crowd is ignored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import Votes
from maskkit.decode.outputs import RegionVotes
from maskkit.geometry import boxes as box_math
from maskkit.geometry.boxes import has_area
from maskkit.geometry.nms import batched_nms
from maskkit.geometry.resample_tensors import taps
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import numbers
from maskkit.nn.dilation import dilate
from maskkit.nn.losses import in_fp32, normaliser
from maskkit.nn.position_sensitive import corner_sums, pool
from maskkit.nn.roi import RegionConfig, Sampled, all_rois, as_rois, objects_of, sample_rois
from maskkit.nn.rpn import (
    BACKGROUND,
    ProposalConfig,
    Proposals,
    RpnHead,
    RpnRaw,
    Weights,
    caffe_anchors,
    clip,
    decode,
    encode,
    extents_of,
    proposal_terms,
    propose,
    rpn_levels,
)
from maskkit.ranges import Count, Share, Weight
from maskkit.targets import Batch, Target

STRIDE = 16
BOX_WEIGHTS: Weights = (5.0, 5.0, 2.0, 2.0)
"""Of the box code of regions."""
MASK_WEIGHT = 10.0
"""Of the mask term."""
_TRUE = 0.4
"""Share of an object from which on a cell belongs to its mask."""


@dataclass(frozen=True)
class FcisConfig(BackboneModelConfig):
    """Knobs of FCIS; the defaults are the official ones for COCO."""

    parts: Count = 7
    """Parts of an object along each side; 1 makes it blind to where a pixel lies in its region."""
    bins: Count = 21
    """Side of the grid on which regions are put together."""
    width: Count = 1024
    """Channels of the features that the maps are read from."""
    rpn_width: Count = 512
    """Channels of the region proposal network."""
    proposals: ProposalConfig = field(
        default_factory=lambda: ProposalConfig(
            anchor_sizes=((64, 128, 256, 512),), smooth_l1=1 / 9, before=(6000, 6000), after=(300, 300)
        )
    )
    least_side: Weight = 2.0
    """Shortest side of a region in pixels."""
    regions: RegionConfig = field(
        default_factory=lambda: RegionConfig(sampled=128, smooth_l1=1.0, min_score=1e-3, nms_threshold=0.3)
    )
    hard: bool = True
    """Whether the regions in the loss are those with the largest loss, of all proposals (online hard example mining,
    COCO), or random ones (VOC)."""
    caffe_stem: bool = False
    """Max-pooling in the stem without padding, rests at the border included, as weights from Caffe need."""
    vote_iou: Share = 0.5
    """Least IoU with an object of the regions that vote on its mask."""


class Regions(NamedTuple):
    """What is read from the maps for each region."""

    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n 4"]
    mask_logits: Float[Tensor, "n s s"]


class FcisRaw(NamedTuple):
    """What `Fcis.forward` gives; the module's docstring explains the fields."""

    rpn: RpnRaw
    sampled: Sampled
    read: Regions
    extents: Float[Tensor, "b 2"]
    size: Float[Tensor, "2"]


class RegionLosses(NamedTuple):
    """Terms of each region, not weighted."""

    label: Float[Tensor, "n"]
    mask: Float[Tensor, "n"]
    box: Float[Tensor, "n"]


class Fcis(Model[FcisRaw, RegionVotes[Tensor]]):
    """A region proposal network and position-sensitive maps on one backbone of stride 16."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    decoder = Votes(cut=0.4)
    config: FcisConfig

    def __init__(self, config: FcisConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = dilate(Backbone.of(config.backbone, (16, 32)), STRIDE, first_block=True)
        if config.caffe_stem:
            self.backbone.body.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.rpn = RpnHead(self.backbone.channels[16], config.proposals.anchors_per_cell, config.rpn_width)
        self.squeeze = nn.Conv2d(self.backbone.channels[32], config.width, 1)
        self.score = nn.Conv2d(config.width, (config.num_classes + 1) * 2 * config.parts**2, 1)
        self.deltas = nn.Conv2d(config.width, 4 * config.parts**2, 1)
        for layer in (self.squeeze, self.score, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> FcisRaw:
        """Raw outputs of normalised images; with ``targets`` for the regions that are trained on."""
        shallow, deep = self.backbone(images).values()  # (B, ., H/16, W/16) each
        size = (images.shape[2], images.shape[3])
        level = self.anchored(shallow, size)
        extents = extents_of(images, sizes)
        proposals = self.propose(level, extents, training=targets is not None)
        y = F.relu(self.squeeze(deep))
        maps, boxes = (corner_sums(layer(y), self.config.parts) for layer in (self.score, self.deltas))
        if targets is None:
            first = self.read(maps, boxes, as_rois(proposals.boxes))
            refined = self.refine(proposals.boxes, first.box_deltas, extents)
            second = self.read(maps, boxes, as_rois(refined))
            b = images.shape[0]
            found = Regions(*(join(x, y, b) for x, y in zip(first, second, strict=True)))
            sampled = all_rois(torch.cat([proposals.boxes, refined], 1))
        else:
            sampled = self.sample(proposals, targets)
            found = self.read(maps, boxes, sampled.rois, self.labels(sampled, targets))
        return FcisRaw(level, sampled, found, extents, numbers(size[::-1], extents))

    def anchored(self, features: Float[Tensor, "b c h w"], size: tuple[int, int]) -> RpnRaw:
        """What the region proposal network says of an input of ``size`` (H, W)."""
        anchors = caffe_anchors(self.config.proposals, [features], [STRIDE], size)
        return rpn_levels(self.rpn, [features], anchors)[0]

    def propose(self, level: RpnRaw, extents: Float[Tensor, "b 2"], *, training: bool) -> Proposals:
        """The best anchors of cells that lie in the image as a whole."""
        config = self.config
        ends = box_math.to_centres(level.anchors)[:, :2] + STRIDE / 2
        whole = (ends <= extents[:, None]).all(2)  # (B, A)
        level = level._replace(objectness=level.objectness.masked_fill(~whole, -math.inf))
        boxes, scores = propose([level], extents, config.proposals, training=training, least_side=config.least_side)
        return Proposals(boxes * scores.isfinite()[..., None], scores)

    def read(
        self,
        maps: Float[Tensor, "b y x p d"],
        boxes: Float[Tensor, "b y x p 4"],
        rois: Float[Tensor, "n 5"],
        labels: Int[Tensor, "n"] | None = None,
    ) -> Regions:
        """Classes, boxes and masks of regions, from `corner_sums`; masks of the given classes or of the likeliest."""
        config = self.config
        pooled = pool(maps, rois, config.bins, STRIDE).unflatten(3, (-1, 2))  # (N, s, s, K + 1, 2)
        outside, inside = pooled.unbind(4)
        logits = torch.maximum(outside, inside).mean((1, 2))
        labels = logits[:, :-1].argmax(1) if labels is None else labels
        index = labels[:, None, None, None].expand(-1, config.bins, config.bins, 1)
        masks = (inside.gather(3, index) - outside.gather(3, index))[..., 0]
        return Regions(logits, pool(boxes, rois, config.bins, STRIDE).mean((1, 2)), masks)

    def refine(
        self, boxes: Float[Tensor, "b r 4"], deltas: Float[Tensor, "n 4"], extents: Float[Tensor, "b 2"]
    ) -> Float[Tensor, "b r 4"]:
        """Boxes of regions after their code was applied."""
        moved = clip(decode(deltas.float().view_as(boxes), boxes, BOX_WEIGHTS), extents)
        return moved * has_area(moved, self.config.least_side)[..., None]

    def sample(self, proposals: Proposals, targets: Sequence[Target]) -> Sampled:
        """The regions that the loss sees: all of them where the hardest are to be found."""
        config = self.config.regions
        if self.config.hard:
            config = replace(config, sampled=proposals.boxes.shape[1] + max(map(len, targets)), positive=1.0)
        return sample_rois(proposals, targets, config)

    def labels(self, sampled: Sampled, targets: Sequence[Target]) -> Int[Tensor, "n"]:
        """Class of each region; the number of classes is background."""
        labels = torch.full_like(sampled.matched, self.config.num_classes)
        positive, objects = objects_of(sampled, targets)
        return labels.index_copy(0, positive, torch.cat([t.labels for t in targets])[objects])

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: FcisRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Terms of the proposals, and of the regions of each image that are hardest."""
        raw, config, targets = in_fp32(raw), self.config.regions, batch.targets
        first = proposal_terms(raw.rpn, targets, self.config.proposals)
        labels = self.labels(raw.sampled, targets)
        masks, codes = region_targets(raw.sampled, targets, self.config.bins)
        each = region_losses(raw.read, labels, masks, codes, config.smooth_l1)
        image = raw.sampled.rois[:, 0]
        chosen = torch.cat([hardest(each, image == b, config.sampled) for b in range(len(batch))])
        rows = config.sampled * len(batch)
        return first | {
            "classification": each.label[chosen].sum() / normaliser(len(chosen)),
            "mask": MASK_WEIGHT * each.mask[chosen].sum() / rows,
            "box": each.box[chosen].sum() / rows,
        }

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: FcisRaw) -> RegionVotes[Tensor]:
        """The best boxes after NMS within each class, and who votes on their masks."""
        config, b = self.config.regions, raw.extents.shape[0]
        regions = raw.sampled.rois[:, 1:].unflatten(0, (b, -1))  # (B, R, 4)
        masks = raw.read.mask_logits.float().sigmoid().unflatten(0, (b, -1))
        scores = raw.read.class_logits.float().softmax(1)[:, :-1].unflatten(0, (b, -1)) * has_area(regions)[..., None]
        best, order = scores.flatten(1).topk(min(config.candidates, scores[0].numel()))
        labels, which = order % self.config.num_classes, order // self.config.num_classes
        boxes = regions.gather(1, which[..., None].expand(-1, -1, 4))
        best = best * (batched_nms(boxes, best, config.nms_threshold, labels) & (best > config.min_score))
        best, order = best.topk(min(config.detections, best.shape[1]))
        labels, which = labels.gather(1, order), which.gather(1, order)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)) * (best > 0)[..., None]

        near = (box_math.iou(boxes, regions) >= self.config.vote_iou) * (best > 0)[..., None]  # (B, K, R)
        votes = near * scores.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, scores.shape[1]))
        votes = votes / votes.sum(2, keepdim=True).clamp(min=1e-12)
        own = masks.gather(1, which[..., None, None].expand(-1, -1, *masks.shape[2:]))
        none = torch.zeros_like(regions[..., 0])
        return RegionVotes(
            torch.cat([boxes, regions], 1) / raw.size.repeat(2),
            torch.cat([labels, none.long()], 1),
            torch.cat([best, none], 1),
            torch.cat([own, masks], 1),
            torch.cat([votes, none[..., None].expand(-1, -1, votes.shape[2])], 1),
        )


def join(first: Float[Tensor, "n *c"], second: Float[Tensor, "n *c"], images: int) -> Float[Tensor, "m *c"]:
    """Rows of both passes, image by image."""
    return torch.cat([x.unflatten(0, (images, -1)) for x in (first, second)], 1).flatten(0, 1)


@torch.no_grad()
def region_targets(
    sampled: Sampled, targets: Sequence[Target], bins: int
) -> tuple[Float[Tensor, "n s s"], Float[Tensor, "n 4"]]:
    """Mask and box code that each region shall have: masks of 0 and 1, of -1 where none is known or there is no object.

    Masks are read at the middle of each cell of the region in whole pixels, without looking beyond it, and cut at 0.4.
    """
    rois, matched = sampled
    masks = torch.full((len(rois), bins, bins), -1.0, device=rois.device)
    codes = torch.zeros(len(rois), 4, device=rois.device)
    for b, target in enumerate(targets):
        mine = torch.nonzero((rois[:, 0] == b) & (matched != BACKGROUND))[:, 0]
        if len(mine) == 0:
            continue
        objects, boxes = matched[mine], rois[mine, 1:]
        codes[mine] = encode(target.boxes[objects], boxes, BOX_WEIGHTS)
        known = target.has_mask[objects]
        if target.masks is None or not known.any():
            continue
        seen, place = objects[known].unique(return_inverse=True)
        dense = target.masks[seen].dense().to(rois.device, torch.float32)  # (S, H, W)
        whole = boxes[known].round().long()
        y, y_share = _middles(whole[:, 1], whole[:, 3], bins, dense.shape[1])  # (P, 2, s)
        x, x_share = _middles(whole[:, 0], whole[:, 2], bins, dense.shape[2])
        corners = dense[place[:, None, None, None, None], y[:, :, None, :, None], x[:, None, :, None, :]]
        shares = y_share[:, :, None, :, None] * x_share[:, None, :, None, :]
        masks[mine[known]] = ((corners * shares).sum((1, 2)) >= _TRUE).float()
    return masks, codes


def _middles(
    low: Int[Tensor, "p"], high: Int[Tensor, "p"], bins: int, pixels: int
) -> tuple[Int[Tensor, "p 2 s"], Float[Tensor, "p 2 s"]]:
    """The two pixels next to the middle of each bin along one axis, and their shares."""
    low = low.clamp(max=pixels - 1)
    last = (torch.maximum(high, low + 1) - 1)[:, None]
    bin = torch.arange(bins, device=low.device)
    at = (bin + 0.5) * ((last - low[:, None] + 1) / bins) - 0.5 + low[:, None]
    near, shares = taps(at, pixels)  # (P, s, 2)
    near = torch.minimum(torch.maximum(near, low[:, None, None]), last[..., None])
    return near.mT, shares.mT


def region_losses(
    regions: Regions,
    labels: Int[Tensor, "n"],
    masks: Float[Tensor, "n s s"],
    codes: Float[Tensor, "n 4"],
    beta: float,
) -> RegionLosses:
    """Cross entropy of the class, mean cross entropy of the pixels of a known mask, smooth L1 of an object's box."""
    known = masks[:, 0, 0] >= 0
    pixels = F.binary_cross_entropy_with_logits(regions.mask_logits, masks.clamp(min=0), reduction="none")
    box = F.smooth_l1_loss(regions.box_deltas, codes, beta=beta, reduction="none").sum(1)
    background = regions.class_logits.shape[1] - 1
    return RegionLosses(
        F.cross_entropy(regions.class_logits, labels, reduction="none"),
        pixels.mean((1, 2)) * known,
        box * (labels != background),
    )


def hardest(losses: RegionLosses, mine: Tensor, count: int) -> Int[Tensor, "k"]:
    """Indices of the ``count`` of the regions ``mine`` whose loss is largest (OHEM; Shrivastava et al., 2016)."""
    index = torch.nonzero(mine)[:, 0]
    total = (losses.label + MASK_WEIGHT * losses.mask + losses.box).detach()[index]
    return index[total.topk(min(count, len(index))).indices]
