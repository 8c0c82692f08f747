"""Merges the results of overlapping tiles into the result of the whole image.

Two parts of one object are recognised by their masks, which agree in the overlap that both tiles see. Masks stay run
lengths; none is ever a dense array of the whole image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from maskkit.geometry import rle as rle_codec
from maskkit.geometry.rle import Rle
from maskkit.geometry.windows import Rect, Window
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction

AGREEMENT = 0.5
"""IoU of two masks in the overlap of their tiles from which on they are of one object."""


def stitch(parts: Iterable[tuple[Window, Prediction]], meta: ImageMeta, categories: Categories) -> Prediction:
    """The prediction for the image ``meta`` from those for its tiles, which are in the order of `windows`."""
    found = Prediction(meta, categories)
    objects: list[_Object] = []
    segments = _Segments(meta.size)
    kinds = set()
    for window, part in parts:
        if part.semantic is not None:
            if found.semantic is None:
                found.semantic = np.zeros(meta.size, np.uint8)
            _paste(found.semantic, part.semantic, window)
        elif part.panoptic is not None:
            segments.add(window, part.panoptic)
        else:
            assert part.instances is not None
            objects += _objects(window, part.instances, meta.size)
            kinds.add((part.instances.masks is not None, part.instances.mask_scores is not None))
    if segments.known:
        found.panoptic = segments.joined()
    elif kinds:
        ((masks, mask_scores),) = kinds
        found.instances = _instances(_joined(objects), meta.size, masks, mask_scores)
    return found


def _paste(canvas: np.ndarray, part: np.ndarray, window: Window) -> None:
    """Write the pixels that the tile owns."""
    (top, left, _, _), own = window.seen, window.own
    canvas[own.top : own.bottom, own.left : own.right] = part[
        own.top - top : own.bottom - top, own.left - left : own.right - left
    ]


_Pixels = tuple[Bool[np.ndarray, "_ _"], int, int]
"""A part of a mask, and the row and column of its corner."""


# objects --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Object:
    """An object of one tile, in pixels of the whole image."""

    window: Window
    label: int
    score: float
    mask_score: float
    box: Float[np.ndarray, "4"]
    mask: Rle | None
    """Over the whole image."""
    cut: bool
    """Whether it touches a border of the tile that is not a border of the image."""

    @property
    def is_owned(self) -> bool:
        """Whether its tile owns the centre of its box."""
        own, (x, y) = self.window.own, (self.box[:2] + self.box[2:]) / 2
        return bool(own.left <= x < own.right and own.top <= y < own.bottom)

    def pixels(self) -> _Pixels:
        """Its mask; without one the box is filled."""
        if self.mask is not None:
            return rle_codec.decode_region(self.mask)
        left, top, right, bottom = (int(v) for v in np.round(self.box))
        return np.ones((max(bottom - top, 0), max(right - left, 0)), bool), top, left

    def inside(self, place: Rect) -> _Pixels:
        """The part of its mask inside ``place``."""
        region, top, left = self.pixels()
        first = max(place.top - top, 0), max(place.left - left, 0)
        region = region[first[0] : max(place.bottom - top, 0), first[1] : max(place.right - left, 0)]
        return region, top + first[0], left + first[1]


def _objects(window: Window, found: Instances, size: tuple[int, int]) -> Iterator[_Object]:
    seen = window.seen
    height, width = seen.size
    inner = np.array([seen.left > 0, seen.top > 0, seen.right < size[1], seen.bottom < size[0]])
    shift = np.array([seen.left, seen.top] * 2, np.float32)
    for i in range(len(found)):
        box, mask = found.boxes[i], None
        if found.masks is not None:
            region, top, left = rle_codec.decode_region(found.masks.rle()[i])
            mask = rle_codec.encode_region(region, top + seen.top, left + seen.left, size)
            if region.size:
                box = np.array([left, top, left + region.shape[1], top + region.shape[0]], np.float32)
        near = np.array([box[0] < 1, box[1] < 1, box[2] > width - 1, box[3] > height - 1])
        mask_score = float(found.mask_scores[i]) if found.mask_scores is not None else 0.0
        score, label = float(found.scores[i]), int(found.labels[i])
        yield _Object(window, label, score, mask_score, found.boxes[i] + shift, mask, bool((near & inner).any()))


def _joined(objects: list[_Object]) -> list[_Object]:
    """Whole objects, best score first, without duplicates (`_without_duplicates`); fragments that another tile does not
    confirm are dropped (`_union`)."""
    groups = _Groups(len(objects))
    pairs = sorted(_agreements(objects), reverse=True)

    def tiles(number: int) -> set[Window]:
        return {objects[k].window for k in groups.of(number)}

    for agreement, i, j in pairs:
        # two detections of one tile, which may overlap, are two objects
        if agreement >= AGREEMENT and not tiles(i) & tiles(j):
            groups.join(i, j)
    whole = {group[0]: _union([objects[i] for i in group]) for group in groups}
    rivals: dict[int, set[int]] = defaultdict(set)
    for _, i, j in pairs:
        if tiles(i) != tiles(j):  # else every tile that sees them sees two
            a, b = groups.of(i)[0], groups.of(j)[0]
            rivals[a].add(b)
            rivals[b].add(a)
    return _without_duplicates({n: found for n, found in whole.items() if found is not None}, rivals)


def _without_duplicates(whole: dict[int, _Object], rivals: dict[int, set[int]]) -> list[_Object]:
    """Of two rivals whose masks have an IoU of `AGREEMENT` the one with the better score; best score first.

    Where a network sees two objects in one tile and one in its neighbour, both detections agree with that one, which
    can join only one of them.
    """
    kept: dict[int, _Object] = {}
    for number in sorted(whole, key=lambda n: -whole[n].score):
        found = whole[number]
        if all(
            _agreement(found.pixels(), kept[other].pixels()) < AGREEMENT for other in rivals[number] if other in kept
        ):
            kept[number] = found
    return list(kept.values())


def _agreements(objects: list[_Object]) -> Iterator[tuple[float, int, int]]:
    """The agreement of every two objects of one class in the overlap of their tiles, with their numbers."""
    by_tile: dict[Window, list[int]] = defaultdict(list)
    for i, found in enumerate(objects):
        by_tile[found.window].append(i)
    tiles = list(by_tile)
    boxes = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    labels = np.array([o.label for o in objects])
    for number, first in enumerate(tiles):
        for second in tiles[number + 1 :]:
            if second.seen.top >= first.seen.bottom:
                break  # tiles come row by row: all that follow are further down
            band = first.seen.meet(second.seen)
            if 0 in band.size:
                continue
            a, b = (_within(by_tile[t], boxes, band) for t in (first, second))
            low = np.maximum(boxes[a][:, None, :2], boxes[b][None, :, :2])
            high = np.minimum(boxes[a][:, None, 2:], boxes[b][None, :, 2:])
            meet = (low < high).all(-1) & (labels[a][:, None] == labels[b])
            insides = {int(i): objects[i].inside(band) for i in {*a[meet.any(1)], *b[meet.any(0)]}}
            for i, j in zip(*(index.tolist() for index in np.nonzero(meet)), strict=True):
                one, other = int(a[i]), int(b[j])
                yield _agreement(insides[one], insides[other]), one, other


def _within(numbers: list[int], boxes: Float[np.ndarray, "n 4"], place: Rect) -> Int[np.ndarray, "m"]:
    """Those of ``numbers`` whose boxes overlap ``place``."""
    index = np.array(numbers)
    x1, y1, x2, y2 = boxes[index].T
    return index[(x1 < place.right) & (x2 > place.left) & (y1 < place.bottom) & (y2 > place.top)]


def _agreement(a: _Pixels, b: _Pixels) -> float:
    """IoU of two masks."""
    (one, top, left), (other, top_b, left_b) = a, b
    rows = max(top, top_b), min(top + one.shape[0], top_b + other.shape[0])
    columns = max(left, left_b), min(left + one.shape[1], left_b + other.shape[1])
    if rows[0] >= rows[1] or columns[0] >= columns[1]:
        return 0.0
    both = one[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
    both = both & other[rows[0] - top_b : rows[1] - top_b, columns[0] - left_b : columns[1] - left_b]
    inter = int(both.sum())
    return inter / max(int(one.sum()) + int(other.sum()) - inter, 1)


def _union(parts: list[_Object]) -> _Object | None:
    """One object from its parts: the part of the tile that owns its centre if it is whole there, else their union.

    None for a single part whose centre another tile owns: that tile, which sees it better, did not find it.
    """
    owner = next((o for o in parts if o.is_owned), None)
    if len(parts) == 1 or (owner is not None and not owner.cut):
        return owner
    best = max(parts, key=lambda o: o.score)
    boxes = np.array([o.box for o in parts])
    masks = [o.mask for o in parts if o.mask is not None]
    return replace(
        best,
        mask_score=max(o.mask_score for o in parts),
        box=np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]),
        mask=rle_codec.union(masks) if masks else None,
    )


def _instances(objects: list[_Object], size: tuple[int, int], masks: bool, mask_scores: bool) -> Instances:
    boxes = np.array([o.box for o in objects], np.float32).reshape(-1, 4)
    return Instances(
        np.clip(boxes, 0, np.array(size[::-1] * 2, np.float32)),
        np.array([o.label for o in objects], np.int64),
        np.array([o.score for o in objects], np.float32),
        Masks(size, [o.mask for o in objects if o.mask is not None]) if masks else None,
        np.array([o.mask_score for o in objects], np.float32) if mask_scores else None,
    )


class _Groups:
    """A partition of the numbers 0 to n - 1, at first each in its own group."""

    def __init__(self, count: int) -> None:
        self._group = [[i] for i in range(count)]

    def of(self, number: int) -> list[int]:
        """The group of a number."""
        return self._group[number]

    def join(self, i: int, j: int) -> None:
        """Make the groups of two numbers one."""
        one, other = self._group[i], self._group[j]
        if one is not other:
            one += other
            for number in other:
                self._group[number] = one

    def __iter__(self) -> Iterator[list[int]]:
        return (group for number, group in enumerate(self._group) if group[0] == number)


# segments -------------------------------------------------------------------------------------------------------------


class _Segments:
    """The segments of panoptic tiles, with ids that are unique in the whole image."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._ids = np.zeros(size, np.int32)
        self._segments: list[PanopticSegment] = []
        self._tiles: list[tuple[Window, Int[np.ndarray, "h w"]]] = []
        """Those that may overlap later tiles."""
        self._pairs: list[tuple[float, int, int]] = []
        self.known = False

    def add(self, window: Window, part: Panoptic) -> None:
        """Add the segments of a tile."""
        self.known = True
        numbers = np.zeros(max([0, *(s.id for s in part.segments)]) + 1, np.int32)
        for segment in part.segments:
            self._segments.append(replace(segment, id=len(self._segments) + 1))
            numbers[segment.id] = len(self._segments)
        ids = numbers[part.ids]
        _paste(self._ids, ids, window)
        self._tiles = [(w, i) for w, i in self._tiles if w.seen.bottom > window.seen.top]
        for other, earlier in self._tiles:
            band = window.seen.meet(other.seen)
            if 0 not in band.size:
                self._compare(_crop(earlier, other, band), _crop(ids, window, band))
        self._tiles.append((window, ids))

    def _compare(self, a: Int[np.ndarray, "h w"], b: Int[np.ndarray, "h w"]) -> None:
        """Record the agreement of the things of two tiles; ``a`` and ``b`` are their ids in the overlap."""
        both = (a > 0) & (b > 0)
        pairs, counts = np.unique(np.stack([a[both], b[both]]), axis=1, return_counts=True)
        areas = [dict(zip(*(v.tolist() for v in np.unique(m, return_counts=True)), strict=True)) for m in (a, b)]
        for (i, j), inter in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            one, other = self._segments[i - 1], self._segments[j - 1]
            if one.label == other.label and one.thing and other.thing:
                self._pairs.append((inter / (areas[0][i] + areas[1][j] - inter), i - 1, j - 1))

    def joined(self) -> Panoptic:
        """The segments of the image that have pixels, numbered from 1."""
        groups = _Groups(len(self._segments))
        for agreement, i, j in sorted(self._pairs, reverse=True):
            if agreement >= AGREEMENT:
                groups.join(i, j)
        first: dict[int, int] = {}
        for number, segment in enumerate(self._segments):  # stuff of one class is one segment
            if not segment.thing:
                groups.join(first.setdefault(segment.label, number), number)
        count = np.bincount(self._ids.ravel(), minlength=len(self._segments) + 1)
        table, kept = np.zeros(len(self._segments) + 1, np.int32), []
        for group in groups:
            if count[[n + 1 for n in group]].any():
                best = max((self._segments[n] for n in group), key=lambda s: s.score)
                kept.append(replace(best, id=len(kept) + 1))
                table[[n + 1 for n in group]] = len(kept)
        return Panoptic(table[self._ids], kept)


def _crop(ids: Int[np.ndarray, "h w"], window: Window, place: Rect) -> Int[np.ndarray, "_ _"]:
    top, left = place.top - window.seen.top, place.left - window.seen.left
    height, width = place.size
    return ids[top : top + height, left : left + width]
