"""Masks as patches: each mask is a bitmap of its own box, which makes augmentation cheap.

A crop or a pad changes offsets, a mirror is a view, and a resize touches only the pixels of the box, so the cost of
many small masks does not depend on the size of the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from maskkit.geometry import rle as rle_codec
from maskkit.geometry.resample import Taps, resize_taps
from maskkit.geometry.rle import Rle
from maskkit.targets import DenseMasks, Index, TargetMasks


class Patch(NamedTuple):
    """One mask: its pixels (0 or 1) and the position of its top left corner."""

    pixels: UInt8[np.ndarray, "h w"]
    x: int
    y: int


class Patches(TargetMasks):
    """`TargetMasks` of one size (H, W) kept as patches; an empty mask is a patch of height and width 0."""

    def __init__(self, size: tuple[int, int], patches: list[Patch]) -> None:
        super().__init__(size)
        self._patches = patches

    @classmethod
    def of(cls, masks: TargetMasks) -> "Patches":
        """Any masks as patches."""
        if isinstance(masks, Patches):
            return masks
        if isinstance(masks, DenseMasks):
            pixels = masks.dense().cpu().numpy().view(np.uint8)
            boxes = masks.boxes().int().tolist()
            return cls(
                masks.size, [Patch(p[y1:y2, x1:x2], x1, y1) for p, (x1, y1, x2, y2) in zip(pixels, boxes, strict=True)]
            )
        return cls(masks.size, [_decode(rle, masks.size) for rle in masks.rle()])

    @classmethod
    def empty_of(cls, n: int, size: tuple[int, int]) -> "Patches":
        """``n`` empty masks."""
        return cls(size, [_NOTHING] * n)

    def __len__(self) -> int:
        return len(self._patches)

    def __getitem__(self, index: Index) -> "Patches":
        if isinstance(index, slice):
            return Patches(self.size, self._patches[index])
        chosen = np.atleast_1d(np.asarray(index))
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        return Patches(self.size, [self._patches[int(i)] for i in chosen])

    def __add__(self, other: "Patches") -> "Patches":
        return Patches(self.size, self._patches + other._patches)

    def dense(self, size: tuple[int, int] | None = None) -> Bool[Tensor, "n h w"]:
        """Dense masks; at another ``size`` (H, W) resampled by `scale`."""
        if size is not None and tuple(size) != self.size:
            return self.scale(size).dense()
        canvas = np.zeros((len(self), *self.size), np.uint8)
        for layer, (pixels, x, y) in zip(canvas, self._patches, strict=True):
            layer[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return torch.from_numpy(canvas.view(bool))

    def paint(self, canvas: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"], values: Sequence[int]) -> None:
        """Write one value per mask to ``canvas``, in place, the last mask on top."""
        for (pixels, x, y), value in zip(self._patches, values, strict=True):
            part = canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]]
            np.copyto(part, value, where=pixels.view(bool))

    def rle(self) -> list[Rle]:
        """Compressed COCO records, one per mask."""
        return rle_codec.encode(self.dense().numpy())

    def boxes(self) -> Float[Tensor, "n 4"]:
        """Tight boxes ``x1 y1 x2 y2`` in pixel edges; zeros for an empty mask."""
        found = np.zeros((len(self), 4), np.float32)
        for box, (pixels, x, y) in zip(found, self._patches, strict=True):
            columns, rows = np.flatnonzero(pixels.any(0)), np.flatnonzero(pixels.any(1))
            if len(rows):
                box[:] = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
        return torch.from_numpy(found)

    def areas(self) -> Int[Tensor, "n"]:
        """Pixels of each mask."""
        return torch.tensor([np.count_nonzero(p.pixels) for p in self._patches], dtype=torch.int64)

    def only(self, chosen: Bool[np.ndarray, "n"]) -> "Patches":
        """The same number of masks, those not ``chosen`` empty."""
        return Patches(self.size, [p if keep else _NOTHING for p, keep in zip(self._patches, chosen, strict=True)])

    def union(self) -> Bool[np.ndarray, "h w"]:
        """The pixels that belong to any mask."""
        canvas = np.zeros(self.size, bool)
        self.paint(canvas, [True] * len(self))
        return canvas

    def cut(self, hidden: Bool[np.ndarray, "h w"]) -> "Patches":
        """The masks without the pixels of ``hidden``."""
        return Patches(
            self.size,
            [Patch(p * ~hidden[y : y + p.shape[0], x : x + p.shape[1]], x, y) for p, x, y in self._patches],
        )

    def window(self, x: int, y: int, size: tuple[int, int]) -> "Patches":
        """The part of the masks in a window of ``size`` (H, W) with corner (x, y); it may cross the border."""
        height, width = size
        seen = []
        for pixels, left, top in self._patches:
            left, top = left - x, top - y
            pixels = pixels[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
            seen.append(Patch(pixels, max(left, 0), max(top, 0)) if pixels.size else _NOTHING)
        return Patches(size, seen)

    def mirror(self, axis: int) -> "Patches":
        """The masks flipped: ``axis`` 1 swaps left and right, 0 top and bottom."""
        height, width = self.size
        if axis == 1:
            turned = [Patch(p[:, ::-1], width - x - p.shape[1], y) for p, x, y in self._patches]
        else:
            turned = [Patch(p[::-1], x, height - y - p.shape[0]) for p, x, y in self._patches]
        return Patches(self.size, turned)

    def scale(self, size: tuple[int, int]) -> "Patches":
        """The masks resized to ``size`` (H, W): bilinear, then ``> 0.5``, as `maskkit.geometry.masks.resample`."""
        if tuple(size) == self.size:
            return self
        rows, columns = resize_taps(self.size[0], size[0]), resize_taps(self.size[1], size[1])
        scaled = []
        for pixels, x, y in self._patches:
            if not pixels.size:
                scaled.append(_NOTHING)
                continue
            left, values = _resized(pixels.T, x, columns)
            top, values = _resized(values.T, y, rows)
            scaled.append(Patch((values > 0.5).view(np.uint8), left, top))
        return Patches(size, scaled)


_NOTHING = Patch(np.zeros((0, 0), np.uint8), 0, 0)


def _resized(rows: np.ndarray, start: int, taps: Taps) -> tuple[int, Float[np.ndarray, "r w"]]:
    """Rows of the result that rows ``start``, ``start + 1``, ... of the source touch, zeros around them, and the number
    of the first one."""
    pixels = taps.reached_by(np.array([start, start + len(rows) - 1]))
    near = taps.part(pixels)
    weight = near.weight.astype(np.float32)  # as torch: ties at 0.5 then fall on the same side
    values = np.zeros((len(weight), rows.shape[1]), np.float32)
    for cells, share in ((near.lower, 1 - weight), (near.upper, weight)):
        inside = cells - start
        known = (inside >= 0) & (inside < len(rows))
        values += rows[np.where(known, inside, 0)] * (share * known)[:, None]
    return pixels.start, values


def _decode(rle: Rle, size: tuple[int, int]) -> Patch:
    """The patch of a compressed record: only the columns of the mask are decoded."""
    runs = rle_codec.run_lengths(rle["counts"])
    height = size[0]
    edges = runs.cumsum()
    starts, ends = edges[0:-1:2], edges[1::2]  # of the foreground runs, column by column
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    if not len(starts):
        return _NOTHING
    (left, top), (right, bottom) = np.divmod(starts, height), np.divmod(ends - 1, height)
    x1, x2 = int(left[0]), int(right[-1]) + 1
    wraps = bool((left != right).any())  # a run continues in the next column, so the mask spans the full height
    y1, y2 = (0, height) if wraps else (int(top.min()), int(bottom.max()) + 1)
    tall = y2 - y1
    starts, ends = (left - x1) * tall + top - y1, (right - x1) * tall + bottom - y1 + 1
    bounds = np.stack([starts, ends], 1).reshape(-1)
    lengths = np.diff(bounds, prepend=0, append=(x2 - x1) * tall)
    pixels = np.repeat(np.arange(len(lengths), dtype=np.uint8) & 1, lengths)
    return Patch(pixels.reshape(x2 - x1, tall).T, x1, y1)
