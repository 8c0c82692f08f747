"""Rotated rectangles of least area around masks, as used in text detection. numpy and scipy only."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull


def quadrilaterals(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 4 2"]:
    """The rectangle of least area around each mask, its corners ``x y`` in pixel edges; zeros for an empty mask."""
    found = np.zeros((len(masks), 4, 2), np.float32)
    for i, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        if len(y):
            corners = np.stack([x, y], 1)[:, None] + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
            found[i] = least_rectangle(corners.reshape(-1, 2))
    return found


def least_rectangle(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "4 2"]:
    """Corners, in order, of the rectangle of least area around ``points``; one side lies on their convex hull."""
    points = np.unique(np.asarray(points, np.float64), axis=0)
    flat = points - points[0]
    if np.linalg.matrix_rank(flat) < 2:  # a point or a line has no hull
        along = flat[np.abs(flat).sum(1).argmax()]
        ends = flat @ along
        a, b = points[ends.argmin()], points[ends.argmax()]
        return np.stack([a, b, b, a])
    hull = points[ConvexHull(points).vertices]
    sides = np.roll(hull, -1, 0) - hull
    sides /= np.linalg.norm(sides, axis=1, keepdims=True)
    axes = np.stack([sides, sides[:, ::-1] * [-1, 1]], 1)  # (s, 2, 2): along the side and across it
    spans = np.einsum("sij,pj->sip", axes, hull)
    low, high = spans.min(2), spans.max(2)
    best = (high - low).prod(1).argmin()
    box = np.stack([low[best], high[best]])
    return np.stack([[box[i, 0], box[j, 1]] for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]) @ axes[best]
