"""Overlapping windows of an image, of which each pixel belongs to one. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from maskkit.errors import MaskkitError


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
        """The part that both have; its size has a zero where there is none."""
        low = max(self.top, other.top), max(self.left, other.left)
        return Rect(*low, min(self.bottom, other.bottom), min(self.right, other.right))


class Window(NamedTuple):
    """A tile."""

    seen: Rect
    """What the network sees."""
    own: Rect
    """The pixels that belong to this tile alone."""


def windows(size: tuple[int, int], tile: int, overlap: float = 0.2) -> list[Window]:
    """The tiles of an image of ``size`` (height, width), row by row.

    A tile has ``tile`` rows and columns, or those of a smaller image; neighbours share at least the part ``overlap`` of
    it. The last tile of a row or column is moved back into the image. Raises `MaskkitError` for an overlap of half a
    tile or more.
    """
    if not 0 <= overlap < 0.5:
        raise MaskkitError(f"tiles overlap by at least 0 and less than 0.5 of their size, not {overlap:g}")
    rows, columns = (_axis(length, tile, overlap) for length in size)
    return [
        Window(Rect(top, left, bottom, right), Rect(own_top, own_left, own_bottom, own_right))
        for (top, bottom), (own_top, own_bottom) in rows
        for (left, right), (own_left, own_right) in columns
    ]


def _axis(length: int, tile: int, overlap: float) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """First and last pixel of each tile along one axis, and of what it owns."""
    step = max(tile - round(tile * overlap), 1)
    starts = [*range(0, max(length - tile, 0), step), max(length - tile, 0)]
    seen = [(start, min(start + tile, length)) for start in starts]
    inner = [(after[0] + before[1]) // 2 for before, after in pairwise(seen)]
    return list(zip(seen, pairwise([0, *inner, length]), strict=True))
