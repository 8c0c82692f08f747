"""Pixel embeddings: instances as clusters in a space that the network learns with the discriminative loss.

De Brabandere, Neven, Van Gool: "Semantic Instance Segmentation with a Discriminative Loss Function" (2017).

One branch says which pixels belong to objects, another gives every pixel a point in a space of few dimensions. The loss
pulls the points of one object to their mean until they are nearer than ``pull_margin``, and pushes the means of
different objects apart until they are further than twice ``push_margin``; so whatever their number, the objects are
found by clustering (`maskkit.decode.clustering.cluster`).

==========  ==========================  ===============================================================
`Raw`       shape (800 x 1344, COCO)    meaning
==========  ==========================  ===============================================================
foreground  (B, 1, 200, 336)            logits: part of any object
classes     (B, 80, 200, 336)           class logits of the objects' pixels; none where there is one class
embeddings  (B, 8, 200, 336)            a point per cell
==========  ==========================  ===============================================================

A convolution sees the same surroundings around each of many equal cells and would give them all the same point. So the
first two dimensions are offsets, to which the place of the pixel in units of ``unit`` pixels is added (Novotny et al.:
"Semi-convolutional Operators for Instance Segmentation", ECCV 2018); ``unit`` 0 is the embedding of the paper.

Other differences from the paper: a feature pyramid in place of its ResNet-38; objects are told from
background by a separate map, and the pixels of an instance vote for its class, so that one clustering serves all
classes. The paper gives no scores: ours is the mean foreground probability times the share of the votes.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import Embeddings
from maskkit.decode.outputs import EmbeddingMaps
from maskkit.geometry.resample_tensors import resize
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.fpn import Fpn
from maskkit.nn.losses import normaliser
from maskkit.nn.pixels import UNKNOWN, class_loss, likeliest, object_maps
from maskkit.ranges import Count, Positive, Share, Weight
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class EmbeddingConfig(BackboneModelConfig):
    """Knobs of pixel embeddings; margins and weights are the paper's."""

    width: Count = 256
    """Channels of the pyramid and of the branches."""
    dimensions: Count = 8
    """Of the embedding space."""
    unit: Weight = 16.0
    """Input pixels that are one unit of the first two dimensions; 0 leaves the place of a pixel out."""
    pull_margin: Weight = 0.5
    """Distance to the mean of its object at which a pixel is left alone (delta_v)."""
    push_margin: Weight = 1.5
    """Half the distance between two means at which they are left alone (delta_d)."""
    pull_weight: Weight = 1.0
    push_weight: Weight = 1.0
    norm_weight: Weight = 0.001
    foreground_weight: Weight = 1.0
    class_weight: Weight = 1.0
    decode_stride: Count = 2
    """Input pixels per cell of the grid on which embeddings are clustered."""
    bandwidth: Positive = 1.5
    """Radius of the mean shift; the push margin, by which other objects are twice as far."""
    min_area: Weight = 16.0
    """Input pixels of the smallest instance."""
    min_score: Share = 0.0
    """Least mean probability of an instance's pixels."""


class EmbeddingRaw(NamedTuple):
    """What `Embedding.forward` gives; the module's docstring explains the fields."""

    foreground: Float[Tensor, "b 1 h w"]
    classes: Float[Tensor, "b k h w"]
    embeddings: Float[Tensor, "b d h w"]


class Discriminative(NamedTuple):
    """The terms of the loss of one image, equations 1 to 3 of the paper, not weighted."""

    pull: Float[Tensor, ""]
    push: Float[Tensor, ""]
    norm: Float[Tensor, ""]


class Branch(nn.Sequential):
    """Two 3x3 convolutions with batch norm, and the prediction."""

    def __init__(self, width: int, out: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Conv2d(width, out, 1))


class Embedding(Model[EmbeddingRaw, EmbeddingMaps[Tensor]]):
    """Semantic and embedding branches on one feature pyramid."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    config: EmbeddingConfig

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Embeddings(config.bandwidth, config.min_area / config.decode_stride**2, config.min_score)
        self.backbone = Backbone.of(config.backbone, (4, 8, 16, 32))
        self.fpn = Fpn(list(self.backbone.channels.values()), config.width, extra=0)
        classes = config.num_classes if config.num_classes > 1 else 0
        self.semantic = Branch(config.width, 1 + classes)
        self.embedding = Branch(config.width, config.dimensions)
        for module in (*self.fpn.modules(), *self.semantic.modules(), *self.embedding.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for branch in (self.semantic, self.embedding):
            nn.init.normal_(branch[-1].weight, std=0.01)  # type: ignore[arg-type]

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> EmbeddingRaw:
        """Raw outputs of normalised images."""
        finest, *coarser = self.fpn(list(self.backbone(images).values()))
        size = (finest.shape[2], finest.shape[3])
        merged = finest + sum(resize(level, size) for level in coarser)  # (B, w, H/4, W/4)
        semantic, embeddings = self.semantic(merged), self.embedding(merged)
        if self.config.unit:
            embeddings = embeddings.float() + self.places(merged, images)
        return EmbeddingRaw(semantic[:, :1], semantic[:, 1:], embeddings)

    def places(self, grid: Float[Tensor, "b _ h w"], images: Float[Tensor, "b 3 _ _"]) -> Float[Tensor, "d h w"]:
        """What is added to the embeddings: x and y of each cell's centre in units, zeros in the other dimensions."""
        y, x = (
            (torch.arange(cells, device=grid.device) + 0.5) * (pixels / cells / self.config.unit)
            for cells, pixels in zip(grid.shape[2:], images.shape[2:], strict=True)
        )
        plane = torch.stack(torch.meshgrid(x, y, indexing="xy"))  # (2, h, w)
        return F.pad(plane, [0, 0, 0, 0, 0, self.config.dimensions - 2])

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: EmbeddingRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of foreground and classes, and the three terms of the discriminative loss."""
        config = self.config
        owners = object_maps(batch)  # (B, H, W)
        size = (owners.shape[1], owners.shape[2])
        foreground = resize(raw.foreground.float(), size)[:, 0]
        embeddings = resize(raw.embeddings.float(), size)
        known = owners != UNKNOWN
        pixels = F.binary_cross_entropy_with_logits(foreground, (owners >= 0).float(), reduction="none")
        terms = [
            discriminative_loss(*p, config.pull_margin, config.push_margin)
            for p in zip(embeddings, owners, strict=True)
        ]
        pull, push, norm = (torch.stack(term).mean() for term in zip(*terms, strict=True))
        losses = {
            "mask/foreground": config.foreground_weight * (pixels * known).sum() / normaliser(known.sum()),
            "mask/pull": config.pull_weight * pull,
            "mask/push": config.push_weight * push,
            "mask/norm": config.norm_weight * norm,
        }
        if config.num_classes > 1:
            losses["classification"] = config.class_weight * class_loss(raw.classes, owners, batch.targets)
        return losses

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: EmbeddingRaw) -> EmbeddingMaps[Tensor]:
        """The maps on the grid on which embeddings are clustered."""
        config = self.config
        height, width = (side * 4 // config.decode_stride for side in raw.foreground.shape[2:])
        foreground = resize(raw.foreground.float(), (height, width))[:, 0].sigmoid()
        return EmbeddingMaps(
            resize(raw.embeddings.float(), (height, width)),
            foreground,
            likeliest(raw.classes, (height, width)),
        )


def discriminative_loss(
    embeddings: Float[Tensor, "d h w"], owners: Int[Tensor, "h w"], pull_margin: float, push_margin: float
) -> Discriminative:
    """The discriminative loss of one image; pixels whose owner is negative do not count.

    With objects c of the mean m_c and their pixels x: ``pull`` is the mean over the objects of the mean over their
    pixels of ``max(|m_c - x| - pull_margin, 0)^2``, ``push`` the mean over ordered pairs of objects of
    ``max(2 push_margin - |m_a - m_b|, 0)^2``, ``norm`` the mean of ``|m_c|``.
    """
    inside = owners >= 0
    if not inside.any():
        zero = embeddings.sum() * 0
        return Discriminative(zero, zero, zero)
    points = embeddings[:, inside].T  # (P, d)
    _, owner, area = owners[inside].unique(return_inverse=True, return_counts=True)
    count = len(area)
    means = points.new_zeros(count, points.shape[1]).index_add(0, owner, points) / area[:, None]  # (C, d)
    away = (length(points - means[owner]) - pull_margin).clamp(min=0).square() / area[owner]
    near = (2 * push_margin - length(means[:, None] - means)).clamp(min=0).square()  # (C, C)
    near = near * (1 - torch.eye(count, device=near.device))
    return Discriminative(away.sum() / count, near.sum() / max(count * (count - 1), 1), length(means).mean())


def length(vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """Euclidean length, with a gradient of zero instead of NaN where it is zero."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()
