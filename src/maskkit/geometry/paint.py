"""Tinting of the pixels of an image, for overlays, reports and samples. numpy and scipy only.

Classes, segments or objects are given as a map of numbers (H, W) and a list of colours. A number without a colour, such
as -1, leaves its pixel unchanged.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from colorsys import hsv_to_rgb

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage

from maskkit.geometry.resample import strips

STRIP = 1 << 20
"""Pixels blended at once, which bounds the memory for large images."""

Region = tuple[Bool[np.ndarray, "h w"], int, int]
"""A part of a mask that contains all its pixels, and the (top, left) of that part in the image."""

_SHADES = np.array([1.0, 0.7, 0.5, 0.85, 0.6], np.float32)
"""Brightness of the segments of one class, in turn."""


def tint(
    image: UInt8[np.ndarray, "h w 3"],
    numbers: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "n 3"] | Float[np.ndarray, "n 3"],
    opacity: float,
    *,
    copy: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in which pixels with the number k are blended with ``colours[k]``: a copy, or the image itself."""
    out, table = image.copy() if copy else image, np.asarray(colours, np.float32).reshape(-1, 3)
    for rows in strips(image.shape[1], len(image), STRIP):
        which = numbers[rows]
        _blend(out[rows], (which >= 0) & (which < len(table)), which, table, opacity)
    return out


def _blend(
    part: UInt8[np.ndarray, "h w 3"],
    inside: Bool[np.ndarray, "h w"],
    numbers: Int[np.ndarray, "h w"],
    table: Float[np.ndarray, "n 3"],
    opacity: float,
) -> None:
    share, which = np.float32(opacity), np.flatnonzero(inside)
    whole = np.ascontiguousarray(part)
    flat = whole.reshape(-1, 3)  # rows of three are taken faster than places of an image
    flat[which] = flat.take(which, 0) * (1 - share) + (table * share).take(numbers.ravel().take(which), 0)
    if whole is not part:
        part[...] = whole


def stack(masks: Iterable[Region], size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """For each pixel the index of the last mask that covers it, or -1. Only one mask is dense at a time."""
    numbers = np.full(size, -1, np.int32)
    for i, (mask, top, left) in enumerate(masks):
        numbers[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = i
    return numbers


def borders(numbers: Int[np.ndarray, "h w"], radius: int) -> Bool[np.ndarray, "h w"]:
    """Pixels closer than ``radius`` to a pixel with another number; 1: direct neighbours, the image's edge excluded."""
    edge = np.zeros(numbers.shape, bool)
    across, down = numbers[:, 1:] != numbers[:, :-1], numbers[1:] != numbers[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return ndimage.maximum_filter(edge, 2 * radius - 1) if radius > 1 else edge


def _borders_in_strips(
    numbers: Int[np.ndarray, "h w"], radius: int
) -> Iterator[tuple[slice, Bool[np.ndarray, "rows w"]]]:
    """`borders`, some rows at a time: those within ``radius`` of them take part."""
    for rows in strips(numbers.shape[1], len(numbers), STRIP):
        first = max(rows.start - radius, 0)
        edge = borders(numbers[first : rows.stop + radius], radius)
        yield rows, edge[rows.start - first : rows.stop - first]


def paint_objects(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Iterable[Region],
    colours: UInt8[np.ndarray, "n 3"],
    opacity: float = 0.45,
    contour: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image with each mask tinted and its contour, ``contour`` pixels wide, drawn; later masks on top."""
    numbers = stack(masks, (image.shape[0], image.shape[1]))
    tinted, table = image.copy(), np.asarray(colours, np.float32).reshape(-1, 3)
    drawn = np.flatnonzero((numbers >= 0).any(1))
    if len(drawn) == 0:
        return tinted
    there = slice(
        max(int(drawn[0]) - contour - 1, 0), int(drawn[-1]) + contour + 2
    )  # rows with objects and around them
    part, numbers = tinted[there], numbers[there]
    tint(part, numbers, colours, opacity, copy=False)
    if contour:
        for rows, edge in _borders_in_strips(numbers, contour):
            _blend(part[rows], edge & (numbers[rows] >= 0), numbers[rows], table, 1.0)
    return tinted


def paint_classes(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "h w"],
    classes: int,
    opacity: float = 0.55,
    *,
    untinted: Collection[int] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image tinted in the colours of its classes; ``untinted`` ones and labels from ``classes`` on leave it
    unchanged."""
    out, kept = image.copy(), np.arange(256)
    kept[list(untinted)] = -1
    for rows in strips(image.shape[1], len(image), STRIP):
        tint(out[rows], kept[labels[rows]], class_colours(classes), opacity, copy=False)
    return out


def paint_segments(
    image: UInt8[np.ndarray, "h w 3"],
    numbers: Int[np.ndarray, "h w"],
    labels: Sequence[int] | Int[np.ndarray, "n"],
    classes: int,
    opacity: float = 0.55,
    *,
    shades: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image tinted segment by segment, with white lines between them; 0 in ``numbers`` leaves it unchanged.

    Segment 1 has the class ``labels[0]``, and so on. With ``shades`` the segments of one class differ in brightness.
    """
    labels = np.asarray(labels, np.int64)
    rank = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)], np.int64)  # within the class
    colours = class_colours(classes)[labels] * _SHADES[rank % len(_SHADES) if shades else rank * 0, None]
    tinted = image.copy()
    for rows in strips(image.shape[1], len(image), STRIP):
        tint(tinted[rows], numbers[rows] - 1, colours, opacity, copy=False)
    for rows, lines in _borders_in_strips(numbers, max(1, round(min(numbers.shape) / 600))):
        tint(tinted[rows], lines.astype(np.int8) - 1, np.full((1, 3), 255), 2 / 3, copy=False)
    return tinted


def class_colours(count: int) -> UInt8[np.ndarray, "n 3"]:
    """A colour per class: hues in steps of the golden ratio, in three brightnesses, so that neighbours differ."""
    hues = (np.arange(count) * 0.61803398875) % 1
    values = np.array([0.95, 0.7, 0.5])[np.arange(count) % 3]
    colours = [[255 * c for c in hsv_to_rgb(h, 0.75, v)] for h, v in zip(hues, values, strict=True)]
    return np.array(colours, np.uint8).reshape(-1, 3)
