"""NanoInst: NanoDet-Plus with masks by dynamic filters, a method of this project and of no paper.

NanoDet-Plus (RangiLyu/nanodet, 2021) finds the objects. From the tower of its head, every location also predicts the
weights of a tiny network, which draws the mask of its object on eight maps of the image, as in CondInst (Tian, Shen,
Chen, ECCV 2020). Unlike there, the network is told the place of a cell in the predicted box and not its distance to
the location, the maps have stride 4, and masks end near the box. As in SOLO, the score of a mask is that of its box
times the mean probability of its cells. A trained detector can be kept as it is: the mask side reads it and does not
change it.

==================  =========================  =========================================================================
`Raw`               shape (416 x 416), finest  meaning
==================  =========================  =========================================================================
detector.logits     4 x (B, 80, 52, 52)        class logits, whose scores estimate the IoU of the box too
detector.sides      4 x (B, 32, 52, 52)        logits of the distances to left, top, right, bottom, 8 bins each
detector.extra      4 x (B, 169, 52, 52)       parameters of the dynamic heads
features            (B, 8, 104, 104)           what every dynamic head reads
==================  =========================  =========================================================================

Masks of objects of which only the box is known are learnt from the box (`maskkit.nn.losses`).
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import BoxOnly, ModelConfig
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.nn.backbones.nanodet import GhostPan
from maskkit.nn.backbones.shufflenet import ShuffleNetV2
from maskkit.nn.blocks import image_of
from maskkit.nn.box_masks import BoxMaskConfig, DynamicHeads, FineMaskBranch, box_masks
from maskkit.nn.dynamic_mask import terms_of_logits
from maskkit.nn.fcos import flatten, pick, require_whole_cells
from maskkit.nn.fcos_targets import Positives
from maskkit.nn.given_boxes import certainty, most_alike
from maskkit.nn.losses import in_fp32
from maskkit.nn.nanodet import (
    STRIDES,
    NanoDetConfig,
    NanoDetHead,
    NanoDetRaw,
    all_boxes,
    boxes_at,
    detect,
    extent,
    priors,
)
from maskkit.nn.nanodet_loss import nanodet_loss
from maskkit.ranges import Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class NanoInstConfig(ModelConfig):
    """Knobs of NanoInst; the defaults are those of the built-in model."""

    detector: NanoDetConfig = field(default_factory=NanoDetConfig)
    masks: BoxMaskConfig = field(default_factory=BoxMaskConfig)
    box_only: BoxOnly = field(default_factory=BoxOnly)
    mask_weight: Weight = 2.0
    masks_to_train: Whole = 200
    """Positives of a batch that enter the mask loss, chosen at random."""


class NanoInstRaw(NamedTuple):
    """Detector and mask features."""

    detector: NanoDetRaw
    """`NanoDetRaw.extra` are the parameters of each location's dynamic head."""
    features: Float[Tensor, "b c h w"]
    """What all dynamic heads read, on the grid of stride 4."""


class NanoInst(Model[NanoInstRaw, ObjectMasks[Tensor]]):
    """NanoDet-Plus with a mask branch and a dynamic mask head for every object."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    draws_in_boxes = True
    decoder = OverInput(offset=0.5)
    config: NanoInstConfig

    def __init__(self, config: NanoInstConfig) -> None:
        super().__init__()
        self.config = config
        detector, masks = config.detector, config.masks
        self.backbone = ShuffleNetV2(detector.stage_widths, detector.stage_units, detector.batch_norm)
        self.fpn = GhostPan(detector.stage_widths, detector.width, detector.batch_norm)
        self.head = NanoDetHead(detector, config.num_classes)
        self.dynamic = DynamicHeads(masks, detector.width, len(STRIDES))
        self.mask_branch = FineMaskBranch(masks, self.backbone.channels[4], detector.width)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> NanoInstRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        features = self.backbone(images)
        levels = self.fpn([features[s] for s in (8, 16, 32)])
        towers = self.head.features(levels)
        found = self.head.predict(towers, self.dynamic(towers))
        return NanoInstRaw(found, self.mask_branch(features[4], levels[:3]))

    def loss_terms(self, raw: NanoInstRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The detector's terms, dice of known masks, BoxInst's terms of the others."""
        raw = in_fp32(raw)
        losses, positives = nanodet_loss(raw.detector, batch, self.config.detector)
        return losses | self.mask_losses(raw, positives, batch)

    def mask_losses(self, raw: NanoInstRaw, positives: Positives, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of the masks alone, of an fp32 ``raw``."""
        chosen = self._some(positives)
        where = chosen.image, chosen.location
        parameters = pick(raw.detector.extra, *where)
        boxes = boxes_at(raw.detector, *where).detach()
        drawn = [
            box_masks(parameters[mine], boxes[mine], features, self.config.masks)
            for b, features in enumerate(raw.features)
            for mine in [chosen.image == b]
        ]
        terms = terms_of_logits(drawn, chosen, batch, self.config.box_only)
        return {name: self.config.mask_weight * term for name, term in terms.items()}

    def _some(self, positives: Positives) -> Positives:
        """At most ``masks_to_train`` of the positives, at random."""
        count, found = self.config.masks_to_train, len(positives.label)
        if found <= count:
            return positives
        kept = torch.randperm(found, device="cpu")[:count].sort().values.to(positives.label.device)
        return Positives(*(column[kept] for column in positives))

    def select(self, raw: NanoInstRaw) -> ObjectMasks[Tensor]:
        """NMS of boxes; the masks lie on a grid of a quarter of the input. Rows of padding have none."""
        raw = in_fp32(raw)
        found = detect(raw.detector, self.config.detector)
        rows = found.scores.shape[1]
        drawn = rows if torch.compiler.is_exporting() else int((found.scores > 0).sum(1).amax())
        masks = box_masks(found.extra[:, :drawn], found.boxes[:, :drawn], raw.features, self.config.masks).sigmoid()
        masks = F.pad(masks, [0, 0, 0, 0, 0, rows - drawn])
        sure = found.scores * certainty(masks)
        return ObjectMasks(found.boxes / extent(raw.detector), found.labels, found.scores, masks, sure)

    def select_in(self, raw: NanoInstRaw, boxes: Float[Tensor, "b n 4"]) -> ObjectMasks[Tensor]:
        """Masks in given boxes: each is drawn by the location whose own box is most like it, whatever its class."""
        raw = in_fp32(raw)
        whole = extent(raw.detector)
        given = boxes * whole
        own = torch.minimum(all_boxes(raw.detector, priors(raw.detector)).clamp(min=0), whole)  # (B, P, 4)
        sure = flatten(raw.detector.logits).amax(2).sigmoid()  # (B, P)
        location = most_alike(own, sure, given)  # (B, N)
        parameters = pick(raw.detector.extra, image_of(location), location.flatten()).unflatten(0, location.shape)
        masks = box_masks(parameters, given, raw.features, self.config.masks).sigmoid()
        numbers = torch.arange(boxes.shape[1], device=boxes.device).expand(location.shape)
        return ObjectMasks(boxes, numbers, torch.ones_like(masks[..., 0, 0]), masks, certainty(masks))
