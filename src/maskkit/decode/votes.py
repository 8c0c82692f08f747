"""Decoder of mask voting (FCIS, section 3.1): a mask is the weighted mean of the masks of overlapping regions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from maskkit.decode.boxes import scored_boxes
from maskkit.decode.outputs import RegionVotes
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.resample import DENSE, interpolate, strips, taps_at
from maskkit.prediction import Categories, ImageMeta, Masks, Prediction

_KEPT = 1 << 28
"""Largest number of pixels of all regions' masks that are kept while an image is decoded."""


@dataclass(frozen=True)
class Votes:
    """Masks voted on by regions. The box is that of the mask."""

    outputs: ClassVar[type[RegionVotes[np.ndarray]]] = RegionVotes
    cut: float = 0.4
    """Threshold of the regions' masks, and of their weighted mean."""

    def __call__(
        self, out: RegionVotes[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The objects with a score above ``score`` and at least one pixel, in original pixels."""
        kept, found = scored_boxes(out, meta, score)
        mean_of = self._voting(out, meta)
        rles: list[rle_codec.Rle] = []
        for row in kept:
            mean, top, left = mean_of(row)
            rles.append(rle_codec.encode_region(mean >= self.cut, top, left, meta.size))
        found.boxes, found.masks = rle_codec.boxes(rles), Masks(meta.size, rles)
        return Prediction(meta, categories, found[np.flatnonzero(rle_codec.area(rles))])

    def _voting(
        self, out: RegionVotes[np.ndarray], meta: ImageMeta
    ) -> Callable[[int], tuple[Float[np.ndarray, "h w"], int, int]]:
        """A function from an object's row to the mean of its regions' binary masks, and that mean's (top, left)."""
        votes = out.votes
        height, width = meta.input_size
        regions = out.boxes[-votes.shape[1] :] * np.array([width, height, width, height], np.float32)
        whole = np.floor(meta.to_original(regions) + 0.5).astype(np.int64)
        real = (whole[:, 2:] > whole[:, :2]).all(1)
        masks = out.masks[-len(regions) :]

        def region_mask(i: int) -> Bool[np.ndarray, "h w"]:
            return _stretch(masks[i], whole[i], self.cut)

        if (whole[real, 2:] - whole[real, :2]).prod(1).sum() <= _KEPT:
            region_mask = cache(region_mask)

        def mean_of(row: int) -> tuple[np.ndarray, int, int]:
            voters = np.flatnonzero((votes[row] > 0) & real)
            if len(voters) == 0:
                return np.zeros((0, 0), np.float32), 0, 0
            left, top, right, bottom = (*whole[voters, :2].min(0), *whole[voters, 2:].max(0))
            mean = np.zeros((bottom - top, right - left), np.float32)
            for i in voters.tolist():
                x1, y1, x2, y2 = whole[i] - (left, top, left, top)
                mask, vote = region_mask(i), votes[row, i]
                for rows in strips(mask.shape[1], len(mask), DENSE):
                    mean[y1:y2, x1:x2][rows] += vote * mask[rows]
            return mean, int(top), int(left)

        return mean_of


def _stretch(mask: Float[np.ndarray, "m m"], box: Int[np.ndarray, "4"], cut: float) -> Bool[np.ndarray, "h w"]:
    """Where a mask reaches ``cut`` once it is resized to a ``box`` of whole pixels."""
    width, height = int(box[2] - box[0]), int(box[3] - box[1])
    y, x = (taps_at((np.arange(n) + 0.5) * (len(mask) / n) - 0.5, len(mask)) for n in (height, width))
    stretched = np.empty((height, width), bool)
    for rows in strips(width, height, DENSE):
        stretched[rows] = interpolate(mask, y.part(rows), x) >= cut
    return stretched
