"""Images of rare classes more often: repeat factor sampling (Gupta, Dollar, Girshick: LVIS, CVPR 2019)."""

import math
from collections import Counter
from collections.abc import Sequence, Set

import numpy as np
from jaxtyping import Float, Int

from maskkit.data.dataset import Dataset


def classes_of(dataset: Dataset) -> list[Set[int]]:
    """The class numbers that occur in each image; label maps are read. Raises `DataError`."""
    found: list[Set[int]] = []
    for record in dataset.records:
        present = record.semantic.present(record.size) if record.semantic is not None else set()
        found.append({a.label for a in record.annotations} | set(present))
    return found


def repeat_factors(classes: Sequence[Set[int]], threshold: float) -> Float[np.ndarray, "n"]:
    """How often each image should be seen while others are seen once; ``classes`` are those that are in it.

    A class in the share f of the images has the factor ``max(1, sqrt(threshold / f))``, an image the largest factor of
    its classes.
    """
    images = Counter(number for found in classes for number in found)
    of_class = {number: max(1.0, math.sqrt(threshold * len(classes) / n)) for number, n in images.items()}
    return np.array([max((of_class[number] for number in found), default=1.0) for found in classes])


class RepeatedImages:
    """The order of images in each epoch, a function of seed and epoch alone.

    An epoch has as many places as the factors sum to, rounded up. An image has its factor rounded down or up, at random
    in each epoch, so that the mean over the epochs is its factor, but for what the epoch was rounded up.
    """

    def __init__(self, factors: Float[np.ndarray, "n"], seed: int) -> None:
        self._size = math.ceil(factors.sum() - 1e-6)
        self._edges = np.cumsum(factors) * (self._size / factors.sum())
        self._edges[-1] = self._size
        self._seed = seed
        self._known: dict[int, Int[np.ndarray, "m 2"]] = {}

    def __len__(self) -> int:
        return self._size

    def order(self, epoch: int) -> Int[np.ndarray, "m 2"]:
        """For each place of an epoch the number of the image, and which of its repetitions that is (0: the first)."""
        if epoch not in self._known:
            rng = np.random.default_rng([self._seed, epoch])
            upto = np.floor(self._edges + rng.random()).astype(np.int64)
            times = np.diff(upto, prepend=0)
            index = np.repeat(np.arange(len(times)), times)
            again = np.arange(len(index)) - np.repeat(upto - times, times)
            self._known = {epoch: np.stack([index, again], 1)[rng.permutation(len(index))]}
        return self._known[epoch]


def repeated(dataset: Dataset, threshold: float, seed: int) -> tuple[RepeatedImages, str]:
    """The order in which images of rare classes are repeated, and a line about it.

    Raises `DataError` for label maps that cannot be read.
    """
    classes = classes_of(dataset)
    counts = Counter(number for found in classes for number in found)
    rare = sum(n < threshold * len(classes) for n in counts.values())
    order = RepeatedImages(repeat_factors(classes, threshold), seed)
    return order, (
        f"{rare} of {len(counts)} classes are in less than {threshold:g} of the images: an epoch has {len(order)} "
        f"places for {len(dataset)} images"
    )
