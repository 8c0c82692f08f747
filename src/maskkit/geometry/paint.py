"""Tinting of the pixels of an image, for overlays, reports and samples. numpy, scipy and Pillow only.

Classes, segments or objects are given as a map of numbers (H, W) and a list of colours. A number without a colour, such
as -1, leaves its pixel unchanged.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from colorsys import hsv_to_rgb

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
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
) -> Image.Image:
    """The RGB image with each mask tinted and its contour, ``contour`` pixels wide, drawn; later masks on top.

    The contour lies inside the mask, and not along the image's edge. Masks may be an iterator, so that one is dense at
    a time.
    """
    plain = Image.fromarray(image)
    painted = plain.copy()
    for (mask, top, left), colour in zip(masks, np.asarray(colours).reshape(-1, 3), strict=False):
        height, width = mask.shape
        if not mask.any():
            continue
        box, ink = (left, top, left + width, top + height), tuple(colour.tolist())
        tinted = Image.blend(plain.crop(box), Image.new("RGB", (width, height), ink), opacity)
        painted.paste(tinted, box, Image.fromarray(mask))
        if contour:
            ends = (top == 0, left == 0, box[3] == painted.height, box[2] == painted.width)
            line = mask & ~_shrunk(mask, contour, *ends)
            painted.paste(ink, box, Image.fromarray(line))
    return painted


def _shrunk(
    mask: Bool[np.ndarray, "h w"], steps: int, top: bool, left: bool, bottom: bool, right: bool
) -> Bool[np.ndarray, "h w"]:
    """The mask without its outermost ``steps`` pixels: first those with a neighbour outside on one of four sides, then
    those on one of eight. At the sides that are true it goes on.
    """
    around = np.zeros(np.add(mask.shape, 2 * steps), bool)
    around[steps:-steps, steps:-steps] = mask
    around[:steps] |= top
    around[:, :steps] |= left
    around[-steps:] |= bottom
    around[:, -steps:] |= right
    inside = around[1:-1, 1:-1] & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return _all_of(_all_of(inside, 2 * steps - 1).T, 2 * steps - 1).T


def _all_of(values: Bool[np.ndarray, "n w"], count: int) -> Bool[np.ndarray, "m w"]:
    """Whether so many values in a row, down the columns, are all true."""
    have = 1
    while have < count:
        step = min(have, count - have)
        values = values[:-step] & values[step:]
        have += step
    return values


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
