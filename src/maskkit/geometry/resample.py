"""Bilinear interpolation along one axis, in numpy: the two cells around each pixel and the weight of the
second.

Every bilinear step outside a network uses these taps; `maskkit.geometry.resample_tensors` is their counterpart on
tensors. They follow ``F.interpolate(align_corners=False)``: the value of a cell belongs to its centre, and a pixel
beyond the outermost centres takes the outermost value.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

Rounding = Literal["nearest", "down", "longer_down"]

DENSE = 1 << 22
"""Values of a mask that are computed at once, which bounds the memory for large images."""


class Taps(NamedTuple):
    """The two neighbouring cells of each of n pixels along one axis."""

    lower: Int[np.ndarray, "n"]
    """The cell whose centre is at or below the pixel's."""
    upper: Int[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]
    """Share of the upper cell, 0 to 1."""

    def part(self, pixels: slice) -> "Taps":
        """The taps of some of the pixels."""
        return Taps(*(values[pixels] for values in self))

    def reached_by(self, cells: Int[np.ndarray, "k"]) -> slice:
        """The pixels that the cells from the first to the last of ``cells`` contribute to."""
        pixels = np.flatnonzero((self.upper >= cells[0]) & (self.lower <= cells[-1]))
        return slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0)


def taps_at(places: Float[np.ndarray, "n"], cells: int) -> Taps:
    """Taps of ``places``, measured in cells from the centre of the first cell."""
    places = np.clip(places, 0, cells - 1).astype(np.float32)
    lower = places.astype(np.int64)
    return Taps(lower, np.minimum(lower + 1, cells - 1), places - lower)


def resize_taps(cells: int, pixels: int) -> Taps:
    """Taps of a resize from ``cells`` to ``pixels``, in float32 as in torch, so that values at 0.5 round alike."""
    half = np.float32(0.5)
    return taps_at((np.arange(pixels, dtype=np.float32) + half) * np.float32(cells / pixels) - half, cells)


def interpolate(maps: Float[np.ndarray, "*c h w"], y: Taps, x: Taps) -> Float[np.ndarray, "*c rows columns"]:
    """Maps at the pixels of the two axes. Only the rows that are needed are read."""
    first = min(y.lower.min(), y.upper.min())
    near = maps[..., first : max(y.lower.max(), y.upper.max()) + 1, :]  # (..., h', w)
    lines = near[..., x.lower] * (1 - x.weight) + near[..., x.upper] * x.weight  # (..., h', W)
    weight = y.weight[:, None]
    return lines[..., y.lower - first, :] * (1 - weight) + lines[..., y.upper - first, :] * weight  # (..., H, W)


def strips(width: int, height: int, values: int = 1 << 24) -> Iterator[slice]:
    """Slices of ``height`` rows of ``width`` values each, with at most about ``values`` values per slice."""
    at_once = max(1, values // max(1, width))
    for start in range(0, height, at_once):
        yield slice(start, start + at_once)


def opencv_taps(cells: int, pixels: int, precision: type = np.float64) -> Taps:
    """Taps of OpenCV's resize, as `resize_taps` but for the last digits: float64 for floats, float32 for bytes.

    Beyond the outermost centres the weight goes on, between that cell and itself.
    """
    places = ((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5).astype(precision)
    lower = np.floor(places)
    first = lower.astype(np.int64)
    return Taps(first.clip(0, cells - 1), (first + 1).clip(0, cells - 1), places - lower)


def resize(
    pixels: UInt8[np.ndarray, "h w c"], size: tuple[int, int], taps: Callable[[int, int], Taps] = resize_taps
) -> Float[np.ndarray, "rows columns c"]:
    """uint8 pixels at another ``size`` (H, W), float32 and not rounded, bit for bit equal to ``F.interpolate``.

    The network's input has to be the same with and without torch. torch interpolates with fused multiply-adds, which
    round once; here product and sum are exact in float64 and rounded once at the end.
    """
    y, x = (taps(cells, count) for cells, count in zip(pixels.shape[:2], size, strict=True))
    nearer = np.where(x.weight < 0.5, x.lower, x.upper)
    share = np.where(x.weight < 0.5, x.weight, x.weight - 1)[:, None].astype(np.float64)  # of the step from lower
    out = np.empty((*size, pixels.shape[2]), np.float32)
    for rows in strips(pixels.shape[1] * pixels.shape[2], size[0], 1 << 17):  # few enough to stay in the cache
        lower, upper = pixels[y.lower[rows]], pixels[y.upper[rows]]
        step = np.subtract(upper, lower, dtype=np.int16)
        lines = (lower + y.weight[rows, None, None].astype(np.float64) * step).astype(np.float32)  # (rows, w, c)
        step = lines[:, x.upper] - lines[:, x.lower]
        out[rows] = lines[:, nearer] + share * step
    return out


def resize_bytes(pixels: UInt8[np.ndarray, "h w c"], size: tuple[int, int]) -> UInt8[np.ndarray, "rows columns c"]:
    """uint8 pixels at another ``size`` (H, W), rounded to bytes as ``cv2.resize`` with ``INTER_LINEAR`` does.

    Weights have 11 bits, the weighted sum of a row is cut to 15 bits, the contribution of either row to quarters, and
    their sum is rounded: OpenCV's vectorised path. Its builds differ from one another by one grey level.
    """
    down, across = (opencv_taps(cells, count, np.float32) for cells, count in zip(pixels.shape[:2], size, strict=True))
    near, far = _weights(across)
    out = np.empty((*size, pixels.shape[2]), np.uint8)
    for rows in strips(size[1] * pixels.shape[2], size[0], 1 << 17):  # few enough to stay in the cache
        lower, upper = down.lower[rows], down.upper[rows]
        needed = np.unique(np.concatenate([lower, upper]))
        part = pixels[needed]
        lines = (part[:, across.lower] * near[:, None] + part[:, across.upper] * far[:, None]) >> 4  # (needed, W, c)
        above, below = (weight[:, None, None] for weight in _weights(down.part(rows)))
        total = (lines[np.searchsorted(needed, lower)] * above >> 16) + (
            lines[np.searchsorted(needed, upper)] * below >> 16
        )
        out[rows] = (total + 2) >> 2
    return out


def _weights(taps: Taps) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The weights of both cells as multiples of 1 / 2048."""
    near = np.rint((1 - taps.weight) * np.float32(2048))
    return near.astype(np.int32), np.rint(taps.weight * np.float32(2048)).astype(np.int32)


def fitted_size(
    have: Sequence[int],
    size: tuple[int, int],
    mode: Literal["stretch", "pad", "shorter"],
    rounding: Rounding = "nearest",
) -> tuple[int, int]:
    """The (height, width) that an image of size ``have`` takes inside ``size``, by the modes and the rounding of
    `InputConfig`."""
    if mode == "stretch":
        return size
    if mode == "shorter":
        return _by_the_shorter_side(have, size, rounding)
    factor = min(size[0] / have[0], size[1] / have[1])
    nearest = (max(1, int(side * factor + 0.5)) for side in have)
    height, width = (min(most, side) for most, side in zip(size, nearest, strict=True))
    return height, width


def _by_the_shorter_side(have: Sequence[int], size: tuple[int, int], rounding: Rounding) -> tuple[int, int]:
    short, long = sorted(have)
    if rounding == "longer_down":
        new = size[0], size[0] * long // short
        if new[1] > size[1]:
            new = max(1, size[1] * new[0] // new[1]), size[1]
        return new if have[0] <= have[1] else (new[1], new[0])
    factor = min(size[0] / short, size[1] / long)
    half = 0.5 if rounding == "nearest" else 0.0
    return max(1, int(have[0] * factor + half)), max(1, int(have[1] * factor + half))
