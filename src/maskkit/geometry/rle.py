"""Run-length encoded masks in COCO's format. numpy only.

A *run-length record* is the COCO dict ``{"size": [H, W], "counts": bytes}`` (compressed) throughout the package;
faster-coco-eval computes with it. Dense masks are ``(N, H, W)``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool, Float, Int

from maskkit.geometry.resample import strips

Rle = dict[str, Any]

_AT_ONCE = 256
"""Masks whose run lengths are in memory at a time."""


def encode(dense: Bool[np.ndarray, "n h w"]) -> list[Rle]:
    """Run-length records of dense masks ``(N, H, W)``."""
    dense = np.asarray(dense)
    if len(dense) == 0:
        return []
    columns = np.asfortranarray(dense.transpose(1, 2, 0).astype(np.uint8))  # (H, W, N)
    return coco_mask.encode(columns)  # type: ignore[return-value]


def encode_region(region: Bool[np.ndarray, "h w"], top: int, left: int, size: tuple[int, int]) -> Rle:
    """The record of one mask of ``size`` that is empty outside ``region``, whose top left pixel is (top, left).

    Works on the region only, so that many small objects in a large image are cheap, and on some columns at a time.
    """
    height, width = size
    parts = [np.zeros(0, np.int64)]
    tall = region.shape[0]
    for columns in strips(tall + 1, region.shape[1]):
        part = region[:, columns].T
        flat = np.zeros(len(part) * (tall + 1) + 1, bool)  # a zero before, between and behind the columns
        flat[:-1].reshape(len(part), tall + 1)[:, 1:] = part
        column, row = divmod(np.flatnonzero(flat[1:] != flat[:-1]), tall + 1)  # run starts and ends in turn
        parts.append((column + (columns.start + left)) * height + row + top)
    edges = np.concatenate(parts)
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1  # a run that goes on at the top of the next column
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return from_counts(counts.tolist(), size)


def decode(rles: Sequence[Rle], size: tuple[int, int]) -> Bool[np.ndarray, "n h w"]:
    """Dense masks ``(N, H, W)`` of run-length records that all have ``size`` (H, W)."""
    if len(rles) == 0:
        return np.zeros((0, *size), bool)
    return np.ascontiguousarray(coco_mask.decode(list(rles)).transpose(2, 0, 1)).view(bool)  # (N, H, W)


def decode_region(rle: Rle) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """The part of one mask that contains all its pixels, and the (top, left) of that part; (0, 0) if empty.

    Works on the mask's box only, as `encode_region` does on its region; on whole columns where a run goes on from one
    into the next.
    """
    height, edges = rle["size"][0], np.cumsum(run_lengths(rle["counts"]))
    starts, ends = edges[: len(edges) // 2 * 2 : 2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        return np.zeros((0, 0), bool), 0, 0
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    top, tall = 0, height
    if (starts // height == (ends - 1) // height).all():  # no run goes on in the next column: its rows are enough
        top = int((starts % height).min())
        tall = int(((ends - 1) % height).max()) + 1 - top
    column = starts // height
    before = column * height + top - (column - left) * tall  # of a run, in the whole image and not in the part
    inside = np.stack([starts - before, ends - before], 1).ravel()
    counts = np.diff(inside, prepend=0, append=(right - left) * tall)
    part = coco_mask.decode(from_counts(counts.tolist(), (tall, right - left)))
    rows = np.flatnonzero(part.any(1))
    return np.ascontiguousarray(part[rows[0] : rows[-1] + 1]).view(bool), top + int(rows[0]), left


def from_counts(counts: Sequence[int], size: tuple[int, int]) -> Rle:
    """Compressed record of an uncompressed one (COCO stores crowds as a list of run lengths)."""
    return coco_mask.frPyObjects({"size": list(size), "counts": list(counts)}, *size)  # type: ignore[return-value]


def run_lengths(counts: bytes | str) -> Int[np.ndarray, "n"]:
    """Run lengths of COCO's compressed text: five bits per character, lowest first; the sixth bit marks continuation.

    From the fourth number on, each is the difference to the number two places before. Raises ``ValueError`` for a
    text that is malformed.
    """
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the counts are not COCO's compressed run lengths; export the mask again")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("the counts hold a number beyond any image; export the mask again")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shift, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)  # the last character carries the sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def surely_fill(counts: Sequence[bytes], pixels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which of the compressed texts are run lengths that fill so many pixels; many at once, for speed.

    False says that `run_lengths` has to look at the text: it is wrong, or written in an unusual way.
    """
    slices = [slice(i, i + _AT_ONCE) for i in range(0, len(counts), _AT_ONCE)]
    return np.concatenate([np.zeros(0, bool), *(_surely_fill(counts[s], pixels[s]) for s in slices)])


def _surely_fill(counts: Sequence[bytes], pixels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    sound = np.zeros(len(counts), bool)
    bounds = np.cumsum([len(c) for c in counts])
    codes = np.frombuffer(b"".join(counts), np.uint8)
    if len(codes) == 0 or codes.min() < 48 or codes.max() > 111:
        return sound
    codes = codes - np.uint8(48)
    last = codes & 32 == 0
    if not last[bounds[bounds > 0] - 1].all():  # a number goes on beyond its text
        return sound
    ends = np.flatnonzero(last)  # of each number
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # so many characters hold more than any image, and no sum of such numbers overflows
        return sound
    of = np.repeat(np.arange(len(bounds)), np.diff(np.searchsorted(ends, bounds), prepend=0))  # the text of each number
    numbers = (codes[starts] & 31).astype(np.int64)
    for digit in range(1, lengths.max()):
        longer = np.flatnonzero(lengths > digit)
        numbers[longer] |= (codes[starts[longer] + digit] & 31).astype(np.int64) << (5 * digit)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    first = np.flatnonzero(np.diff(of, prepend=-1))  # the first number of each text
    counted = np.diff(first, append=len(of))  # numbers of each text
    place = np.arange(len(of)) - np.repeat(first, counted)
    # from the fourth number on each is a difference to the number two places before: every other number is a sum
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        summed = np.cumsum(np.where(chain, numbers, 0))
        before = np.repeat(summed[first] - np.where(chain[first], numbers[first], 0), counted)
        numbers = np.where(chain, summed - before, numbers)
    bad = np.logical_or.reduceat((numbers < 0) | (numbers > pixels[of]), first)
    there = of[first]
    sound[there] = ~bad & (np.add.reduceat(numbers, first) == pixels[there])
    return sound


def shifted(rle: Rle, dx: int, dy: int) -> Rle:
    """The record of the mask moved by ``dx`` columns to the right and ``dy`` rows down; the image cuts it off.

    Where nothing does, only the first and the last run change. No number of the text is a difference to either of them,
    so their digits are exchanged and the rest is kept.
    """
    height, width = rle["size"]
    x1, y1, w, h = (round(v) for v in np.asarray(coco_mask.toBbox([rle])).reshape(4).tolist())  # type: ignore[arg-type]
    if (dx, dy) == (0, 0) or 0 in (w, h):
        return rle
    left, top, right, bottom = x1 + dx, y1 + dy, x1 + w + dx, y1 + h + dy
    inside = left >= 0 and top >= 0 and right <= width and bottom <= height
    last_is_free = (x1 + w < width or y1 + h < height) and (right < width or bottom < height)
    if inside and last_is_free:  # so that a run without the mask is the last one, before and after
        counts = rle["counts"]
        data = counts.encode("ascii") if isinstance(counts, str) else counts
        first = next(i for i, code in enumerate(data, 1) if not (code - 48) & 32)
        last = len(data) - 1
        while (data[last - 1] - 48) & 32:
            last -= 1
        step = dx * height + dy
        moved = _digits(_number(data[:first]) + step) + data[first:last] + _digits(_number(data[last:]) - step)
        return {"size": rle["size"], "counts": moved}
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return empty((height, width))
    region, _, _ = decode_region(rle)
    part = region[max(-top, 0) : height - top, max(-left, 0) : width - left]
    return encode_region(part, max(top, 0), max(left, 0), (height, width))


def _number(digits: bytes) -> int:
    """One number of the compressed text: five bits per character, lowest first; the last character has the sign."""
    value = sum(((code - 48) & 31) << (5 * i) for i, code in enumerate(digits))
    return value - (1 << (5 * len(digits))) if (digits[-1] - 48) & 16 else value


def _digits(number: int) -> bytes:
    """The characters of one number of the compressed text."""
    codes = []
    while True:
        code, number = number & 31, number >> 5
        if number == (-1 if code & 16 else 0):
            return bytes([*codes, code + 48])
        codes.append((code | 32) + 48)


def union(rles: Sequence[Rle]) -> Rle:
    """The record of all pixels that any of the masks has."""
    return rles[0] if len(rles) == 1 else _merge()(list(rles))


@functools.cache
def _merge() -> Callable[[list[Rle]], Rle]:
    """hotcoco's union, where it is installed, takes a fortieth of the time of the other."""
    try:
        import hotcoco
    except ImportError:
        return coco_mask.merge  # type: ignore[return-value]
    return hotcoco.mask.merge


def empty(size: tuple[int, int]) -> Rle:
    """The record of an empty mask."""
    return from_counts([size[0] * size[1]], size)


def area(rles: Sequence[Rle]) -> Int[np.ndarray, "n"]:
    """Number of pixels of each mask."""
    return np.asarray(coco_mask.area(list(rles)), np.int64).reshape(-1) if len(rles) else np.zeros(0, np.int64)


def boxes(rles: Sequence[Rle]) -> Float[np.ndarray, "n 4"]:
    """Tight boxes ``x1 y1 x2 y2`` (pixel edges) around each mask; zeros for an empty one."""
    if len(rles) == 0:
        return np.zeros((0, 4), np.float32)
    xywh = np.asarray(coco_mask.toBbox(list(rles)), np.float32).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def iou(a: Sequence[Rle], b: Sequence[Rle], crowd: Sequence[bool] | None = None) -> Float[np.ndarray, "n m"]:
    """IoU of every mask of ``a`` with every mask of ``b``; for a ``crowd`` of ``b`` the union is the mask of ``a``."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros((len(a), len(b)))
    flags = [int(c) for c in crowd] if crowd is not None else [0] * len(b)
    return np.asarray(coco_mask.iou(list(a), list(b), flags)).reshape(len(a), len(b))


def box_iou(
    a: Sequence[Sequence[float]] | Float[np.ndarray, "n 4"],
    b: Sequence[Sequence[float]] | Float[np.ndarray, "m 4"],
    crowd: Sequence[bool] | None = None,
) -> Float[np.ndarray, "n m"]:
    """The same for boxes ``x y w h``."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros((len(a), len(b)))
    flags = [int(c) for c in crowd] if crowd is not None else [0] * len(b)
    return np.asarray(coco_mask.iou(np.array(a, np.float64), np.array(b, np.float64), flags)).reshape(len(a), len(b))


def xywh(boxes: Float[np.ndarray, "n 4"] | Sequence[Sequence[float]]) -> Float[np.ndarray, "n 4"]:
    """``x y w h`` of boxes ``x1 y1 x2 y2``, as `box_iou` takes them."""
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def to_text(rle: Rle) -> Rle:
    """The record as JSON types: ``counts`` as text."""
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(v) for v in rle["size"]], "counts": text}
