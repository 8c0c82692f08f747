"""The cascade of box heads: each stage refines the boxes of the one before.

Cai, Vasconcelos: "Cascade R-CNN: Delving into High Quality Object Detection" (CVPR 2018).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.nn.roi import BOX_WEIGHTS, RankedBoxes, Sampled, box_loss, refine
from maskkit.nn.rpn import Weights, decode
from maskkit.nn.two_stage import BINS, BoxRaw, TwoStage
from maskkit.targets import Batch, Target


class Stage(NamedTuple):
    """One stage of the cascade: its regions and what its head says of them."""

    sampled: Sampled
    class_logits: Float[Tensor, "n c"]
    box_deltas: Float[Tensor, "n k 4"]
    """Alike for every class."""


def box_weights(stage: int) -> Weights:
    """Of the box code of a stage: the corrections become smaller from one to the next."""
    x, y, w, h = BOX_WEIGHTS
    return ((stage + 1) * x, (stage + 1) * y, (stage + 1) * w, (stage + 1) * h)


class Cascade(TwoStage, ABC):
    """A `TwoStage` with a box head for each stage."""

    later_heads: nn.ModuleList
    """Those behind the first."""
    code_weights: Sequence[Weights]
    """Of the box code of each stage."""

    def stages(
        self, levels: Sequence[Float[Tensor, "b c _ _"]], boxes: BoxRaw, targets: Sequence[Target] | None
    ) -> list[Stage]:
        """All stages; ``boxes`` is what was said up to the first."""
        found = [first_stage(boxes)]
        for head in self.later_heads:
            regions = self.refined(found, boxes.extents, targets)
            found.append(Stage(regions, *head(self.pool(levels, regions.rois, BINS))))
        return found

    def refined(
        self, before: Sequence[Stage], extents: Float[Tensor, "b 2"], targets: Sequence[Target] | None
    ) -> Sampled:
        """The regions of the next stage: the boxes of the last one corrected; in training those of `resampled`."""
        rois = self._corrected(before[-1], extents, self.code_weights[len(before) - 1])
        regions = Sampled(rois, before[-1].sampled.matched)
        return regions if targets is None else self.resampled(regions, targets, len(before))

    @abstractmethod
    def resampled(self, regions: Sampled, targets: Sequence[Target], stage: int) -> Sampled:
        """What the stage of this number, from 0, is trained on, of its ``regions``, and which objects are in them."""

    @torch.no_grad()
    def _corrected(self, stage: Stage, extents: Float[Tensor, "b 2"], weights: Weights) -> Float[Tensor, "n 5"]:
        """The regions of a stage with their boxes corrected, inside of their images of (width, height) ``extents``."""
        before = stage.sampled.rois
        boxes = decode(stage.box_deltas[:, 0].float(), before[:, 1:], weights, self._regions.bounded_shrink)
        boxes = torch.minimum(boxes.clamp(min=0), extents.repeat(1, 2)[before[:, 0].long()])
        return torch.cat([before[:, :1], boxes], 1)

    def ranked(self, logits: Float[Tensor, "n c"], last: Stage, extents: Float[Tensor, "b 2"]) -> RankedBoxes:
        """The boxes of the last stage with the scores of ``logits``, before NMS."""
        given = (logits, last.box_deltas, last.sampled.rois[:, 1:])
        scores, deltas, boxes = (t.unflatten(0, (extents.shape[0], -1)) for t in given)
        return refine(scores, deltas, boxes, extents, self._regions, self.code_weights[-1])

    def head_terms(self, stage: Stage, number: int, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The losses of the classes and boxes of a stage, from 0."""
        weights, beta = self.code_weights[number], self._regions.smooth_l1
        wrong = box_loss(stage.class_logits, stage.box_deltas, stage.sampled, batch.targets, beta, weights)
        return {"classification": wrong.label, "box": wrong.box}


def first_stage(boxes: BoxRaw) -> Stage:
    """What is said up to the first boxes, as a stage."""
    return Stage(boxes.sampled, boxes.class_logits, boxes.box_deltas)


def of_stage(terms: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Terms of stage ``number``, from 0, with the stage in the name after the first: ``box/stage2``."""
    named: dict[str, Tensor] = {}
    for name, term in terms.items():
        key, _, rest = name.partition("/")
        named[name if number == 0 else "-".join(filter(None, (f"{key}/stage{number + 1}", rest)))] = term
    return named
