"""EPS: pixels from image tags and saliency.

Lee, Lee, Lee, Shim: "Railroad is not a Train: Saliency as Pseudo-pixel Supervision for Weakly Supervised Semantic
Segmentation" (CVPR 2021).

A classification network ends in a localisation map for each class and one for the background. Their means over the
image are learnt from its tags, which say *what* there is; a mixture of the maps has to equal a saliency map, which
says *where* something ends. A class whose map hardly meets the saliency counts as background there: the rails, which
come with every train. With the tags of an image the maps become a pseudo mask, from which any semantic model learns
(`maskkit.infer.pseudo_labels`, `maskkit pseudo-masks`).

=========  ======================  ==========================================================================
`Raw`      shape (448 x 448, VOC)  meaning
=========  ======================  ==========================================================================
maps       (B, 21, 56, 56)         logits of the classes and, last, of the background; the baseline has 20
=========  ======================  ==========================================================================

Class 0 of the data is the background. ``background_map=False`` is the paper's baseline, plain class activation maps
learnt from tags alone. Differences from the official code: without tags, in evaluation, an image shows the classes
that the network finds likelier than not; the colour changes of the training are SSD's; images without a saliency map
or without tags have no part in that term.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig, DataConfig
from maskkit.data.label_map import BACKGROUND_NAME
from maskkit.decode import TaggedLabelMap
from maskkit.decode.outputs import TagMaps
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.resnet38 import Resnet38
from maskkit.nn.dilation import dilate
from maskkit.prediction import Categories
from maskkit.ranges import Count, Share
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class EpsConfig(BackboneModelConfig):
    """Knobs of EPS. ``num_classes`` counts the background; ``backbone`` may be ``resnet38`` too."""

    background_map: bool = True
    """Whether the background has a map and saliency is learnt from; without, this is the baseline, plain CAM."""
    tau: Share = 0.4
    """Share of a class's map that has to be salient for the class to count as foreground."""
    mix: Share = 0.5
    """Share of the foreground's maps in the estimated saliency (lambda); the rest is what the background leaves."""
    output_stride: Count = 8
    """Input pixels per cell of the maps, 8 or 16; ResNet-38 has 8."""
    threshold: Share = 0.2
    """Score of the background beside the classes, whose best cell has 1, where the network names pixels by itself."""


class EpsRaw(NamedTuple):
    """What `Eps.forward` gives; the module's docstring explains the field."""

    maps: Float[Tensor, "b k h w"]


class Estimate(NamedTuple):
    """The saliency that localisation maps amount to, and what it is mixed of."""

    foreground: Float[Tensor, "b h w"]
    """Probability of a tagged class that counts as foreground."""
    not_background: Float[Tensor, "b h w"]
    """One less the probability of the background and of tagged classes that count as such."""
    saliency: Float[Tensor, "b h w"]
    overlap: Float[Tensor, "b c"]
    """Share of each class's map that is salient."""


class Eps(Model[EpsRaw, TagMaps[Tensor]]):
    """EPS, and its baseline."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    supervision: ClassVar[frozenset[str]] = frozenset({"tags"})
    config: EpsConfig

    def __init__(self, config: EpsConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = TaggedLabelMap(config.threshold)
        self.backbone: Backbone | Resnet38
        if config.backbone.name == "resnet38":
            self.backbone = Resnet38(config.backbone.norm, config.backbone.frozen_stride)
        else:
            self.backbone = dilate(Backbone.of(config.backbone, (32,)), config.output_stride)
        (channels,) = self.backbone.channels.values()
        self.classes = config.num_classes - 1
        self.dropout = nn.Dropout2d(0.0 if config.background_map else 0.5)
        self.score = nn.Conv2d(channels, self.classes + config.background_map, 1, bias=False)
        nn.init.xavier_uniform_(self.score.weight)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> EpsRaw:
        """Raw outputs of normalised images."""
        (features,) = self.backbone(images).values()  # (B, C, H/8, W/8)
        return EpsRaw(self.score(self.dropout(features)))

    def why_not(self, data: DataConfig, categories: Categories) -> str | None:
        """Why the model cannot learn from such data, None when it can."""
        if data.labels != "tags":
            return "learns from image tags and from nothing else; say so: --labels tags"
        if categories.names[0] != BACKGROUND_NAME or len(categories) < 2:
            return (
                f"needs pixels of no class: the first class has to be {BACKGROUND_NAME!r}, not {categories.names[0]!r}"
            )
        if self.config.background_map == (data.saliency is not None):
            return None
        if self.config.background_map:
            return "learns from saliency maps too: --data.saliency FOLDER; maskkit pseudo-masks can make them"
        return "learns from saliency only with a map of the background; leave --data.saliency out"

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: EpsRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Soft margin of the image logits against the tags; squared error of the estimated saliency."""
        maps = raw.maps.float()
        zero = maps.sum() * 0
        losses = {"classification": zero} | ({"semantic/saliency": zero} if self.config.background_map else {})
        told = [i for i, target in enumerate(batch.targets) if target.tags is not None]
        if not told:
            return losses
        tags = torch.stack([t.tags[1:] for t in batch.targets if t.tags is not None])  # (T, C), no background
        losses["classification"] = F.multilabel_soft_margin_loss(self.image_logits(raw)[told], tags.float())
        shown = [k for k, i in enumerate(told) if batch.targets[i].saliency is not None]
        if self.config.background_map and shown:
            chosen = [told[k] for k in shown]
            saliency = torch.stack([s for i in chosen if (s := batch.targets[i].saliency) is not None])
            saliency = F.interpolate(saliency[:, None], size=maps.shape[2:], mode="nearest")[:, 0]  # (S, h, w)
            estimate = self.estimate_saliency(maps[chosen], tags[shown], saliency)
            losses["semantic/saliency"] = F.mse_loss(estimate.saliency, saliency)
        return losses

    def image_logits(self, raw: EpsRaw) -> Float[Tensor, "b c"]:
        """Logits of the classes, without the background, for each image as a whole."""
        return raw.maps.float().mean((2, 3))[:, : self.classes]

    def estimate_saliency(
        self, maps: Float[Tensor, "b k h w"], tags: Bool[Tensor, "b c"], saliency: Float[Tensor, "b h w"]
    ) -> Estimate:
        """What the maps of tagged images say of their saliency, which itself only sorts the classes.

        A class is foreground when more than ``tau`` of its map, cut at 0.5, lies where the saliency is above 0.5.
        """
        chances = maps.softmax(1)
        classes = chances[:, : self.classes]
        with torch.no_grad():
            likely = classes.round()
            overlap = (likely * saliency[:, None].round()).sum((2, 3)) / (likely + 1e-4).sum((2, 3))  # (B, C)
            counts = overlap > self.config.tau
        foreground = torch.einsum("bchw,bc->bhw", classes, (tags & counts).float())
        failed = torch.einsum("bchw,bc->bhw", classes, (tags & ~counts).float())
        not_background = 1 - (chances[:, -1] + failed)
        mixed = self.config.mix * foreground + (1 - self.config.mix) * not_background
        return Estimate(foreground, not_background, mixed, overlap)

    # selection -------------------------------------------------------------------------------------------------------

    def activations(self, raw: EpsRaw) -> Float[Tensor, "b c h w"]:
        """How much each cell shows each class, 0 and up, without the background."""
        maps = raw.maps.float()
        return maps.softmax(1)[:, : self.classes] if self.config.background_map else maps.relu()

    def select(self, raw: EpsRaw) -> TagMaps[Tensor]:
        """The activations, and which classes the network itself sees in the image."""
        return TagMaps(self.activations(raw), (self.image_logits(raw) > 0).float())
