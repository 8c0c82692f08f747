"""Grouping: the expansion against a plain queue, clusters that are known, votes, rectangles, and the way to masks."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskkit.decode import Decoder, Embeddings, Kernels, decode
from maskkit.decode.clustering import cluster, expand, rate
from maskkit.geometry.rectangles import least_rectangle, quadrilaterals
from maskkit.prediction import Categories, ImageMeta

NAMES = Categories.of(["cat", "dog", "eel"])


def queue_expansion(kernels: np.ndarray, min_area: float) -> np.ndarray:
    """Progressive scale expansion as the paper's algorithm 1 and the official queue have it, pixel by pixel."""
    kernels = kernels & kernels[0]
    labels, count = ndimage.label(kernels[-1])  # type: ignore[misc]
    for i in range(1, count + 1):
        if (labels == i).sum() < min_area:
            labels[labels == i] = 0
    queue = deque(zip(*np.nonzero(labels), strict=True))
    for kernel in kernels[-2::-1]:
        later = deque()
        while queue:
            y, x = queue.popleft()
            spread = False
            for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= b < kernel.shape[0] and 0 <= a < kernel.shape[1] and kernel[b, a] and not labels[b, a]:
                    labels[b, a] = labels[y, x]
                    queue.append((b, a))
                    spread = True
            if not spread:
                later.append((y, x))
        queue = later
    return labels


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    count=st.integers(1, 5),
    min_area=st.integers(0, 4),
    smooth=st.floats(0, 2),
)
def test_expansion_is_the_plain_queue(
    seed: int, size: tuple[int, int], count: int, min_area: int, smooth: float
) -> None:
    rng = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(rng.normal(size=size), smooth)
    noise = 0.3 * height.std() * rng.normal(size=(count, *size))  # kernels need not lie within each other
    levels = np.quantile(height, np.linspace(0.3, 0.8, count))
    kernels = height + noise > levels[:, None, None]
    assert np.array_equal(expand(kernels, min_area), queue_expansion(kernels, min_area))


def test_touching_objects_stay_two_where_their_kernels_are_apart() -> None:
    complete, apart, joined = np.zeros((3, 10, 20), bool)
    complete[2:8, 2:18] = True
    apart[4:6, 4:8] = apart[4:6, 12:16] = True
    joined[4:6, 4:16] = True
    numbers = expand(np.stack([complete, apart]))
    assert np.array_equal(numbers > 0, complete)
    assert (numbers[2:8, 2:10] == 1).all()
    assert (numbers[2:8, 10:18] == 2).all()
    assert expand(np.stack([complete, joined])).max() == 1
    assert expand(np.stack([complete, apart]), min_area=9).max() == 0


@pytest.mark.parametrize(("count", "dimensions", "size"), [(1, 2, 4000), (7, 8, 500), (500, 8, 40)])
def test_separate_clusters_are_found(count: int, dimensions: int, size: int) -> None:
    rng = np.random.default_rng(count)
    means = 3 * np.stack(np.unravel_index(np.arange(count), (8,) * 3 if count > 8 else (count, 1, 1)), 1)
    means = np.pad(means, ((0, 0), (0, 5)))[:, :dimensions]
    truth = np.repeat(np.arange(count), size)
    away = rng.normal(size=(len(truth), dimensions))
    away *= rng.uniform(0, 0.5, (len(truth), 1)) / np.linalg.norm(away, axis=1, keepdims=True)
    order = rng.permutation(len(truth))
    found = cluster((means[truth] + away)[order], 0.75)
    assert len(np.unique(found)) == len(np.unique(np.stack([found, truth[order]]), axis=1).T) == count


def test_a_cluster_of_a_few_points_is_found_beside_huge_ones() -> None:
    points = np.concatenate([np.zeros((5_000, 2)), np.full((5_000, 2), 5.0), np.full((6, 2), 2.5)])
    found = cluster(points + np.random.default_rng(0).uniform(-0.3, 0.3, points.shape), 0.75)
    assert len({*found[-6:]}) == 1
    assert found[-1] not in {*found[:-6]}
    assert len(cluster(np.zeros((0, 2)), 0.75)) == 0


def test_pixels_vote_for_the_class_and_the_share_counts() -> None:
    numbers = np.array([[1, 1, 1, 1, 0], [2, 2, 0, 3, 3], [0, 0, 0, 3, 3]])
    classes = np.array([[2, 2, 2, 0, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    probability = np.full(numbers.shape, 0.8)
    probability[numbers == 3] = 0.4
    groups = rate(numbers, probability, classes, min_area=2, min_score=0)
    assert groups.kept.tolist() == [1, 2, 3]
    assert groups.labels.tolist() == [2, 1, 0]
    assert groups.scores == pytest.approx([0.6, 0.8, 0.4])
    assert rate(numbers, probability, classes, min_area=3, min_score=0.5).kept.tolist() == [1]


def test_least_rectangle_of_a_turned_one() -> None:
    turn = np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [30, 0], [30, 8], [0, 8]])
    points = np.concatenate([corners, rng.uniform(0, 1, (50, 2)) * [30, 8]]) @ turn
    found = least_rectangle(points)
    best = min(
        np.abs(np.roll(turned, i, 0) - corners @ turn).max() for i in range(4) for turned in (found, found[::-1])
    )
    assert best < 1e-9
    assert np.array_equal(least_rectangle(np.array([[3, 4]])), [[3, 4]] * 4)
    assert np.ptp(least_rectangle(np.array([[0, 0], [1, 2], [2, 4]])), axis=0).tolist() == [2, 4]


def test_quadrilaterals_lie_on_pixel_edges() -> None:
    dense = np.zeros((2, 20, 20), bool)
    dense[0, 3:7, 5:15] = True
    found = quadrilaterals(dense)
    assert sorted(map(tuple, found[0])) == [(5, 3), (5, 7), (15, 3), (15, 7)]
    assert not found[1].any()


def maps(numbers: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """What a perfect network of either kind would select for objects ``numbers`` of class 1."""
    kernels = np.stack([numbers > 0, *(ndimage.binary_erosion(numbers == i) for i in np.unique(numbers) if i)])
    kernels = np.stack([kernels[0], kernels[1:].any(0)])
    classes = np.ones((1, *numbers.shape))
    return {
        "kernels": {"classes": classes, "kernels": np.where(kernels, 6.0, -6.0)[None]},
        "embeddings": {
            "classes": classes,
            "embeddings": np.stack([3.0 * numbers, 0 * numbers])[None],
            "foreground": np.where(numbers > 0, 0.9, 0.1)[None],
        },
    }


@pytest.mark.parametrize(("kind", "decoder"), [("kernels", Kernels(4, 0.5)), ("embeddings", Embeddings(0.75, 4, 0.5))])
def test_groups_become_masks_in_original_pixels(kind: str, decoder: Decoder) -> None:
    numbers = np.zeros((32, 32), int)
    numbers[2:7, 0:12] = 1
    numbers[8:16, 6:20] = 2
    numbers[28:32, 4:12] = 3  # in the padding
    fields = maps(numbers)[kind]
    # an image of 48 x 128 in the upper part of an input of 64 x 64, on a grid of 32 x 32
    meta = ImageMeta(1, "", (48, 128), (64, 64), np.array([[2.0, 0, 0], [0, 2.0, 0]]))
    found = decode(decoder, fields, [meta], NAMES)[0].instances
    assert found is not None
    assert found.masks is not None
    assert found.labels.tolist() == [1, 1]
    first, second = found.masks.dense()
    expected = np.zeros((2, 48, 128), bool)
    expected[0, 8:28, 0:48] = True
    expected[1, 32:48, 24:80] = True
    for mask, truth in ((first, expected[0]), (second, expected[1])):
        assert (mask != truth).sum() <= 8, "corners are rounded"
    assert np.allclose(found.boxes, [[0, 8, 48, 28], [24, 32, 80, 48]])
    assert decode(decoder, fields, [meta], NAMES, score=0.9999)[0].to_coco() == []
