"""Grouping of pixels into instances, for the methods without boxes. numpy and scipy only.

`expand` is the progressive scale expansion of PSENet, `cluster` finds the modes of pixel embeddings. Both return a map
with an instance number per pixel, which `rate` turns into groups with scores and classes. No loop runs over pixels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

SEEDS = (64, 512, 4096)
"""Number of seeds in each round of `cluster`."""
SHIFTS = 5
"""Mean-shift steps of each round."""


class Groups(NamedTuple):
    """The instances of one image on the grid of its maps."""

    numbers: Int[np.ndarray, "h w"]
    """Instance number of each pixel; 0 is background."""
    kept: Int[np.ndarray, "n"]
    """The instance numbers that are kept."""
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]


def expand(kernels: Bool[np.ndarray, "n h w"], min_area: float = 0) -> Int[np.ndarray, "h w"]:
    """Progressive scale expansion (PSENet, section 3.2): the number of an instance per pixel, 0 for none.

    ``kernels`` are ordered from the complete objects to the smallest kernels. Components of the smallest (4 neighbours,
    at least ``min_area`` cells) grow through ever larger kernels; a pixel belongs to the instance that gets there
    first. The result equals that of the official queue: pixels in row-major order, neighbours in the order up, down,
    left, right, and a pixel that has spread once never spreads again, even where a larger kernel would let it. All
    pixels of the queue at the same distance from its start are independent, so they are handled by one array operation.
    """
    complete = kernels[0]
    numbers = np.empty(complete.shape, np.int32)
    ndimage.label(kernels[-1] & complete, output=numbers)
    small = np.bincount(numbers.ravel()) < min_area
    numbers[small[numbers]] = 0

    grid = np.pad(numbers, 1)  # the border keeps steps inside
    owner, width = grid.reshape(-1), grid.shape[1]
    claim = np.zeros_like(owner)
    steps = np.array([-width, width, -1, 1])
    may_open = np.pad(complete, 1).reshape(-1)
    queue = np.flatnonzero(owner)
    for kernel in kernels[-2::-1]:
        is_open = np.pad(kernel & complete, 1).reshape(-1)
        done = []
        # a pixel without a free neighbour in the complete object will never spread again
        queue = queue[((owner[queue[:, None] + steps] == 0) & may_open[queue[:, None] + steps]).any(1)]
        while len(queue):
            reached = queue[:, None] + steps  # (q, 4)
            source, way = np.nonzero(is_open[reached] & (owner[reached] == 0))
            targets = reached[source, way]
            turn = np.arange(len(targets))
            claim[targets[::-1]] = turn[::-1]  # the first of several claims is written last
            source, targets = (claimed[claim[targets] == turn] for claimed in (source, targets))
            owner[targets] = owner[queue[source]]
            has_spread = np.zeros(len(queue), bool)
            has_spread[source] = True
            done.append(queue[~has_spread])
            queue = targets
        queue = np.concatenate(done) if done else queue
    return grid[1:-1, 1:-1].astype(np.int64)


def cluster(points: Float[np.ndarray, "p d"], bandwidth: float) -> Int[np.ndarray, "p"]:
    """Cluster numbers 0, 1, ... of embeddings, by mean shift with a flat kernel of radius ``bandwidth``.

    De Brabandere et al. (section 3.3) find one object after the other: start at a pixel, shift to the mean of its
    neighbourhood until that converges, remove the neighbourhood. Here many seeds shift at once, more in each round
    (`SEEDS`), evenly spaced over the points that are not near a mode yet: few seeds find the large clusters first, the
    later rounds the small ones. In the end every point joins the nearest mode.
    """
    if len(points) == 0:
        return np.zeros(0, np.int64)
    left, modes = points.astype(np.float64), np.zeros((0, points.shape[1]))
    for count in SEEDS:
        seeds, tree = left[:: -(-len(left) // count)], KDTree(left)
        for _ in range(SHIFTS):
            near = _near(seeds, tree, bandwidth)
            weight = near.sum(1)[:, None]
            seeds = np.where(weight > 0, (near @ left) / np.maximum(weight, 1), seeds)
        found, group = connected_components(_near(seeds, KDTree(seeds), bandwidth / 2), directed=False)
        member = sparse.csr_array((np.ones(len(seeds)), (group, np.arange(len(seeds)))), shape=(found, len(seeds)))
        fresh = (member @ seeds) / member.sum(1)[:, None]
        modes = np.concatenate([modes, fresh])
        left = left[KDTree(fresh).query(left)[0] > bandwidth]
        if len(left) == 0:
            break
    return np.asarray(KDTree(modes).query(points)[1])


def _near(seeds: Float[np.ndarray, "s d"], tree: KDTree, radius: float) -> sparse.csr_array:
    """Sparse matrix with 1 for every seed and point of ``tree`` that are at most ``radius`` apart."""
    pairs = KDTree(seeds).sparse_distance_matrix(tree, radius, output_type="ndarray")
    return sparse.csr_array((np.ones(len(pairs)), (pairs["i"], pairs["j"])), shape=(len(seeds), tree.n))


def rate(
    numbers: Int[np.ndarray, "h w"],
    probability: Float[np.ndarray, "h w"],
    classes: Int[np.ndarray, "h w"],
    min_area: float,
    min_score: float,
) -> Groups:
    """Score and class of each group with at least ``min_area`` pixels and a mean ``probability`` of ``min_score``.

    The class is the most frequent one of its pixels. The score is the mean probability times the share of these pixels,
    which is 1 where there is one class.
    """
    flat = numbers.reshape(-1)
    area = np.bincount(flat)
    mean = np.bincount(flat, probability.reshape(-1)) / np.maximum(area, 1)
    kept = np.flatnonzero((area >= max(min_area, 1)) & (mean >= min_score))
    kept = kept[kept > 0]
    most = int(classes.max(initial=0)) + 1
    votes = np.bincount(flat * most + classes.reshape(-1).astype(np.int64), minlength=len(area) * most)
    votes = votes.reshape(-1, most)[kept]
    labels = votes.argmax(1) if len(kept) else np.zeros(0, np.int64)
    share = votes.max(1, initial=0) / area[kept]
    return Groups(numbers, kept, labels, (mean[kept] * share).astype(np.float32))
