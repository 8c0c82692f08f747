"""Masks on a grid over the network's whole input, and the position of original pixels on such grids."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from maskkit.decode.boxes import scored_boxes, separate_scores
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.resample import DENSE, Taps, strips, taps_at
from maskkit.prediction import Categories, ImageMeta, Masks, Prediction


@dataclass(frozen=True)
class OverInput:
    """Masks on a grid over the network's whole input, thresholded in original pixels."""

    outputs: ClassVar[type[ObjectMasks[np.ndarray]]] = ObjectMasks
    offset: float = 0.0
    """Offset of a value from the centre of its cell, in input pixels: 0.5 where the value belongs to the pixel
    ``stride // 2`` of its cell (CondInst and related methods)."""
    threshold: float = 0.5
    """What a pixel of a mask exceeds: 0.5 for probabilities, 0 where `ObjectMasks.masks` are logits (RTMDet-Ins)."""
    steps: int = 1
    """Interpolations on the way to the original: with 2 the first one leads to the pixels of the network's input."""

    def __call__(
        self, out: ObjectMasks[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The objects with a score above ``score``, in original pixels."""
        kept, found = scored_boxes(out, meta, score)
        grid, cut = out.masks[kept], self.threshold
        if self.steps == 2:
            of_rows, of_columns = (_through_input(cells, meta, axis) for axis, cells in enumerate(grid.shape[1:]))
            rles = [_weighted(mask, of_rows, of_columns, cut) for mask in grid]
        else:
            y, x = (input_taps(cells, meta, axis, self.offset) for axis, cells in enumerate(grid.shape[1:]))
            rles = [over_input(mask, y, x, meta.size, threshold=cut) for mask in grid]
        found.masks = Masks(meta.size, rles)
        found.mask_scores = separate_scores(out, kept, found)
        return Prediction(meta, categories, found)


def input_taps(cells: int, meta: ImageMeta, axis: int, offset: float = 0.0) -> Taps:
    """Taps of the original pixels of one axis (0: rows) on a grid of ``cells`` over the whole input."""
    scale, start = meta.affine[1 - axis, [1 - axis, 2]]  # the affine has (x, y), images have (y, x)
    cell = meta.input_size[axis] / cells  # input pixels per cell
    centre = (np.arange(meta.size[axis]) + 0.5 - start) / (scale * cell) - 0.5
    return taps_at(centre - offset / cell, cells)


def in_two_steps(
    maps: Float[np.ndarray, "c h w"], meta: ImageMeta, align_corners: bool = False
) -> Iterator[tuple[slice, Float[np.ndarray, "c rows width"]]]:
    """Maps at the original pixels, strip by strip: interpolated to the network's input first, then, without the
    padding, to the image, as in detectron2 and mmsegmentation. ``align_corners``: as in `torch`, both times."""
    y, x = (
        _through_input(cells, meta, axis, align_corners, padding=False) for axis, cells in enumerate(maps.shape[1:])
    )
    for rows in strips(16 * len(maps) * meta.size[1], meta.size[0]):  # the fewer rows, the fewer cells take part
        hit = np.flatnonzero(y[rows].any(0))
        near = slice(hit[0], hit[-1] + 1)
        yield rows, y[rows, near] @ (maps[:, near] @ x.T)  # (C, H', W)


def _through_input(
    cells: int, meta: ImageMeta, axis: int, align_corners: bool = False, *, padding: bool = True
) -> Float[np.ndarray, "n cells"]:
    """The weight of each cell of one axis in each original pixel after two interpolations.

    Where the second one starts from, the input, has its ``padding`` on the right and below, or is cut off there.
    """
    pixels, size = meta.input_size[axis], meta.size[axis]
    scale, offset = meta.affine[1 - axis, [1 - axis, 2]]
    end = max(-offset / scale, (size - offset) / scale)  # of the image in the input
    seen = pixels if padding else min(max(round(end), 1), pixels)
    if align_corners:
        first = np.linspace(0, cells - 1, pixels)
        ends = (0, seen - 1) if scale > 0 else (seen - 1, 0)
        second = np.linspace(*ends, size)
    else:
        first = (np.arange(pixels) + 0.5) * (cells / pixels) - 0.5
        second = (np.arange(size) + 0.5 - offset) / scale - 0.5
    step = taps_at(first, cells)
    shares = np.zeros((pixels, cells), np.float32)
    each = np.arange(pixels)
    shares[each, step.lower] = 1 - step.weight
    shares[each, step.upper] += step.weight
    step = taps_at(second, seen)
    return shares[step.lower] * (1 - step.weight[:, None]) + shares[step.upper] * step.weight[:, None]


def over_input(
    mask: Float[np.ndarray, "h w"],
    y: Taps,
    x: Taps,
    size: tuple[int, int],
    top: int = 0,
    left: int = 0,
    threshold: float = 0.5,
) -> rle_codec.Rle:
    """Run lengths, at the original ``size`` (H, W), of where a mask over the network's input exceeds ``threshold``.

    A mask of a part of the grid starts at the cell (top, left), with a border of zeros except at the edge of the grid.
    """
    likely = mask > threshold  # a value between neighbours exceeds it only where one of them does
    rows, columns = np.flatnonzero(likely.any(1)), np.flatnonzero(likely.any(0))
    if len(rows) == 0:
        return rle_codec.empty(size)
    tall, wide = y.reached_by(rows + top), x.reached_by(columns + left)
    first = max(rows[0] - 1, 0)
    near = mask[first : rows[-1] + 2]  # (h', w)
    lower, upper, fx = x.lower[wide] - left, x.upper[wide] - left, x.weight[wide]
    lines = near[:, lower] * (1 - fx) + near[:, upper] * fx  # (h', W'): the few rows first, gathering columns is slow
    above, below, fy = y.lower[tall] - top - first, y.upper[tall] - top - first, y.weight[tall]
    region = _exceeding(lines, above, below, fy, threshold)
    return rle_codec.encode_region(region, tall.start, wide.start, size)


def _exceeding(
    lines: Float[np.ndarray, "h w"],
    above: Int[np.ndarray, "n"],
    below: Int[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
    threshold: float,
) -> Bool[np.ndarray, "n w"]:
    """Where ``lines``, interpolated down the columns, exceed ``threshold``: pixels between the rows ``above`` and
    ``below``, with the share ``weight`` of the latter.

    What lies between two values that exceed it exceeds it too, and between two that do not, nothing does; only the
    rest is interpolated.
    """
    sure = lines > threshold
    region = sure[above]
    changes = np.flatnonzero(np.diff(above) | np.diff(below)) + 1  # what is between them lies between the same rows
    for start, stop in pairwise([0, *changes.tolist(), len(above)]):
        if start == stop:
            continue
        upper, lower = above[start], below[start]
        mixed = np.flatnonzero(sure[upper] != sure[lower])
        if len(mixed):
            fy = weight[start:stop, None]
            values = lines[upper, mixed] * (1 - fy) + lines[lower, mixed] * fy
            region[start:stop, mixed] = values > threshold
    return region


def _weighted(
    mask: Float[np.ndarray, "h w"], y: Float[np.ndarray, "n h"], x: Float[np.ndarray, "m w"], threshold: float
) -> rle_codec.Rle:
    """Run lengths of where a mask exceeds ``threshold`` after both axes are interpolated with the given weights."""
    size = (len(y), len(x))
    likely = mask > threshold  # a weighted mean exceeds it only where a cell with some weight does
    rows, columns = np.flatnonzero(likely.any(1)), np.flatnonzero(likely.any(0))
    if len(rows) == 0:
        return rle_codec.empty(size)
    tall, high = _touched(y, rows)
    wide, broad = _touched(x, columns)
    lines = mask[high, broad] @ x[wide, broad].T  # (h', W')
    region = np.empty((tall.stop - tall.start, lines.shape[1]), bool)  # (H', W')
    for strip in strips(region.shape[1], region.shape[0], DENSE):
        region[strip] = y[tall, high][strip] @ lines > threshold
    return rle_codec.encode_region(region, tall.start, wide.start, size)


def _touched(weights: Float[np.ndarray, "n cells"], cells: Int[np.ndarray, "k"]) -> tuple[slice, slice]:
    """The pixels that the cells from the first to the last of ``cells`` contribute to, and all cells that do there."""
    pixels = np.flatnonzero(weights[:, cells[0] : cells[-1] + 1].any(1))
    if len(pixels) == 0:
        return slice(0, 0), slice(0, 0)
    touched = slice(pixels[0], pixels[-1] + 1)
    near = np.flatnonzero(weights[touched].any(0))
    return touched, slice(near[0], near[-1] + 1)
