"""Mask2Former: masked attention, one architecture for instance, semantic and panoptic segmentation.

Cheng, Misra, Schwing, Kirillov, Girdhar: "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR
2022).

A fixed number of learnt queries each become one class and one mask. The pixel decoder enriches the backbone's features
by deformable attention among the strides 32, 16, 8 and makes a feature of every cell at stride 4; the transformer
decoder lets the queries look at the three strides in turn, each query only at where its own mask of one layer before
is. A mask is the product of a query's embedding with the features of the cells.

==========  ============================  ================================================================
`Raw`       shape (1024 x 1024, COCO)     meaning
==========  ============================  ================================================================
logits      (B, 10, 100, 81)              classes of each query, the last is no object; before the first
                                          layer of the decoder, and after each
embeddings  (B, 10, 100, 256)             what a query multiplies the features by
features    (B, 256, 256, 256)            of every cell; masks are ``embeddings @ features``
==========  ============================  ================================================================

The masks themselves are no part of `Raw`, since hardly any of them is ever needed: the attention needs them on coarse
grids, and resizing the features once is the same as resizing every mask; the loss needs those of the matched queries,
the matching some points of each. What the image shows is read from the last predictions alone.

Differences from the official code, all deliberate: masks are rated, and summed up to class scores, on the grid of
stride 4 instead of in the original image, and are enlarged in one step (panoptic images are made as there); objects
get the boxes of their masks; pixels of no known class, and crowds, neither match nor teach, where the official code
takes them for background; masks of objects of which only the box is known are matched and learnt by the box
(`maskkit.nn.losses`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, BoxOnly, ModelConfig
from maskkit.data.label_map import IGNORE
from maskkit.decode import LabelMap, OverInput, Segments
from maskkit.decode.outputs import ClassLogits, ObjectMasks, SegmentQueries
from maskkit.geometry import masks as mask_math
from maskkit.geometry.resample_tensors import sample_points
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import linear
from maskkit.nn.deform_attn import DeformableAttention, Size, portions
from maskkit.nn.losses import box_cells, mask_loss_from_boxes, normaliser
from maskkit.nn.positional_encoding import encode_cells, encode_positions
from maskkit.targets import Batch, Target

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Mask2FormerConfig(BackboneModelConfig):
    """Knobs of Mask2Former; the defaults are the published ResNet-50 model for COCO."""

    box_only: BoxOnly = field(default_factory=BoxOnly)
    task: Literal["instance", "semantic", "panoptic"] = "instance"
    """What is learnt from a data set, and what the queries are read as."""
    queries: int = 100
    width: int = 256
    """Channels of the pixel decoder, the queries and the features."""
    heads: int = 8
    encoder_layers: int = 6
    """Layers of deformable attention in the pixel decoder."""
    encoder_width: int = 1024
    """Channels inside of their feed-forward networks."""
    decoder_layers: int = 9
    decoder_width: int = 2048
    class_weight: float = 2.0
    """Of the class in the matching and in the loss, as the next two."""
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1
    """Weight in the cross entropy of a query that has no object."""
    points: int = 12544
    """Points at which masks are compared, in the matching and in the loss."""
    oversample: float = 3.0
    """So many times as many points are drawn for the loss, to find the uncertain ones among them."""
    uncertain: float = 0.75
    """Share of the loss's points that are the most uncertain; the others are random."""
    position_frequencies: int = 0
    """Frequencies, per axis, of the positional encoding that features and mask embeddings get as further channels
    (`maskkit.nn.positional_encoding`): the mask of each query starts near a position of its own. 0 for none, as in the
    paper."""
    detections: int = 100
    """Objects kept per image."""
    segment_score: float = 0.8
    """Class probability that a segment of a panoptic image exceeds."""
    segment_overlap: float = 0.8
    """Share of its own mask, at least, that it keeps beside the others."""


class Mask2FormerRaw(NamedTuple):
    """What `Mask2Former.forward` gives; the module's docstring explains the fields."""

    logits: Float[Tensor, "b l q d"]
    embeddings: Float[Tensor, "b l q c"]
    features: Float[Tensor, "b c h w"]


class Truth(NamedTuple):
    """What the queries of one image should predict."""

    labels: Int[Tensor, "n"]
    masks: Float[Tensor, "n h w"]
    """Empty where only the box is known."""
    known: Bool[Tensor, "n"]
    """Whether the mask is."""
    boxes: Float[Tensor, "n 4"]
    counted: Bool[Tensor, "h w"]
    """Pixels of which it is known what they show."""


class Matches(NamedTuple):
    """Pairs of one image."""

    queries: Int[Tensor, "m"]
    objects: Int[Tensor, "m"]


# the pixel decoder ----------------------------------------------------------------------------------------------------


class EncoderLayer(nn.Module):
    """Deformable attention among the cells of all levels, then a feed-forward network."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b n c"], where: Tensor, reference: Tensor, sizes: Sequence[Size]) -> Tensor:
        """The cells, of which ``where`` is the embedded and ``reference`` the relative position."""
        look = self.attention.sampler(x, sizes)
        done = []
        for some in portions(x):  # all of the layer for few cells, not one step after the other for all
            part = x[:, some]
            part = self.norm1(part + look(part + where[some], reference[some]))
            done.append(self.feed(part))
        return torch.cat(done, 1)

    def feed(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The feed-forward network, cell by cell."""
        inner = linear(x, self.linear1.weight, self.linear1.bias, "relu")
        return self.norm2(x + linear(inner, self.linear2.weight, self.linear2.bias))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a product, which is what it is where channels are last."""

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The same map with other channels."""
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PixelDecoder(nn.Module):
    """The levels of strides 32, 16, 8, which have seen one another, and the features of stride 4 (section 3.2.2)."""

    def __init__(self, channels: Sequence[int], config: Mask2FormerConfig) -> None:
        super().__init__()
        width = config.width
        self.inputs = nn.ModuleList(
            nn.Sequential(Pointwise(c, width), nn.GroupNorm(32, width)) for c in reversed(channels[1:])
        )
        self.level = nn.Parameter(torch.randn(3, width))
        self.layers = nn.ModuleList(
            EncoderLayer(width, config.heads, config.encoder_width) for _ in range(config.encoder_layers)
        )
        self.lateral = nn.Sequential(Pointwise(channels[0], width, bias=False), nn.GroupNorm(32, width))
        self.output = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(32, width))
        self.mask = Pointwise(width, width)
        for conv, _ in self.inputs:  # type: ignore[misc]
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        later: list[Any] = [self.lateral[0], self.output[0], self.mask]
        for conv in later:
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> tuple[Tensor, list[Tensor]]:
        """Features (B, C, H/4, W/4), and the levels of strides 32, 16, 8, each (B, C, h, w), of a backbone's."""
        inputs = [project(f) for project, f in zip(self.inputs, reversed(features[1:]), strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in inputs]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], 1)  # (B, N, C)
        where = torch.cat([sines(s, cells) + level for s, level in zip(sizes, self.level, strict=True)])
        reference = torch.cat([centres(s, cells) for s in sizes])[:, None]  # (N, 1, 2), alike on every level
        for layer in self.layers:
            cells = layer(cells, where, reference, sizes)
        counts = [h * w for h, w in sizes]
        # channels last, as they are: unflattened after the permutation, one image would have strides that hide it
        levels = [x.unflatten(1, s).permute(0, 3, 1, 2) for x, s in zip(cells.split(counts, 1), sizes, strict=True)]
        size = (features[0].shape[2], features[0].shape[3])
        fine = F.interpolate(levels[-1], size=size, mode="bilinear").add_(self.lateral(features[0]))
        return self.mask(F.relu(self.output(fine), inplace=True)), levels


def sines(size: Size, like: Tensor) -> Float[Tensor, "n c"]:
    """Positions of the cells of a grid, embedded by sine and cosine: half of the channels say y, half x (DETR)."""
    channels = like.shape[-1] // 2
    rate = 10000 ** (torch.arange(channels, device=like.device) // 2 * 2 / channels)
    axes = []
    for cells in size:
        place = torch.arange(1, cells + 1, device=like.device) * (2 * torch.pi / (cells + 1e-6))
        phase = place[:, None] / rate
        axes.append(torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], 2).flatten(1))  # (cells, C / 2)
    y, x = axes
    height, width = size
    grid = [y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)]
    return torch.cat(grid, 2).flatten(0, 1)


def centres(size: Size, like: Tensor) -> Float[Tensor, "n 2"]:
    """Centres ``x y`` of the cells of a grid that spans 0 to 1."""
    y, x = ((torch.arange(cells, device=like.device) + 0.5) / cells for cells in size)
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2).flatten(0, 1)


# the transformer decoder ----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention; what is compared and what is passed on may differ by a position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Bool[Tensor, "b q n"] | None = None) -> Tensor:
        """What each query gathers from the values, of those that it may have ``seen``."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q, k, v = (
            linear(x, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, M, _, C / M)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        found = F.scaled_dot_product_attention(q, k, v, None if seen is None else seen[:, None])
        return self.out_proj(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked attention to the cells, attention among the queries, a feed-forward network."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.cross_attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm3 = nn.LayerNorm(width)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, x: Float[Tensor, "b q c"], who: Tensor, cells: Float[Tensor, "b n c"], where: Tensor, seen: Tensor
    ) -> Tensor:
        """The queries; ``who`` and ``where`` are the positions of queries and cells."""
        x = self.norm1(x + self.cross_attention(x + who, cells + where, cells, seen))
        x = self.norm2(x + self.self_attention(x + who, x + who, x))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class Surroundings(nn.Module):
    """Further channels of the mask embeddings: the encoding of a position, which the query may move, times predicted
    weights.

    The positions start evenly spread over the image, the weights at one.
    """

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.position_frequencies = config.position_frequencies
        self.start = nn.Parameter(spread(config.queries))
        self.move = nn.Linear(config.width, 2)
        self.weigh = nn.Linear(config.width, 4 * config.position_frequencies)
        for layer, bias in ((self.move, 0.0), (self.weigh, 1.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Float[Tensor, "b q c"]) -> Float[Tensor, "b q 4*frequencies"]:
        """The channels."""
        return self.weigh(x) * encode_positions(self.start + self.move(x), self.position_frequencies)


def spread(count: int) -> Float[Tensor, "n 2"]:
    """Places from 0 to 1, any number of the first of which fill a square evenly: multiples of the plastic ratio."""
    ratio = 1.324717957244746  # its cube is itself plus one
    multiples = torch.arange(count, dtype=torch.float64)[:, None] / torch.tensor([ratio, ratio**2])
    return ((multiples + 0.5) % 1).float()


class MaskedDecoder(nn.Module):
    """Queries that look at the levels in turn, each within its own mask (section 3.2.1)."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        width = config.width
        self.queries = nn.Embedding(config.queries, width)
        self.positions = nn.Embedding(config.queries, width)
        self.level = nn.Embedding(3, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.decoder_width) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.label = nn.Linear(width, config.num_classes + 1)
        self.near = Surroundings(config) if config.position_frequencies else None
        self.embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, levels: Sequence[Float[Tensor, "b c _ _"]], features: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Class logits (B, L + 1, Q, K + 1) and mask embeddings (B, L + 1, Q, C), before and after each layer."""
        cells, where, coarse = [], [], []
        for level, embedding in zip(levels, self.level.weight, strict=True):
            size = (level.shape[2], level.shape[3])
            cells.append(level.flatten(2).transpose(1, 2) + embedding)  # (B, N, C)
            where.append(sines(size, level.flatten(2).transpose(1, 2)))
            coarse.append(F.interpolate(features.detach(), size=size, mode="bilinear").flatten(2))  # (B, C, N)
        x = self.queries.weight.expand(len(features), -1, -1)
        predictions = [self.predict(x)]
        for i, layer in enumerate(self.layers):
            inside = predictions[-1][1].detach() @ coarse[i % 3] >= 0  # (B, Q, N)
            seen = inside | ~inside.any(2, keepdim=True)  # who would see nothing sees everything
            x = layer(x, self.positions.weight, cells[i % 3], where[i % 3], seen)
            predictions.append(self.predict(x))
        return [torch.stack(parts, 1) for parts in zip(*predictions, strict=True)]

    def predict(self, x: Float[Tensor, "b q c"]) -> tuple[Tensor, Tensor]:
        """Class logits and mask embeddings of the queries."""
        x = self.norm(x)
        embedding = self.embed(x)
        if self.near is not None:
            embedding = torch.cat([embedding, self.near(x)], 2)  # (B, Q, C + 4 frequencies)
        return self.label(x), embedding


class Mask2Former(Model[Mask2FormerRaw, ObjectMasks[Tensor] | ClassLogits[Tensor] | SegmentQueries[Tensor]]):
    """Mask2Former on a ResNet or a Swin transformer."""

    tasks: ClassVar[tuple[str, ...]] = ("instance", "semantic", "panoptic")
    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    config: Mask2FormerConfig

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = {
            "instance": OverInput(),
            "semantic": LabelMap(),
            "panoptic": Segments(config.segment_score, config.segment_overlap),
        }[config.task]
        self.backbone = Backbone.of(config.backbone, STRIDES)
        self.pixel_decoder = PixelDecoder(list(self.backbone.channels.values()), config)
        self.query_decoder = MaskedDecoder(config)

    @classmethod
    def task_of(cls, config: ModelConfig) -> str:
        """The task that the config chooses."""
        assert isinstance(config, Mask2FormerConfig)
        return config.task

    @classmethod
    def supervision_of(cls, config: ModelConfig) -> frozenset[str]:
        """Boxes teach the masks of objects, not those of stuff."""
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
        if torch.is_autocast_enabled(images.device.type):  # half of the digits are too few to say where to look
            with torch.autocast(images.device.type, enabled=False):
                features, levels = self.pixel_decoder([stage.float() for stage in stages])
        else:
            features, levels = self.pixel_decoder(stages)
        if frequencies := self.config.position_frequencies:
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
        config = self.config
        logits, embeddings = raw.logits[:, layer], raw.embeddings[:, layer]
        labels = torch.full(logits.shape[:2], config.num_classes, device=logits.device)
        masks, wanted, boxed = [], [], []
        for b, truth in enumerate(truths):
            pairs = self.match(logits[b], embeddings[b], raw.features[b], truth)
            labels[b, pairs.queries] = truth.labels[pairs.objects]
            if not truth.counted.any():
                labels[b] = -1  # nothing is known about the image
            known = truth.known[pairs.objects]
            found = torch.einsum("nc,chw->nhw", embeddings[b, pairs.queries], raw.features[b])
            masks.append(found[known])
            wanted.append(truth.masks[pairs.objects[known]])
            boxes = truth.boxes[pairs.objects[~known]]
            boxed.append((found[~known], boxes, torch.full((len(boxes),), b, device=boxes.device)))
        mask, dice = self.mask_terms(masks, wanted, [t.counted for t in truths])
        found, boxes, image = (torch.cat(parts) for parts in zip(*boxed, strict=True))
        from_boxes = mask_loss_from_boxes(found, boxes, image, batch, config.box_only)
        count = normaliser(sum(len(t.labels) for t in truths))
        nothing = raw.features.sum() * 0 + embeddings.sum() * 0
        return {
            "classification": config.class_weight * self.class_loss(logits, labels),
            "mask": config.mask_weight * mask.sum() / count + nothing,
            "mask/dice": config.dice_weight * dice.sum() / count,
            "mask/projection": from_boxes.projection.sum() / count,
            "mask/pairwise": from_boxes.pairwise,
        }

    def class_loss(self, logits: Float[Tensor, "b q d"], labels: Int[Tensor, "b q"]) -> Float[Tensor, ""]:
        """Weighted mean of the cross entropy over the queries whose label is not -1."""
        weights = logits.new_ones(logits.shape[2])
        weights[-1] = self.config.no_object
        share = (weights[labels] * (labels >= 0)).sum()
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights, ignore_index=-1, reduction="sum")
        return total / normaliser(share, 1e-6)

    def mask_terms(
        self,
        masks: Sequence[Float[Tensor, "_ h w"]],
        wanted: Sequence[Float[Tensor, "_ y x"]],
        counted: Sequence[Bool[Tensor, "y x"]],
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Cross entropy and dice of every image's mask logits at points, most of them where these are near zero."""
        maps = torch.cat(list(masks))[:, None]
        if len(maps) == 0:
            return maps.sum((1, 2, 3)), maps.sum((1, 2, 3))
        with torch.no_grad():
            points = self.uncertain_points(maps)
            places = points.split([len(m) for m in masks])
            truth = sample_points(torch.cat(list(wanted))[:, None], points)[:, 0]  # (N, P)
            weight = torch.cat([at_points(c, p) for c, p in zip(counted, places, strict=True)])
        logits = sample_points(maps, points)[:, 0]  # (N, P)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        soft, truth = logits.sigmoid() * weight, truth * weight
        dice = 1 - (2 * (soft * truth).sum(1) + 1) / (soft.sum(1) + truth.sum(1) + 1)
        return (entropy * weight).sum(1) / weight.sum(1).clamp(min=1), dice

    def uncertain_points(self, masks: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n p 2"]:
        """Of many random points those whose logits are nearest to zero, and some random ones (PointRend)."""
        config = self.config
        many = torch.rand(len(masks), int(config.points * config.oversample), 2).to(masks.device)
        kept = int(config.points * config.uncertain)
        best = (-sample_points(masks, many)[:, 0].abs()).topk(kept).indices
        others = torch.rand(len(masks), config.points - kept, 2).to(masks.device)
        return torch.cat([many.gather(1, best[..., None].expand(-1, -1, 2)), others], 1)

    # matching --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def match(
        self,
        logits: Float[Tensor, "q d"],
        embeddings: Float[Tensor, "q c"],
        features: Float[Tensor, "c h w"],
        truth: Truth,
    ) -> Matches:
        """Pairs of queries and objects with the least total cost; each is in one pair at most."""
        config = self.config
        cost = -config.class_weight * logits.softmax(1)[:, truth.labels]  # (Q, N)
        if truth.known.any():
            mask, dice = self.mask_costs(embeddings, features, truth)
            cost[:, truth.known] += config.mask_weight * mask + config.dice_weight * dice
        if not truth.known.all():
            # two terms of the size of dice, with the weight of both terms of a known mask
            cost[:, ~truth.known] += (
                (config.mask_weight + config.dice_weight) / 2 * box_costs(embeddings, features, truth)
            )
        pairs = linear_sum_assignment(np.nan_to_num(cost.cpu().numpy(), nan=1e9, posinf=1e9, neginf=-1e9))
        return Matches(*(torch.from_numpy(side).to(logits.device) for side in pairs))

    def mask_costs(
        self, embeddings: Float[Tensor, "q c"], features: Float[Tensor, "c h w"], truth: Truth
    ) -> tuple[Float[Tensor, "q n"], Float[Tensor, "q n"]]:
        """Cross entropy and dice of every query with every known mask, at random points that all of them share."""
        points = torch.rand(1, self.config.points, 2).to(features.device)
        ours = embeddings @ sample_points(features[None], points)[0]  # (Q, P): the masks are linear in the features
        weight = at_points(truth.counted, points)  # (1, P)
        wanted = sample_points(truth.masks[None, truth.known], points)[0] * weight  # (N, P)
        entropy = F.softplus(-ours) @ wanted.T + F.softplus(ours) @ (weight - wanted).T
        soft = ours.sigmoid() * weight
        dice = 1 - (2 * soft @ wanted.T + 1) / (soft.sum(1)[:, None] + wanted.sum(1) + 1)
        return entropy / weight.sum().clamp(min=1), dice

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: Mask2FormerRaw) -> ObjectMasks[Tensor] | ClassLogits[Tensor] | SegmentQueries[Tensor]:
        """What the queries say after the last layer, as the task wants it."""
        read = {"instance": self.objects, "semantic": self.label_map, "panoptic": self.segments}
        chances = raw.logits[:, -1].float().softmax(2)  # (B, Q, K + 1)
        masks = torch.einsum("bqc,bchw->bqhw", raw.embeddings[:, -1].float(), raw.features.float())
        return read[self.config.task](chances, masks)

    def objects(self, chances: Float[Tensor, "b q d"], masks: Float[Tensor, "b q h w"]) -> ObjectMasks[Tensor]:
        """The best pairs of a query and a class, rated by how sure the masks are inside."""
        classes = chances.shape[2] - 1
        scores = chances[..., :-1].flatten(1)
        scores, order = scores.topk(min(self.config.detections, scores.shape[1]))  # (B, k)
        soft, inside = masks.sigmoid(), masks > 0
        sure = (soft * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)  # (B, Q)
        scores, best = (scores * sure.gather(1, order // classes)).sort(descending=True)
        order = order.gather(1, best)
        query = (torch.arange(len(masks), device=masks.device)[:, None], order // classes)
        boxes = mask_math.dense_boxes(inside[query].flatten(0, 1)).unflatten(0, order.shape)
        height, width = masks.shape[2:]
        boxes = boxes / boxes.new_tensor([width, height, width, height])
        return ObjectMasks(boxes, order % classes, scores, soft[query], scores)

    def label_map(self, chances: Float[Tensor, "b q d"], masks: Float[Tensor, "b q h w"]) -> ClassLogits[Tensor]:
        """For each class, the sum over the queries of its probability times that of the mask."""
        return ClassLogits(torch.einsum("bqk,bqhw->bkhw", chances[..., :-1], masks.sigmoid()))

    def segments(self, chances: Float[Tensor, "b q d"], masks: Float[Tensor, "b q h w"]) -> SegmentQueries[Tensor]:
        """Every query with its best class."""
        scores, labels = chances.max(2)
        return SegmentQueries(masks, labels, scores)


def at_points(counted: Bool[Tensor, "h w"], points: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p"]:
    """1 at the points that count, 0 at the others."""
    if len(points) == 0 or counted.all():
        return points.new_ones(points.shape[:2])
    return (sample_points(counted[None, None].float(), points.flatten(0, 1)[None]) > 0.5).float().view(points.shape[:2])


def box_costs(embeddings: Float[Tensor, "q c"], features: Float[Tensor, "c h w"], truth: Truth) -> Float[Tensor, "q n"]:
    """How badly the masks of the queries fill the boxes of unknown masks, seen from above and from the side."""
    masks = torch.einsum("qc,chw->qhw", embeddings, features)
    size, grid = (truth.counted.shape[0], truth.counted.shape[1]), (masks.shape[1], masks.shape[2])
    inside = box_cells(truth.boxes[~truth.known], size, grid)  # (N, h, w)
    total = masks.new_zeros(len(masks), len(inside))
    for axis in (1, 2):
        ours, side = masks.amax(axis).sigmoid(), inside.any(axis).float()  # (Q, n), (N, n)
        area = ours.square().sum(1)[:, None] + side.sum(1)
        total = total + 1 - 2 * ours @ side.T / (area + 1e-5)
    return total
