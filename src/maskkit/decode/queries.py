"""Decoder of queries with a mask and several classes each: objects are scored by their masks in the image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from maskkit.decode.boxes import best_first
from maskkit.decode.grid import in_two_steps
from maskkit.decode.outputs import ObjectQueries
from maskkit.geometry import rle as rle_codec
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction

_AT_ONCE = 1 << 26
"""Pixels of binary masks that are in memory at a time."""


@dataclass(frozen=True)
class Queries:
    """Objects of pairs of query and class: the score is that of the class times the mean probability of the mask.

    Mask logits are interpolated to the network's input, and from there, without the padding, to the image, where those
    above 0 are the mask. The box is that of the mask. Pairs with the class of stuff are dropped.
    """

    outputs: ClassVar[type[ObjectQueries[np.ndarray]]] = ObjectQueries

    def __call__(
        self, out: ObjectQueries[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The objects with a score above ``score`` and at least one pixel, in original pixels."""
        labels = out.labels.astype(np.int64)
        kept = np.flatnonzero((out.scores > score) & np.array(categories.things)[labels])  # masks only lower a score
        queries, place = np.unique(out.queries[kept].astype(np.int64), return_inverse=True)
        found = list(_scored(out.masks[queries], meta))
        scores = out.scores[kept] * np.array([sure for _, sure in found], np.float32)[place]
        order = best_first(scores, score)
        rles: list[rle_codec.Rle] = [found[int(i)][0] for i in place[order]]
        objects = Instances(rle_codec.boxes(rles), labels[kept][order], scores[order], Masks(meta.size, rles))
        return Prediction(meta, categories, objects)


def _scored(masks: Float[np.ndarray, "q h w"], meta: ImageMeta) -> Iterator[tuple[rle_codec.Rle, float]]:
    """The mask of each query in the image, and the mean probability of its pixels; 0 where there are none."""
    step = max(1, _AT_ONCE // (meta.size[0] * meta.size[1]))
    for first in range(0, len(masks), step):
        some = masks[first : first + step]
        binary, total = np.empty((len(some), *meta.size), bool), np.zeros(len(some))
        for rows, logits in in_two_steps(some, meta):
            inside = logits > 0
            binary[:, rows] = inside
            for k, drawn in enumerate(inside):
                total[k] += np.asarray(expit(logits[k][drawn]), np.float64).sum()
        for mask, sure in zip(binary, total, strict=True):
            yield rle_codec.encode(mask[None])[0], sure / (mask.sum() + 1e-6)
