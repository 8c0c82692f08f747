"""Decoder of panoptic segments: each pixel goes to the query with the highest score times mask probability
(Mask2Former)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from maskkit.decode.outputs import SegmentQueries
from maskkit.geometry.resample import strips, taps_at
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
        for rows, logits in _in_two_steps(out.masks[kept], meta) if len(kept) else ():
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


def _in_two_steps(
    maps: Float[np.ndarray, "c h w"], meta: ImageMeta
) -> Iterator[tuple[slice, Float[np.ndarray, "c rows width"]]]:
    """Maps at the original pixels, strip by strip: interpolated to the network's input first, then, without the
    padding, to the image, as in detectron2."""
    y, x = (_through_input(cells, meta, axis) for axis, cells in enumerate(maps.shape[1:]))
    for rows in strips(16 * len(maps) * meta.size[1], meta.size[0]):  # the fewer rows, the fewer cells take part
        hit = np.flatnonzero(y[rows].any(0))
        near = slice(hit[0], hit[-1] + 1)
        yield rows, y[rows, near] @ (maps[:, near] @ x.T)  # (C, H', W)


def _through_input(cells: int, meta: ImageMeta, axis: int) -> Float[np.ndarray, "n cells"]:
    """The weight of each cell of one axis in each original pixel after both interpolations."""
    pixels = meta.input_size[axis]
    step = taps_at((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, cells)
    shares = np.zeros((pixels, cells), np.float32)
    each = np.arange(pixels)
    shares[each, step.lower] = 1 - step.weight
    shares[each, step.upper] += step.weight
    scale, offset = meta.affine[1 - axis, [1 - axis, 2]]
    end = max(-offset / scale, (meta.size[axis] - offset) / scale)  # of the image in the input
    seen = min(max(round(end), 1), pixels)
    step = taps_at((np.arange(meta.size[axis]) + 0.5 - offset) / scale - 0.5, seen)
    return shares[step.lower] * (1 - step.weight[:, None]) + shares[step.upper] * step.weight[:, None]
