"""Decoder of panoptic segments: each pixel goes to the query with the highest score times mask probability
(Mask2Former)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.special import expit

from maskkit.decode.grid import in_two_steps
from maskkit.decode.outputs import SegmentQueries
from maskkit.geometry.resample import strips
from maskkit.prediction import Categories, ImageMeta, Panoptic, PanopticSegment, Prediction


@dataclass(frozen=True)
class Segments:
    """Queries that compete for the pixels; segments of the same stuff class are merged."""

    outputs: ClassVar[type[SegmentQueries[np.ndarray]]] = SegmentQueries
    score: float = 0.8
    """Segments with a score up to this are dropped."""
    overlap: float = 0.8
    """Smallest share of its own mask that a segment has to win against the others."""

    def __call__(
        self, out: SegmentQueries[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The segments with a score above ``score`` and above the decoder's own, in original pixels."""
        kept = np.flatnonzero((out.labels < len(categories)) & (out.scores > max(np.float32(self.score), score)))
        labels, scores = out.labels[kept].astype(np.int64), out.scores[kept].astype(np.float32)
        won, own = np.zeros(len(kept), np.int64), np.zeros(len(kept), np.int64)  # pixels
        visible = np.zeros(len(kept), np.int64)
        winner = np.full(meta.size, -1, np.int32)
        for rows, logits in in_two_steps(out.masks[kept], meta) if len(kept) else ():
            best = (scores[:, None, None] * expit(logits)).argmax(0)  # (H', W)
            inside = np.take_along_axis(logits, best[None], 0)[0] >= 0
            winner[rows] = np.where(inside, best, -1)
            visible += np.bincount(best[inside], minlength=len(kept))
            won += np.bincount(best.ravel(), minlength=len(kept))
            own += (logits >= 0).sum((1, 2))
        share = (won / own.clip(min=1)).astype(np.float32)  # in float32, as the threshold is
        numbers = np.zeros(len(kept) + 1, np.int32)  # the last one is for pixels without a segment
        segments: list[PanopticSegment] = []
        stuff: dict[int, int] = {}  # class number to the place of its segment
        for k in np.flatnonzero((visible > 0) & (share >= np.float32(self.overlap))).tolist():
            label, score_of = int(labels[k]), float(scores[k])
            thing = categories.things[label]
            if not thing and label in stuff:
                place = stuff[label]
                segments[place] = replace(segments[place], score=max(segments[place].score, score_of))
            else:
                place = stuff[label] = len(segments)
                segments.append(PanopticSegment(place + 1, label, score_of, thing))
            numbers[k] = segments[place].id
        for rows in strips(4 * meta.size[1], meta.size[0]):
            winner[rows] = numbers[winner[rows]]  # in place: a large image has room for one map
        return Prediction(meta, categories, panoptic=Panoptic(winner, segments))
