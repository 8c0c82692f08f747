"""The order in which images are worth labelling: first those on which a model is uncertain and that look different.

*Doubt* of an image is the expected number of objects whose label a person will change: a sum over all candidates, of
which one at the score threshold counts 0.5, and one with a score of 0 or 1 counts 0. Brust et al. (Active learning for
deep object detection, 2018) find the sum over an image better than mean and maximum.

*Distance* is the difference to the most similar image chosen before, by colours and edges on a coarse grid. Images are
chosen one after another, each the one with the largest product of both: farthest-first traversal, as in Sener and
Savarese (Active learning for convolutional neural networks: a core-set approach, 2018), weighted by doubt.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from maskkit.data.images import read_pixels
from maskkit.files import replacing

LEAST = 0.25
"""Candidates below this share of the score threshold do not count: there are many, and nearly all are wrong."""
_GRID, _SIDE = 8, 64
_ANGLES = 8


class Place(NamedTuple):
    """An image in the order."""

    index: int
    """Index of the image in the order given."""
    doubt: float
    """Expected number of labels to change."""
    distance: float
    """Distance to the nearest image before it, relative to the typical distance of two images; at most 1."""


def doubt(scores: Sequence[float], threshold: float) -> float:
    """Expected number of wrong decisions, if candidates become labels from ``threshold`` on."""
    values = np.asarray(scores, np.float64)
    values = values[values >= LEAST * threshold]
    below = values / max(threshold, 1e-9)
    above = (1 - values) / max(1 - threshold, 1e-9)
    return float(np.where(values < threshold, below, above).clip(0, 1).sum() / 2)


def appearance(path: Path) -> Float[np.ndarray, "d"]:
    """Colours of 8 x 8 cells and directions of edges in 4 x 4 cells of an image. Raises `DataError`."""
    image = Image.fromarray(read_pixels(path)).resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(image, np.float64) / 255  # (S, S, 3)
    cell = _SIDE // _GRID
    colours = pixels.reshape(_GRID, cell, _GRID, cell, 3).mean((1, 3))
    down, across = np.gradient(pixels.mean(2))
    angle = (np.arctan2(down, across) % np.pi / np.pi * _ANGLES).astype(int) % _ANGLES
    strength = np.hypot(down, across)
    wide = 2 * cell
    edges = [
        np.bincount(angle[y : y + wide, x : x + wide].ravel(), strength[y : y + wide, x : x + wide].ravel(), _ANGLES)
        for y in range(0, _SIDE, wide)
        for x in range(0, _SIDE, wide)
    ]
    return np.concatenate([colours.ravel(), np.sqrt(np.concatenate(edges)) / cell])


def teaching_order(doubts: Sequence[float], appearances: Sequence[Float[np.ndarray, "d"]]) -> list[Place]:
    """All images, the most useful ones first; of equal ones the first one given."""
    looks = np.stack(appearances) if appearances else np.zeros((0, 1))
    typical = np.sqrt(2 * ((looks - looks.mean(0)) ** 2).sum(1).mean()) if len(looks) else 1.0
    distances, left = np.ones(len(looks)), np.ones(len(looks), bool)
    worth = np.asarray(doubts, np.float64)
    found = []
    for _ in range(len(looks)):
        # where no doubt is left, the farthest image
        value = np.where(left, worth * distances + 1e-9 * distances, -1)
        chosen = int(value.argmax())
        found.append(Place(chosen, float(worth[chosen]), float(distances[chosen])))
        left[chosen] = False
        apart = np.sqrt(((looks - looks[chosen]) ** 2).sum(1)) / max(typical, 1e-9)
        distances = np.minimum(distances, apart)
    return found


def write_order(file: Path, places: Sequence[Place], images: Sequence[tuple[str, int]]) -> None:
    """Write the order as a table; ``images`` are the file and the number of labels of each image, as given."""
    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("rank", "image", "doubt", "distance", "labels"))
        for rank, place in enumerate(places, 1):
            name, labels = images[place.index]
            writer.writerow((rank, name, f"{place.doubt:.3f}", f"{place.distance:.3f}", labels))
