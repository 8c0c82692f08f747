"""EVA as a detector: Mask R-CNN and Cascade Mask R-CNN on a plain vision transformer.

Fang, Wang, Xie, Sun, Wu, Wang, Huang, Wang, Cao: "EVA: Exploring the Limits of Masked Visual Representation Learning
at Scale" (CVPR 2023), whose network is the detector of ViTDet (Li et al., ECCV 2022). What is new in EVA is how the
transformer learnt, from images without labels: `maskkit pretrain` does that, and any model of the package can have
its result as backbone. In the cascade (Cai, Vasconcelos, CVPR 2018) each stage refines the boxes of the one before, and
is trained on those that fit their object better; an answer has the mean of the stages' scores.

==============  ========================  ===================================================================
`EvaRaw`        shape (1280 x 1280)       meaning
==============  ========================  ===================================================================
...                                       the fields of `MaskRaw`: the first stage, and the masks
later_rois      2 times (N, 5)            image and box of each region of the later stages
later_matched   2 times (N)               index of its object in its image, or -1
later_logits    2 times (N, 81)           classes, background last
later_deltas    2 times (N, 80, 4)        box codes, the same for every class in a cascade
==============  ========================  ===================================================================

Differences from the official code, all deliberate: those of `maskkit.models.mask_rcnn`; regions without area stay, as
background, where the official code drops them between stages; every block learns at the same rate, where the official
recipe gives lower ones to earlier blocks.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from maskkit.decode import InBoxes
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry import masks as mask_math
from maskkit.geometry.nms import soft_nms
from maskkit.models.base import Model
from maskkit.nn.mask_stage import MaskRaw, MaskStage, MaskStageConfig
from maskkit.nn.roi import BOX_WEIGHTS, MaskHead, RankedBoxes, Sampled, box_loss, keep, refine, reordered
from maskkit.nn.rpn import NEITHER, Weights, decode, match_boxes
from maskkit.nn.two_stage import BINS, BoxRaw
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class EvaConfig(MaskStageConfig):
    """Knobs of the detector; its backbone has its own, ``vit``."""

    stages: tuple[float, ...] = (0.5, 0.6, 0.7)
    """Least IoU of a positive region in each stage; a single one makes it Mask R-CNN."""
    head_convs: int = 4
    """Convolutions of box and mask head."""
    mask_bins: int = 14
    """Side of the grid of features that the mask head reads; masks have twice as many cells."""
    soft_nms: bool = True
    """Whether copies lose score in proportion to their overlap (linear Soft-NMS) instead of being dropped."""
    maskness: bool = True
    """Whether masks are ranked by their score times the mean probability of their foreground."""


class EvaRaw(NamedTuple):
    """What the stages say, with masks: the fields of `MaskRaw`, and the later stages of a cascade."""

    objectness: Float[Tensor, "b a"]
    anchor_deltas: Float[Tensor, "b a 4"]
    anchors: Float[Tensor, "a 4"]
    rois: Float[Tensor, "n 5"]
    matched: Int[Tensor, "n"]
    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n k 4"]
    extents: Float[Tensor, "b 2"]
    size: Float[Tensor, "2"]
    mask_rois: Float[Tensor, "m 5"]
    mask_labels: Int[Tensor, "m"]
    mask_scores: Float[Tensor, "m"]
    mask_logits: Float[Tensor, "m s s"]
    later_rois: tuple[Float[Tensor, "_ 5"], ...]
    later_matched: tuple[Int[Tensor, "_"], ...]
    later_logits: tuple[Float[Tensor, "_ c"], ...]
    later_deltas: tuple[Float[Tensor, "_ k 4"], ...]


class Stage(NamedTuple):
    """One stage of the cascade: its regions and what its head says of them."""

    rois: Float[Tensor, "n 5"]
    matched: Int[Tensor, "n"]
    logits: Float[Tensor, "n c"]
    deltas: Float[Tensor, "n k 4"]


def conv_norm(channels: int, width: int) -> nn.Sequential:
    """A 3x3 convolution and layer norm over the channels of each place."""
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, LayerNorm2d(width))


class Coarser(nn.Module):
    """Adds a level to the backbone's pyramid: every second place of the coarsest one."""

    def forward(self, levels: list[Float[Tensor, "b c _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """All levels, fine to coarse."""
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


class ConvBoxHead(nn.Module):
    """Convolutions and one layer, then a class, the last of which is background, and a box code.

    The code is for every class the same in a cascade of ``stages``, which passes an equal ``stages``th of the gradient
    on to the features (detectron2).
    """

    def __init__(self, channels: int, convs: int, width: int, num_classes: int, stages: int) -> None:
        super().__init__()
        self.num_classes, self.share = num_classes, 1 / stages
        self.convs = nn.ModuleList(conv_norm(channels, channels) for _ in range(convs))
        self.fc = nn.Linear(channels * BINS * BINS, width)
        self.label = nn.Linear(width, num_classes + 1)
        self.deltas = nn.Linear(width, 4 * (num_classes if stages == 1 else 1))
        nn.init.kaiming_uniform_(self.fc.weight, a=1)
        nn.init.normal_(self.label.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc, self.label, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "n c s s"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k 4"]]:
        """Class logits (N, K + 1) and codes (N, K, 4)."""
        y = pooled * self.share + pooled.detach() * (1 - self.share)
        for conv in self.convs:
            y = F.relu(conv(y))
        y = F.relu(self.fc(y.flatten(1)))
        return self.label(y), self.deltas(y).unflatten(1, (-1, 4)).expand(-1, self.num_classes, -1)


def box_weights(stage: int) -> Weights:
    """Of the box code of a stage: the corrections become smaller from one to the next."""
    x, y, w, h = BOX_WEIGHTS
    return ((stage + 1) * x, (stage + 1) * y, (stage + 1) * w, (stage + 1) * h)


class Eva(MaskStage, Model[EvaRaw, ObjectMasks[Tensor]]):
    """A (cascade of) box heads and a mask head on the simple pyramid of a plain transformer."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks", "boxes"})
    decoder = InBoxes()
    config: EvaConfig

    def __init__(self, config: EvaConfig) -> None:
        super().__init__(config)
        stages, width, classes = len(config.stages), config.width, config.num_classes
        self.fpn = Coarser()
        second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(second.weight, std=0.01)
        nn.init.zeros_(second.bias)  # type: ignore[arg-type]
        self.rpn.conv = nn.Sequential(self.rpn.conv, nn.ReLU(), second)  # type: ignore[assignment]
        heads = [ConvBoxHead(width, config.head_convs, config.box_width, classes, stages) for _ in range(stages)]
        self.box_head, self.later_heads = heads[0], nn.ModuleList(heads[1:])
        self.mask_head = MaskHead(width, width, 0, classes)
        self.mask_head.convs.extend(conv_norm(width, width) for _ in range(config.head_convs))

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> EvaRaw:
        """Raw outputs of normalised images; with ``targets`` for a sample of the regions, to train on."""
        levels, raw = self.boxes(images, sizes, targets)
        stages = [Stage(raw.rois, raw.matched, raw.class_logits, raw.box_deltas)]
        for head in self.later_heads:
            regions = self.refined(stages, raw.extents, targets)
            stages.append(Stage(*regions, *head(self.pool(levels, regions.rois, BINS))))
        regions = self.mask_regions(raw if targets is not None else joined(raw, stages), targets)
        bins = self.config.mask_bins
        masks = self.draw(regions, lambda rois, labels: self.mask_head(self.pool(levels, rois, bins), labels))
        later = zip(*stages[1:], strict=True) if stages[1:] else [()] * len(Stage._fields)
        return EvaRaw(*raw, *regions, masks, *map(tuple, later))

    @torch.no_grad()
    def refined(self, stages: list[Stage], extents: Float[Tensor, "b 2"], targets: list[Target] | None) -> Sampled:
        """The regions of the next stage: those of the last one with their boxes corrected, and matched anew."""
        last = stages[-1]
        owner = last.rois[:, 0].long()
        boxes = decode(last.deltas[:, 0].float(), last.rois[:, 1:], box_weights(len(stages) - 1))
        boxes = torch.minimum(boxes.clamp(min=0), extents.repeat(1, 2)[owner])
        rois = torch.cat([last.rois[:, :1], boxes], 1)
        if targets is None:
            return Sampled(rois, last.matched)
        iou, matched = self.config.stages[len(stages)], torch.empty_like(last.matched)
        for b, target in enumerate(targets):
            mine = owner == b
            matched[mine] = match_boxes(boxes[mine], target, iou, iou, crowd_overlap=self.config.crowd_overlap)
        certain = matched != NEITHER
        return Sampled(rois[certain], matched[certain])

    def detect(self, raw: BoxRaw) -> RankedBoxes:
        """The final boxes, of the mean scores and of the last stage's boxes."""
        config, batch = self.config, (len(raw.extents), -1)
        found = refine(
            raw.class_logits.unflatten(0, batch),
            raw.box_deltas.unflatten(0, batch),
            raw.rois[:, 1:].unflatten(0, batch),
            raw.extents,
            min_score=config.min_score,
            count=config.candidates,
            weights=box_weights(len(config.stages) - 1),
        )
        if config.soft_nms:
            return reordered(found, *soft_nms(*found, config.nms_threshold, config.detections))
        return keep(found, config.nms_threshold, config.detections)

    def loss_terms(self, raw: EvaRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of Mask R-CNN, and class and box of each later stage."""
        first = MaskRaw(*(t.float() if t.is_floating_point() else t for t in raw[: len(MaskRaw._fields)]))  # type: ignore[union-attr]
        terms = self.box_terms(BoxRaw(*first[: len(BoxRaw._fields)]), batch)
        later = zip(raw.later_rois, raw.later_matched, raw.later_logits, raw.later_deltas, strict=True)
        for i, (rois, matched, logits, deltas) in enumerate(later, 1):
            sampled, beta = Sampled(rois, matched), self.config.smooth_l1
            wrong = box_loss(logits.float(), deltas.float(), sampled, batch.targets, beta, box_weights(i))
            terms |= {f"classification/stage{i + 1}": wrong.label, f"box/stage{i + 1}": wrong.box}
        return {**terms, **self.mask_terms(first, batch)}

    def select(self, raw: EvaRaw) -> ObjectMasks[Tensor]:
        """The final boxes and their masks."""
        boxes, labels, scores, masks, ranks = self.found(MaskRaw(*raw[: len(MaskRaw._fields)]))  # type: ignore[arg-type]
        if self.config.maskness:
            ranks = ranks * mask_math.maskness(masks)
        return ObjectMasks(boxes, labels, scores, masks, ranks)


def joined(raw: BoxRaw, stages: list[Stage]) -> BoxRaw:
    """What a cascade says in the end: the mean of the scores, as logits, on the boxes of the last stage."""
    scores = torch.stack([stage.logits.float().softmax(1) for stage in stages]).mean(0)
    last = stages[-1]
    return raw._replace(rois=last.rois, class_logits=scores.clamp(min=1e-30).log(), box_deltas=last.deltas)
