"""Mask2Former: masked attention, one architecture for instance, semantic and panoptic segmentation.

Cheng, Misra, Schwing, Kirillov, Girdhar: "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR
2022).

A fixed number of learnt queries each become one class and one mask. The pixel decoder (`maskkit.nn.pixel_decoder`)
applies deformable attention across the strides 32, 16, 8 and makes mask features at stride 4. In the transformer
decoder (`maskkit.nn.masked_decoder`) the queries attend to the three strides in turn, each query only within its own
mask of the layer before. A mask is the product of a query's embedding with the mask features.

==========  ============================  ================================================================
`Raw`       shape (1024 x 1024, COCO)     meaning
==========  ============================  ================================================================
logits      (B, 10, 100, 81)              classes of each query, the last is no object; before the first
                                          layer of the decoder, and after each
embeddings  (B, 10, 100, 256)             what a query multiplies the features by
features    (B, 256, 256, 256)            of every cell; masks are ``embeddings @ features``
==========  ============================  ================================================================

The masks are not part of `Raw`, because few are ever needed: the attention uses them on coarse grids, and resizing
the features once equals resizing every mask; the loss uses those of the matched queries, the matching some points of
each (`maskkit.nn.query_loss`). Predictions come from the last layer alone.

Differences from the official code, all deliberate: unless ``scored_in`` says otherwise, masks are scored, and summed to
class scores, on the grid of stride 4 instead of in the original image, and are enlarged in one step (panoptic images
are made as there); objects get the
boxes of their masks; pixels of unknown class and crowds are ignored in matching and loss, where the official code
takes them for background; objects of which only the box is known are matched and trained by the box
(`maskkit.nn.losses`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import BackboneModelConfig, BoxOnly, ModelConfig
from maskkit.data.label_map import IGNORE
from maskkit.decode import LabelMap, OverInput, Queries, Segments
from maskkit.decode.outputs import ClassLogits, ObjectMasks, ObjectQueries, SegmentQueries
from maskkit.geometry import masks as mask_math
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import numbers
from maskkit.nn.losses import mask_loss_from_boxes, normaliser
from maskkit.nn.masked_decoder import MaskedDecoder, MaskedDecoderConfig
from maskkit.nn.pixel_decoder import PixelDecoder, PixelDecoderConfig
from maskkit.nn.positional_encoding import encode_cells
from maskkit.nn.query_loss import QueryLossConfig, Truth, class_loss, mask_terms, match
from maskkit.ranges import Count, Share
from maskkit.targets import Batch, Target

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Mask2FormerConfig(BackboneModelConfig):
    """Knobs of Mask2Former; the defaults are the published ResNet-50 model for COCO."""

    box_only: BoxOnly = field(default_factory=BoxOnly)
    task: Literal["instance", "semantic", "panoptic"] = "instance"
    """Which labels are used, and what is decoded from the queries."""
    width: Count = 256
    """Channels of the pixel decoder, the queries and the features."""
    heads: Count = 8
    """Attention heads in both decoders."""
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    query_decoder: MaskedDecoderConfig = field(default_factory=MaskedDecoderConfig)
    query_loss: QueryLossConfig = field(default_factory=QueryLossConfig)
    detections: Count = 100
    """Objects kept per image."""
    segment_score: Share = 0.8
    """Class probability above which a query becomes a panoptic segment."""
    segment_overlap: Share = 0.8
    """Least share of its mask that a segment keeps next to the others."""
    scored_in: Literal["cells", "image"] = "cells"
    """Where masks are scored, and summed to class scores: on the grid of stride 4, or, as in the official codes, in the
    original image (class scores: in the network's input, whose sides are multiples of 4 then)."""


class Mask2FormerRaw(NamedTuple):
    """What `Mask2Former.forward` gives; the module's docstring explains the fields."""

    logits: Float[Tensor, "b l q d"]
    embeddings: Float[Tensor, "b l q c"]
    features: Float[Tensor, "b c h w"]


Out = ObjectMasks[Tensor] | ObjectQueries[Tensor] | ClassLogits[Tensor] | SegmentQueries[Tensor]


class Mask2Former(Model[Mask2FormerRaw, Out]):
    """Mask2Former on a ResNet or a Swin transformer."""

    tasks: ClassVar[tuple[str, ...]] = ("instance", "semantic", "panoptic")
    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    config: Mask2FormerConfig

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config
        official = config.scored_in == "image"
        self.decoder = {
            "instance": Queries() if official else OverInput(),
            "semantic": LabelMap(via_input=official),
            "panoptic": Segments(config.segment_score, config.segment_overlap),
        }[config.task]
        self.backbone = Backbone.of(config.backbone, STRIDES)
        self.pixel_decoder = PixelDecoder(
            list(self.backbone.channels.values()), config.width, config.heads, config.pixel_decoder
        )
        self.query_decoder = MaskedDecoder(config.width, config.heads, config.num_classes, config.query_decoder)

    @classmethod
    def task_of(cls, config: ModelConfig) -> str:
        """The task that the config chooses."""
        assert isinstance(config, Mask2FormerConfig)
        return config.task

    @classmethod
    def supervision_of(cls, config: ModelConfig) -> frozenset[str]:
        """Boxes can replace the masks of objects, but not those of stuff."""
        by_task = {"instance": {"masks", "boxes"}, "semantic": {"label_map"}, "panoptic": {"masks"}}
        return frozenset(by_task[cls.task_of(config)])

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> Mask2FormerRaw:
        """Raw outputs of normalised images."""
        stages = list(self.backbone(images).values())
        if torch.is_autocast_enabled(images.device.type):  # bf16 is too coarse for sampling positions
            with torch.autocast(images.device.type, enabled=False):
                features, levels = self.pixel_decoder([stage.float() for stage in stages])
        else:
            features, levels = self.pixel_decoder(stages)
        if frequencies := self.config.query_decoder.position_frequencies:
            features = torch.cat([features, encode_cells(features, frequencies)], 1)  # (B, C + 4 frequencies, H/4, W/4)
        logits, embeddings = self.query_decoder(levels, features)
        return Mask2FormerRaw(logits, embeddings, features)

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: Mask2FormerRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Class, mask and dice terms, summed over the predictions of all layers, each matched anew."""
        raw = Mask2FormerRaw(*(t.float() for t in raw))
        truths = [self.truth(t, raw, batch) for t in batch.targets]
        last = raw.logits.shape[1] - 1
        layers = [self.layer_loss(raw, layer, truths, batch) for layer in (last, *range(last))]
        return {name: torch.stack([terms[name] for terms in layers]).sum() for name in layers[0]}

    def truth(self, target: Target, raw: Mask2FormerRaw, batch: Batch) -> Truth:
        """The objects of an image, or the classes that its label map shows, without crowds and what is unknown."""
        device, size = raw.logits.device, (batch.images.shape[2], batch.images.shape[3])
        if self.config.task == "semantic":
            shown = torch.full(size, IGNORE, device=device) if target.semantic is None else target.semantic.to(device)
            labels = torch.unique(shown.long())
            labels = labels[labels != IGNORE]
            known = torch.ones_like(labels, dtype=torch.bool)
            masks = (shown == labels[:, None, None]).float()
            return Truth(labels, masks, known, masks.new_zeros(len(labels), 4), shown != IGNORE)
        crowd = target.crowd
        unknown = torch.zeros(len(target), *size, dtype=torch.bool)
        masks = (unknown if target.masks is None else target.masks.dense()).to(device)
        counted = ~masks[crowd].any(0) | masks[~crowd].any(0)
        plain = target[~crowd]
        return Truth(plain.labels, masks[~crowd].float(), plain.has_mask, plain.boxes, counted)

    def layer_loss(
        self, raw: Mask2FormerRaw, layer: int, truths: Sequence[Truth], batch: Batch
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms of the predictions of one layer."""
        config = self.config.query_loss
        logits, embeddings = raw.logits[:, layer], raw.embeddings[:, layer]
        labels = torch.full(logits.shape[:2], self.config.num_classes, device=logits.device)
        masks, wanted, boxed = [], [], []
        for b, truth in enumerate(truths):
            pairs = match(logits[b], embeddings[b], raw.features[b], truth, config)
            labels[b, pairs.queries] = truth.labels[pairs.objects]
            if not truth.counted.any():
                labels[b] = -1  # nothing is known about the image
            known = truth.known[pairs.objects]
            found = torch.einsum("nc,chw->nhw", embeddings[b, pairs.queries], raw.features[b])
            masks.append(found[known])
            wanted.append(truth.masks[pairs.objects[known]])
            boxes = truth.boxes[pairs.objects[~known]]
            boxed.append((found[~known], boxes, torch.full((len(boxes),), b, device=boxes.device)))
        mask, dice = mask_terms(masks, wanted, [t.counted for t in truths], config)
        found, boxes, image = (torch.cat(parts) for parts in zip(*boxed, strict=True))
        from_boxes = mask_loss_from_boxes(found, boxes, image, batch, self.config.box_only)
        count = normaliser(sum(len(t.labels) for t in truths))
        nothing = raw.features.sum() * 0 + embeddings.sum() * 0
        return {
            "classification": config.class_weight * class_loss(logits, labels, config.no_object),
            "mask": config.mask_weight * mask.sum() / count + nothing,
            "mask/dice": config.dice_weight * dice.sum() / count,
            "mask/projection": from_boxes.projection.sum() / count,
            "mask/pairwise": from_boxes.pairwise,
        }

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: Mask2FormerRaw) -> Out:
        """Predictions of the last layer, in the form of the task."""
        read = {"instance": self.objects, "semantic": self.label_map, "panoptic": self.segments}
        chances = raw.logits[:, -1].float().softmax(2)  # (B, Q, K + 1)
        masks = torch.einsum("bqc,bchw->bqhw", raw.embeddings[:, -1].float(), raw.features.float())
        return read[self.config.task](chances, masks)

    def objects(
        self, chances: Float[Tensor, "b q d"], masks: Float[Tensor, "b q h w"]
    ) -> ObjectMasks[Tensor] | ObjectQueries[Tensor]:
        """The best pairs of query and class; the mean probability inside the mask multiplies the score."""
        classes = chances.shape[2] - 1
        scores = chances[..., :-1].flatten(1)
        scores, order = scores.topk(min(self.config.detections, scores.shape[1]))  # (B, k)
        if self.config.scored_in == "image":
            return ObjectQueries(masks, order // classes, order % classes, scores)
        soft, inside = masks.sigmoid(), masks > 0
        sure = (soft * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)  # (B, Q)
        scores, best = (scores * sure.gather(1, order // classes)).sort(descending=True)
        order = order.gather(1, best)
        query = (torch.arange(masks.shape[0], device=masks.device)[:, None], order // classes)
        boxes = mask_math.dense_boxes(inside[query].flatten(0, 1)).unflatten(0, order.shape)
        height, width = masks.shape[2:]
        boxes = boxes / numbers((width, height, width, height), boxes)
        return ObjectMasks(boxes, order % classes, scores, soft[query], scores)

    def label_map(self, chances: Float[Tensor, "b q d"], masks: Float[Tensor, "b q h w"]) -> ClassLogits[Tensor]:
        """For each class, the sum over the queries of its probability times that of the mask."""
        if self.config.scored_in == "image":
            masks = F.interpolate(masks, scale_factor=4, mode="bilinear")
        return ClassLogits(torch.einsum("bqk,bqhw->bkhw", chances[..., :-1], masks.sigmoid()))

    def segments(self, chances: Float[Tensor, "b q d"], masks: Float[Tensor, "b q h w"]) -> SegmentQueries[Tensor]:
        """Every query with its best class."""
        scores, labels = chances.max(2)
        return SegmentQueries(masks, labels, scores)
