"""Decoders of instances without boxes: cells are grouped by growing kernels or by clustering embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage
from scipy.special import expit

from maskkit.decode.clustering import Groups, cluster, expand, rate
from maskkit.decode.grid import input_taps, over_input
from maskkit.decode.outputs import EmbeddingMaps, KernelMaps
from maskkit.geometry import rle as rle_codec
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction


@dataclass(frozen=True)
class Kernels:
    """Instances grown from the smallest kernels (PSENet, section 3.2)."""

    outputs: ClassVar[type[KernelMaps]] = KernelMaps
    min_area: float = 0.0
    """Smallest number of cells of an instance."""
    min_score: float = 0.0
    """Smallest mean probability of an instance."""

    def __call__(
        self, out: KernelMaps[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The instances with a score above ``score``, in original pixels."""
        numbers = expand(out.kernels > 0, self.min_area)
        groups = rate(numbers, expit(out.kernels[0]), out.classes, self.min_area, self.min_score)
        return _prediction(groups, meta, categories, score)


@dataclass(frozen=True)
class Embeddings:
    """Instances as clusters of the embeddings of foreground cells (discriminative loss, section 3.3)."""

    outputs: ClassVar[type[EmbeddingMaps]] = EmbeddingMaps
    bandwidth: float = 1.0
    """Radius of the mean shift."""
    min_area: float = 0.0
    """Smallest number of cells of an instance."""
    min_score: float = 0.0
    """Smallest mean probability of an instance."""

    def __call__(
        self, out: EmbeddingMaps[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The instances with a score above ``score``, in original pixels."""
        foreground = out.foreground > 0.5
        numbers = np.zeros(foreground.shape, np.int64)
        numbers[foreground] = cluster(out.embeddings[:, foreground].T, self.bandwidth) + 1
        groups = rate(numbers, out.foreground, out.classes, self.min_area, self.min_score)
        return _prediction(groups, meta, categories, score)


def _prediction(groups: Groups, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
    """Groups as instances: masks resampled as by `OverInput`, with tight boxes."""
    order = np.argsort(-groups.scores, kind="stable")
    order = order[groups.scores[order] > score]
    y, x = (input_taps(cells, meta, axis) for axis, cells in enumerate(groups.numbers.shape))
    extents = ndimage.find_objects(groups.numbers)
    rles = []
    for number in groups.kept[order].tolist():
        # one cell more on every side: values are interpolated between the group and what surrounds it
        rows, columns = (slice(max(side.start - 1, 0), side.stop + 1) for side in extents[number - 1])
        mask = (groups.numbers[rows, columns] == number).astype(np.float32)
        rles.append(over_input(mask, y, x, meta.size, rows.start, columns.start))
    found = Instances(
        rle_codec.boxes(rles),
        groups.labels[order].astype(np.int64),
        groups.scores[order].astype(np.float32),
        Masks(meta.size, rles),
    )
    visible = np.flatnonzero(rle_codec.area(rles))  # a group may lie in the padding
    return Prediction(meta, categories, found[visible])
