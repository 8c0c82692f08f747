"""Overlapping windows of an image, of which each pixel belongs to one. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from maskkit.errors import MaskkitError

OVERLAP = 0.2
"""Share of a tile that its neighbours see too, where the user does not say otherwise."""


class Rect(NamedTuple):
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of an image, the last ones not included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, at least 0."""
        return max(self.bottom - self.top, 0), max(self.right - self.left, 0)

    def meet(self, other: Rect) -> Rect:
        """The intersection; its size has a zero if it is empty."""
        low = max(self.top, other.top), max(self.left, other.left)
        return Rect(*low, min(self.bottom, other.bottom), min(self.right, other.right))


class Window(NamedTuple):
    """A tile."""

    seen: Rect
    """What the network sees."""
    own: Rect
    """The pixels that this tile owns; no other tile owns them."""


def windows(size: tuple[int, int], tile: int, overlap: float = OVERLAP) -> list[Window]:
    """The tiles of an image of ``size`` (height, width), row by row.

    A tile has ``tile`` rows and columns, or those of the image where it is smaller; neighbours share at least
    ``overlap`` of a tile. The last tile of a row or column is moved back into the image. Raises `MaskkitError` for an
    overlap of half a tile or more.
    """
    if not 0 <= overlap < 0.5:
        raise MaskkitError(f"tiles overlap by at least 0 and less than 0.5 of their size, not {overlap:g}")
    rows, columns = (_axis(length, tile, overlap) for length in size)
    return [
        Window(Rect(top, left, bottom, right), Rect(own_top, own_left, own_bottom, own_right))
        for (top, bottom), (own_top, own_bottom) in rows
        for (left, right), (own_left, own_right) in columns
    ]


def count(size: tuple[int, int], tile: int, overlap: float = OVERLAP) -> int:
    """The number of `windows`, without making them."""
    step = _step(tile, overlap)
    down, across = (1 + -(-max(length - tile, 0) // step) for length in size)
    return down * across


def _step(tile: int, overlap: float) -> int:
    """Pixels from one tile to the next."""
    return max(tile - round(tile * overlap), 1)


def _axis(length: int, tile: int, overlap: float) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Begin and end of each tile along one axis, and of the part that it owns."""
    starts = [*range(0, max(length - tile, 0), _step(tile, overlap)), max(length - tile, 0)]
    seen = [(start, min(start + tile, length)) for start in starts]
    inner = [(after[0] + before[1]) // 2 for before, after in pairwise(seen)]
    return list(zip(seen, pairwise([0, *inner, length]), strict=True))
