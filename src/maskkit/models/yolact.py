"""YOLACT and YOLACT++: real-time instance segmentation by prototypes and coefficients.

Bolya, Zhou, Xiao, Lee: "YOLACT: Real-time Instance Segmentation" (ICCV 2019) and "YOLACT++: Better Real-time Instance
Segmentation" (TPAMI 2020).

One branch makes k prototype masks of the whole image; every anchor predicts, beside its box and class, k signed
coefficients. The mask of an object is the sigmoid of the prototypes weighted by its coefficients, cut off outside its
box, so a hundred masks cost one matrix product.

=========  ==========================  ================================================================
`Raw`      shape (550 x 550, COCO)     meaning
=========  ==========================  ================================================================
loc        (B, 19248, 4)               box code against the anchors (SSD variances)
conf       (B, 19248, 81)              class logits, 0 is background
mask       (B, 19248, 32)              coefficients after tanh
priors     (19248, 4)                  anchors ``cx cy w h`` relative to the input
proto      (B, 138, 138, 32)           prototypes after ReLU
segm       (B, 80, 69, 69)             semantic logits on P3, used by the loss alone
=========  ==========================  ================================================================

Differences from the official code, all deliberate: ``conf`` stays logits in evaluation; final boxes keep their
fractions; a batch without objects has a loss of zero where the official division gives NaN; masks of objects of which
only the box is known are learnt from the box (`maskkit.nn.losses`), and do not train the rescoring. The three "ratios"
of the COCO models are three squares, as released.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry import boxes as box_math
from maskkit.geometry.nms import fast_nms, greedy_nms
from maskkit.models.base import Model
from maskkit.nn.anchor_targets import Matches, assign_anchors, hard_negative_loss
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import deform_stages
from maskkit.nn.fpn import Fpn
from maskkit.nn.losses import OUTSIDE, mask_loss_from_boxes, normaliser
from maskkit.nn.prototypes import AnchorHead, MaskIouNet, Protonet, crop_window, semantic_loss
from maskkit.ranges import Count, Positive, Share, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class YolactConfig(BackboneModelConfig):
    """Knobs of YOLACT; the defaults are the published ResNet-50 model for COCO."""

    box_only: BoxOnly = field(default_factory=BoxOnly)
    width: Count = 256
    """Channels of the pyramid, the prediction head and the prototype branch."""
    prototypes: Count = 32
    """Number k of prototypes, and of coefficients per anchor."""
    scales: tuple[tuple[Positive, ...], ...] = ((24,), (48,), (96,), (192,), (384,))
    """Anchor sizes in input pixels for each of the levels P3 to P7."""
    ratios: tuple[Positive, ...] = (1, 0.5, 2)
    """Width to height of the anchors."""
    square_anchors: bool = True
    """Anchors are squares of side scale * sqrt(ratio): an early slip that the released COCO weights depend on."""
    level_relu: bool = True
    """Whether a ReLU follows the output convolutions of the pyramid."""
    extra_from_input: bool = False
    """Whether P6 is made of C5 (mmdetection) instead of P5."""
    leaky_slope: Weight | None = None
    """Slope of the backbone's leaky ReLUs where it differs from timm's 0.01 (the original Darknet: 0.1)."""
    head_norm: bool = False
    """Group norm, of four channels each, after the inner convolutions of prototype branch and head; not in the paper,
    and worth it where the training is short."""
    deformable: Whole = 0
    """Every n-th block of the stages C3 to C5 uses deformable convolution (YOLACT++); 0 is none."""
    rescore: bool = False
    """Rate masks by a predicted IoU (YOLACT++)."""
    nms: Literal["fast", "cross-class", "traditional"] = "fast"
    nms_threshold: Share = 0.5
    nms_top: Count = 200
    """Candidates per class before NMS (in all, for cross-class)."""
    min_score: Share = 0.05
    """An anchor whose best class scores no more is not a candidate."""
    detections: Count = 100
    """Objects kept per image."""
    clip: bool = False
    """Whether boxes are at most 62.5 times as wide or high as their anchor, and are cut at the image's border before
    NMS (mmdetection)."""
    level_candidates: Whole = 0
    """Anchors of each level, best first, that are candidates (mmdetection: 1000); 0 for all."""
    final_score: Share = 0.0
    """Objects need a higher score than this after NMS (mmdetection: 0.05)."""
    positive_iou: Share = 0.5
    negative_iou: Share = 0.4
    crowd_overlap: Share = 0.7
    """Share of an anchor inside a crowd from which on it is neither object nor background."""
    negatives_per_positive: Whole = 3
    masks_to_train: Whole = 100
    """Positives per image that enter the mask loss, chosen at random; as many again of those with boxes only."""
    box_weight: Weight = 1.5
    mask_weight: Weight = 6.125
    semantic_weight: Weight = 1.0
    rescore_weight: Weight = 25.0
    rescore_min_area: Weight = 25.0
    """Objects of no more prototype pixels do not train the rescoring."""


LARGEST = math.log(1000 / 16) / 0.2
"""Of the two numbers of a box code that stand for its size, where boxes are clipped."""


class YolactRaw(NamedTuple):
    """What `Yolact.forward` gives; the module's docstring explains the fields."""

    loc: Float[Tensor, "b p 4"]
    conf: Float[Tensor, "b p c"]
    mask: Float[Tensor, "b p k"]
    priors: Float[Tensor, "p 4"]
    proto: Float[Tensor, "b h w k"]
    segm: Float[Tensor, "b c h w"]


class YolactDetections(NamedTuple):
    """Boxes after NMS with their coefficients, fixed shapes; a padding row has score 0."""

    boxes: Float[Tensor, "b n 4"]
    """``x1 y1 x2 y2`` relative to the input."""
    labels: Int[Tensor, "b n"]
    scores: Float[Tensor, "b n"]
    coefficients: Float[Tensor, "b n k"]


class Yolact(Model[YolactRaw, ObjectMasks[Tensor]]):
    """YOLACT, and YOLACT++ with ``deformable`` and ``rescore``."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = OverInput()
    config: YolactConfig

    def __init__(self, config: YolactConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone.of(config.backbone)
        if config.leaky_slope is not None:
            for module in self.backbone.modules():
                if isinstance(module, nn.LeakyReLU):
                    module.negative_slope = config.leaky_slope
        if config.deformable:
            deform_stages(self.backbone.body, every=config.deformable)
        self.fpn = Fpn(
            list(self.backbone.channels.values()),
            config.width,
            extra=len(config.scales) - 3,
            relu=config.level_relu,
            extra_from_input=config.extra_from_input,
        )
        self.protonet = Protonet(config.width, config.prototypes, config.head_norm)
        anchors = len(config.scales[0]) * len(config.ratios)
        self.head = AnchorHead(config.width, anchors, config.num_classes + 1, config.prototypes, config.head_norm)
        self.semantic = nn.Conv2d(config.width, config.num_classes, 1)
        self.maskiou = MaskIouNet(config.num_classes) if config.rescore else None
        for part in (self.fpn, self.protonet, self.head, self.semantic, self.maskiou):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> YolactRaw:
        """Raw outputs of normalised images."""
        features = self.backbone(images)
        levels = self.fpn(list(features.values()))  # P3 (B, w, H/8, W/8) to P7
        loc, conf, mask = self.head(levels)
        proto = self.protonet(levels[0]).permute(0, 2, 3, 1)  # (B, H/4, W/4, k)
        priors = self.priors([(p.shape[2], p.shape[3]) for p in levels], (images.shape[2], images.shape[3]))
        return YolactRaw(loc, conf, mask, priors.to(images.device), proto, self.semantic(levels[0]))

    def priors(self, levels: list[tuple[int, int]], size: tuple[int, int]) -> Float[Tensor, "p 4"]:
        """Anchors ``cx cy w h``, relative to an input of ``size`` (H, W), level by level, row, column, scale, ratio."""
        config = self.config
        parts = []
        for (rows, columns), scales in zip(levels, config.scales, strict=True):
            scale, root = torch.tensor(scales)[:, None], torch.tensor(config.ratios).sqrt()
            width = (scale * root).flatten() / size[1]
            height = (scale * root if config.square_anchors else scale / root).flatten() / size[0]
            y = (torch.arange(rows) + 0.5) / rows
            x = (torch.arange(columns) + 0.5) / columns
            shape = (rows, columns, len(width))
            grid = [x[None, :, None], y[:, None, None], width, height]
            parts.append(torch.stack([g.expand(shape) for g in grid], -1).reshape(-1, 4))
        return torch.cat(parts)

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: YolactRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Box, class, mask and semantic terms, and the rescoring term of YOLACT++ (official MultiBoxLoss)."""
        raw = YolactRaw(*(t.float() for t in raw))
        height, width = batch.images.shape[2:]
        to_relative = torch.tensor([width, height, width, height], device=raw.loc.device)
        targets = [replace(t, boxes=t.boxes / to_relative) for t in batch.targets]
        plain = [t[~t.crowd] for t in targets]
        matches = [self.assign(t, raw.priors) for t in targets]
        classes = torch.stack([m.classes for m in matches])  # (B, P)
        positives = normaliser((classes > 0).sum())

        box, mask, rescore = raw.loc.sum() * 0, raw.mask.sum() * 0 + raw.proto.sum() * 0, raw.loc.sum() * 0
        if self.maskiou is not None:
            rescore = rescore + sum(p.sum() * 0 for p in self.maskiou.parameters())
        boxed: list[tuple[Tensor, Tensor, Tensor]] = []
        for b, (target, match) in enumerate(zip(plain, matches, strict=True)):
            anchors = torch.nonzero(match.classes > 0)[:, 0]
            objects = match.objects[anchors]
            code = box_math.encode(target.boxes[objects], raw.priors[anchors])
            box = box + F.smooth_l1_loss(raw.loc[b, anchors], code, reduction="sum")
            known = target.has_mask[objects]
            terms = self._mask_terms(raw.proto[b], raw.mask[b, anchors[known]], target, objects[known])
            mask, rescore = mask + terms[0], rescore + terms[1]
            logits, boxes = self._boxed(raw.proto[b], raw.mask[b, anchors[~known]], target.boxes[objects[~known]])
            boxed.append((logits, boxes * to_relative, torch.full((len(boxes),), b, device=boxes.device)))
        logits, boxes, image = (torch.cat(parts) for parts in zip(*boxed, strict=True))
        from_boxes = mask_loss_from_boxes(logits, boxes, image, batch, self.config.box_only)
        losses = {
            "box": self.config.box_weight * box / positives,
            "classification": hard_negative_loss(raw.conf, classes, self.config.negatives_per_positive) / positives,
            "mask": self.config.mask_weight * mask / positives,
            "mask/projection": from_boxes.projection.sum() / normaliser(len(logits)),
            "mask/pairwise": from_boxes.pairwise,
            "semantic": self.config.semantic_weight * semantic_loss(raw.segm, plain) / len(batch),
        }
        if self.maskiou is not None:
            losses["quality"] = self.config.rescore_weight * rescore / positives
        return losses

    def assign(self, target: Target, priors: Float[Tensor, "p 4"]) -> Matches:
        """What each anchor should predict. Boxes of ``target`` are relative to the input."""
        config = self.config
        return assign_anchors(
            target,
            priors,
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            crowd_overlap=config.crowd_overlap,
        )

    def _mask_terms(
        self,
        proto: Float[Tensor, "h w k"],
        coefficients: Float[Tensor, "n k"],
        target: Target,
        objects: Int[Tensor, "n"],
    ) -> tuple[Tensor, Tensor]:
        """Mask and rescoring terms of one image's positives with ``coefficients`` for their ``objects``."""
        found = len(objects)
        if found == 0 or target.masks is None:
            return proto.sum() * 0, proto.sum() * 0
        kept = self._sampled(found).to(objects.device)
        coefficients, objects = coefficients[kept], objects[kept]
        height, width = proto.shape[:2]
        truth = target.masks.dense((height, width)).to(proto.device)[objects].float()  # (N, h, w)
        boxes = target.boxes[objects]
        logits = torch.einsum("hwk,nk->nhw", proto, coefficients)
        inside = crop_window(boxes, (height, width))  # (N, h, w)
        # a prediction outside the window is exactly 0, whose cross entropy with a pixel of the object is cut at 100
        pixels = torch.where(
            inside, F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), truth * 100
        ).sum((1, 2))
        size = (boxes[:, 2:] - boxes[:, :2]) * torch.tensor([width, height], device=proto.device)
        mask = (pixels / size.prod(1)).sum() * (found / len(objects))
        if self.maskiou is None:
            return mask, mask.detach() * 0
        soft = logits.sigmoid() * inside
        large = truth.sum((1, 2)) > self.config.rescore_min_area
        if not large.any():
            return mask, soft.sum() * 0
        predicted = self.maskiou(soft[large, None])
        predicted = predicted.gather(1, target.labels[objects[large], None])[:, 0]
        hard, real = soft[large] > 0.5, truth[large] > 0.5
        ious = (hard & real).sum((1, 2)) / (hard | real).sum((1, 2))
        return mask, F.smooth_l1_loss(predicted, ious, reduction="sum")

    def _boxed(
        self, proto: Float[Tensor, "h w k"], coefficients: Float[Tensor, "n k"], boxes: Float[Tensor, "n 4"]
    ) -> tuple[Float[Tensor, "m h w"], Float[Tensor, "m 4"]]:
        """Mask logits of one image's positives of which only the (relative) box is known, and these boxes.

        What the window cuts off is background for certain, so that a colour which goes on outside of it is none of
        the object's.
        """
        kept = self._sampled(len(boxes)).to(boxes.device)
        logits = torch.einsum("hwk,nk->nhw", proto, coefficients[kept])
        inside = crop_window(boxes[kept], (proto.shape[0], proto.shape[1]))
        return logits.masked_fill(~inside, OUTSIDE), boxes[kept]

    def _sampled(self, found: int) -> Int[Tensor, "n"]:
        """Indices of the positives, of ``found``, that train masks; drawn on the CPU, for the same choice anywhere."""
        if found <= self.config.masks_to_train:
            return torch.arange(found)
        return torch.randperm(found)[: self.config.masks_to_train]

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: YolactRaw) -> ObjectMasks[Tensor]:
        """NMS, then the masks of what is left, on the prototypes' grid."""
        found = self.detect(raw)
        logits = torch.einsum("bhwk,bnk->bnhw", raw.proto.float(), found.coefficients)
        inside = crop_window(found.boxes, (raw.proto.shape[1], raw.proto.shape[2]))
        masks = torch.where(inside, logits.sigmoid(), 0)
        mask_scores = found.scores
        if self.maskiou is not None:
            iou = self.maskiou(masks.flatten(0, 1)[:, None]).unflatten(0, masks.shape[:2])  # (B, N, K)
            mask_scores = mask_scores * iou.gather(2, found.labels[..., None])[..., 0]
        return ObjectMasks(found.boxes, found.labels, found.scores, masks, mask_scores)

    def detect(self, raw: YolactRaw) -> YolactDetections:
        """The best boxes of each image, best first, after the configured NMS."""
        config = self.config
        scores = raw.conf.float().softmax(2)[..., 1:]  # (B, P, K)
        code = raw.loc.float()  # of sizes, a fifth of the logarithm
        code = torch.cat([code[..., :2], code[..., 2:].clamp(-LARGEST, LARGEST)], 2) if config.clip else code
        boxes = box_math.decode(code, raw.priors)  # (B, P, 4)
        boxes = boxes.clamp(0, 1) if config.clip else boxes
        best = scores.amax(2, keepdim=True)  # (B, P, 1)
        able = best > config.min_score
        if config.level_candidates:
            able = able & self._best_of_levels(best[..., 0], raw.proto.shape[1:3])[..., None]
        scores = torch.where(able, scores, 0).transpose(1, 2)  # (B, K, P)
        if config.nms == "traditional":
            kept, anchors, limit = *self._traditional_nms(boxes, scores, raw.priors), config.detections
        else:
            if config.nms == "cross-class":
                scores = scores * (scores == scores.amax(1, keepdim=True))
                best, labels = scores.max(1)  # (B, P)
                kept, anchors = best.topk(min(config.nms_top, best.shape[1]))  # (B, T)
                labels = labels.gather(1, anchors)
                kept, anchors, limit = kept[:, None], anchors[:, None], kept.shape[1]
            else:
                kept, anchors = scores.topk(min(config.nms_top, scores.shape[2]))  # (B, K, T)
                labels, limit = None, config.detections
            ranked = take(boxes[:, None].expand(-1, anchors.shape[1], -1, -1), anchors)  # (B, K, T, 4)
            kept = kept * fast_nms(ranked, config.nms_threshold)
            if labels is not None:
                return self._gather(boxes, raw.mask, kept[:, 0], anchors[:, 0], labels, limit)
        labels = torch.arange(kept.shape[1], device=kept.device)[None, :, None].expand_as(kept)
        return self._gather(boxes, raw.mask, kept.flatten(1), anchors.flatten(1), labels.flatten(1), limit)

    def _best_of_levels(self, best: Float[Tensor, "b p"], proto: Sequence[int]) -> Bool[Tensor, "b p"]:
        """Which anchors are among the ``level_candidates`` of their level with the highest ``best``."""
        config, counts = self.config, []
        rows, columns = proto[0] // 2, proto[1] // 2  # P3; every further level has half of them, rounded up
        for scales in config.scales:
            counts.append(rows * columns * len(scales) * len(config.ratios))
            rows, columns = -(-rows // 2), -(-columns // 2)
        parts = []
        for level in best.split(counts, 1):
            chosen = level.topk(min(config.level_candidates, level.shape[1])).indices
            parts.append(torch.zeros_like(level, dtype=torch.bool).scatter(1, chosen, True))
        return torch.cat(parts, 1)

    def _traditional_nms(self, boxes: Tensor, scores: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy NMS class by class, in pixels with the +1 of old. Not exportable: its result has no fixed shape."""
        config = self.config
        pixels = config.scales[0][0] * config.ratios[0] ** 0.5 / priors[0, 2:]  # (W, H): the anchors know the size
        kept = torch.zeros_like(scores)
        for b, k in torch.nonzero((scores > config.min_score).any(2)).tolist():
            candidates = torch.nonzero(scores[b, k] > config.min_score)[:, 0]
            corners = boxes[b, candidates] * pixels.repeat(2)
            best = greedy_nms(corners, scores[b, k, candidates], config.nms_threshold, plus_one=True)
            kept[b, k, candidates[best]] = scores[b, k, candidates[best]]
        return kept, torch.arange(scores.shape[2], device=scores.device).expand_as(scores)

    def _gather(
        self, boxes: Tensor, mask: Tensor, scores: Tensor, anchors: Tensor, labels: Tensor, limit: int
    ) -> YolactDetections:
        """The ``limit`` best of scored (B, M) candidates that point to anchors."""
        best, order = (scores * (scores > self.config.final_score)).topk(min(limit, scores.shape[1]))
        anchors = anchors.gather(1, order)
        return YolactDetections(take(boxes, anchors), labels.gather(1, order), best, take(mask.float(), anchors))


def take(rows: Float[Tensor, "*b p n"], index: Int[Tensor, "*b m"]) -> Float[Tensor, "*b m n"]:
    """Rows of each batch entry by index."""
    return rows.gather(-2, index[..., None].expand(*index.shape, rows.shape[-1]))
