"""Polygons around the pixels of masks: traced along the edges, with parts joined to one polygon."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

from maskkit.data.records import Annotation
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle as polygons_to_rle

Points = Float[np.ndarray, "n 2"]


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Float[np.ndarray, "k"]]:
    """Flat polygons along the pixel edges of a mask, one per connected part; holes are joined by a bridge of width 0.

    COCO's rasteriser turns them back into exactly the same pixels.
    """
    return [bridge([loop.reshape(-1) for loop in loops]) for loops in outlines(mask)]


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[list[Points]]:
    """The closed lines along the pixel edges of each connected part of a mask: its border and those of its holes."""
    parts, count = ndimage.label(mask)  # type: ignore[misc]
    loops: list[list[Points]] = [[] for _ in range(count)]
    for part, points in _loops(mask, parts):
        loops[part - 1].append(points)
    return loops


def bridge(polygons: Sequence[Float[np.ndarray, "k"]]) -> Float[np.ndarray, "m"]:
    """One polygon from several: each is joined to another one by a line, there and back, between near corners.

    Each round joins twice as many polygons as the round before, chosen at random, each to the nearest polygon of all
    earlier rounds. This takes N log N steps for N corners.
    """
    if len(polygons) == 1:
        return np.asarray(polygons[0])
    loops = [np.asarray(p, np.float64).reshape(-1, 2) for p in polygons]
    order = [0, *(1 + np.random.default_rng(0).permutation(len(loops) - 1)).tolist()]
    sizes = np.array([len(loops[k]) for k in order])
    corners = np.concatenate([loops[k] for k in order])
    ends = np.cumsum(sizes)
    owner = np.repeat(np.arange(len(order)), sizes)  # place in ``order`` of each corner's polygon
    branches: dict[int, list[tuple[int, int]]] = defaultdict(list)  # at a corner: polygons, each with its own corner
    done = 1
    while done < len(order):
        upto = min(2 * done, len(order))
        first, last = ends[done - 1], ends[upto - 1]
        distance, nearest = cKDTree(corners[:first]).query(corners[first:last])
        by_polygon = np.lexsort([np.asarray(distance), owner[first:last]])  # the nearest corner first
        joint = by_polygon[np.unique(owner[first:last][by_polygon], return_index=True)[1]]
        for corner, other in zip((first + joint).tolist(), np.asarray(nearest)[joint].tolist(), strict=True):
            branches[other].append((int(owner[corner]), corner))
        done = upto
    starts = (ends - sizes).tolist()
    return corners[_walk(starts, ends.tolist(), branches)].reshape(-1)


def _walk(starts: list[int], ends: list[int], branches: dict[int, list[tuple[int, int]]]) -> list[int]:
    """The corners in the order of the joined polygon: around the first one, into every branch and back."""
    path: list[int] = []
    stack = [iter(range(starts[0], ends[0]))]
    waiting: list[int] = []  # the corner to come back to, of each branch that is being walked
    while stack:
        corner = next(stack[-1], None)
        if corner is None:
            stack.pop()
            if waiting:
                path.append(waiting.pop())
            continue
        path.append(corner)
        for polygon, own in reversed(branches.pop(corner, [])):
            start, end = starts[polygon], ends[polygon]
            waiting.append(corner)
            stack.append(iter([*range(own, end), *range(start, own + 1)]))
    return path


_EDGES = (((0, -1), (0, 0), (1, 0)), ((1, 0), (1, 0), (0, 1)), ((0, 1), (1, 1), (-1, 0)), ((-1, 0), (0, 1), (0, -1)))
"""Neighbour of a pixel, start of the edge towards it, and the way along it with the pixel on the right: (x, y) each."""


def _loops(mask: Bool[np.ndarray, "h w"], parts: Int[np.ndarray, "h w"]) -> Iterator[tuple[int, Points]]:
    """Closed lines along the borders of a mask, corners only, the mask on the right, each with its connected part."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    columns, rows, ways, owners = [], [], [], []
    for way, ((dx, dy), (sx, sy), _) in enumerate(_EDGES):
        y, x = np.nonzero(mask & ~padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width])
        columns.append(x + sx)
        rows.append(y + sy)
        ways.append(np.full(len(x), way))
        owners.append(parts[y, x])
    x, y, way, owner = (np.concatenate(values) for values in (columns, rows, ways, owners))
    edge = (y * (width + 1) + x) * 4 + way  # the number of an edge: where it starts, and which way it goes
    order = np.argsort(edge)
    x, y, way, owner, edge = x[order], y[order], way[order], owner[order], edge[order]
    steps = np.array([step for *_, step in _EDGES])[way]
    end = (y + steps[:, 1]) * (width + 1) + x + steps[:, 0]
    following = np.zeros(len(edge), np.int64)
    for turn in (3, 0, 1):  # left, straight on, right: the last one that is possible is taken, it stays at its part
        wanted = end * 4 + (way + turn) % 4
        place = np.minimum(np.searchsorted(edge, wanted), len(edge) - 1)
        following = np.where(edge[place] == wanted, place, following)
    corner = np.zeros(len(edge), bool)
    corner[following] = way[following] != way
    points, after, corners = np.stack([x, y], 1).astype(np.float64), following.tolist(), corner.tolist()
    done = bytearray(len(edge))
    for start in range(len(edge)):
        walked, place = [], start
        while not done[place]:
            done[place] = 1
            if corners[place]:
                walked.append(place)
            place = after[place]
        if walked:
            yield int(owner[start]), points[walked]


def polygons_of(annotation: Annotation, size: tuple[int, int]) -> list[Float[np.ndarray, "k"]]:
    """The polygons of the file, or polygons around the pixels of the mask; none when the mask is unknown."""
    if isinstance(annotation.segmentation, Sequence):
        return [np.asarray(p, np.float64) for p in annotation.segmentation]
    rle = annotation.rle(size)
    return trace(mask_math.decode([rle], size)[0]) if rle is not None else []


def one_polygon(annotation: Annotation, size: tuple[int, int]) -> Float[np.ndarray, "k"]:
    """The mask as a single polygon, which rasterises to the same pixels."""
    polygons = polygons_of(annotation, size)
    whole = bridge(polygons)
    if len(polygons) > 1 and isinstance(annotation.segmentation, Sequence):
        union = polygons_to_rle([p.tolist() for p in polygons], size)
        # if parts overlap, the joined polygon has holes
        if polygons_to_rle([whole.tolist()], size)["counts"] != union["counts"] and mask_math.area([union])[0]:
            return bridge(trace(mask_math.decode([union], size)[0]))
    return whole
