"""From the tensors a network selects to predictions in original pixels. Plain numpy.

The same function ends every path: torch, ONNX Runtime and OpenVINO give the same masks because nothing but arrays
enters here. Masks are turned into run lengths one by one; a dense mask of a whole image is never made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage
from scipy.special import expit

from maskkit.decode import groups as group
from maskkit.geometry import rle as mask_math
from maskkit.types import Categories, ImageMeta, Instances, Masks, Panoptic, Prediction

Fields = Mapping[str, np.ndarray]
"""What a network selected, by name; in `finish` with the axis of images in front, in a `Kind` without."""
Kind = Callable[[Fields, ImageMeta, Categories, float], Prediction]
"""Makes the prediction of one image from its fields, with objects of a score above the last argument."""


STRIP = 1 << 24
"""Maps of scores in original pixels are computed so many at a time, which bounds memory whatever the image's size."""

AGREED = 0.4
"""Where the masks of regions, and what is voted from them, are cut (FCIS)."""


def finish(
    selected: Fields, metas: Sequence[ImageMeta], categories: Categories, score: float = 0.0
) -> list[Prediction]:
    """Predictions of the images ``metas`` from what a network selected: the fields of its NamedTuple as arrays.

    Which kind of selection it is (`maskkit.models.base.Selected` and its siblings) is told by a field of that kind
    alone. Objects with a score above ``score`` are kept.
    """
    kind = next(kind for field, kind in KINDS.items() if field in selected)
    images = ({name: values[b] for name, values in selected.items()} for b in range(len(metas)))
    return [kind(fields, meta, categories, score) for fields, meta in zip(images, metas, strict=True)]


def _over_input(field: str, behind: float) -> Kind:
    """The kind of masks over the network's whole input, cut at 0.5 in original pixels.

    A value belongs to the point so many input pixels ``behind`` the middle of its cell.
    """

    def kind(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
        kept, found = _boxes(fields, meta, score)
        y, x = (_axis(cells, meta, axis, behind) for axis, cells in enumerate(fields[field].shape[1:]))
        found.masks = Masks(meta.size, rles=[_to_original(mask, y, x, meta.size) for mask in fields[field][kept]])
        mask_scores = fields["mask_scores"][kept].astype(np.float32)
        found.mask_scores = None if np.array_equal(mask_scores, found.scores) else mask_scores
        return Prediction(meta, categories, found)

    return kind


def _detections(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
    """`maskkit.models.base.SelectedBoxes`: instances without masks."""
    return Prediction(meta, categories, _boxes(fields, meta, score)[1])


def _boxes(fields: Fields, meta: ImageMeta, score: float) -> tuple[Int[np.ndarray, "n"], Instances]:
    """Which rows have a score above ``score``, best first, and these as instances without masks.

    A box that lies in the padding, or has no area, is none.
    """
    scores = fields["scores"]
    kept = np.flatnonzero(scores > score)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    height, width = meta.input_size
    boxes = meta.to_original(fields["boxes"][kept] * np.array([width, height, width, height], np.float32))
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept, boxes = kept[seen], boxes[seen]
    return kept, Instances(boxes, fields["labels"][kept].astype(np.int64), scores[kept].astype(np.float32))


_IN_BOXES = ("box_masks", "whole_box_masks", "last_pixel_masks")
_Lay = Callable[[float, float, int, int], tuple[int, "_Axis"]]


def _in_boxes(lay: _Lay) -> Kind:
    """The kind of masks on a grid over each object's box, of which ``lay`` says how it lies along one axis."""

    def kind(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
        kept, found = _boxes(fields, meta, score)
        grids = next(fields[name] for name in _IN_BOXES if name in fields)[kept]
        rles = [_in_box(box, mask, lay, meta.size) for box, mask in zip(found.boxes, grids, strict=True)]
        found.masks = Masks(meta.size, rles=rles)
        mask_scores = fields["mask_scores"][kept].astype(np.float32)
        found.mask_scores = None if np.array_equal(mask_scores, found.scores) else mask_scores
        return Prediction(meta, categories, found)

    return kind


def _in_windows(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
    """`maskkit.models.base.SelectedInWindows`: masks in windows, and boxes tight around them."""
    kept = np.flatnonzero(fields["scores"] > score)
    kept = kept[np.argsort(-fields["scores"][kept], kind="stable")]
    height, width = meta.input_size
    sides = np.array([width, height, width, height], np.float32)
    windows = meta.to_original(fields["boxes"][kept] * sides, clip=False)
    masks = fields["window_masks"][kept]
    rles = [_in_box(window, mask, _lay_exactly, meta.size) for window, mask in zip(windows, masks, strict=True)]
    labels, scores = fields["labels"][kept].astype(np.int64), fields["scores"][kept].astype(np.float32)
    found = Instances(mask_math.boxes(rles), labels, scores, Masks(meta.size, rles=rles))
    return Prediction(meta, categories, found[np.flatnonzero(mask_math.area(rles))])


def _in_box(
    box: Float[np.ndarray, "4"], mask: Float[np.ndarray, "m m"], lay: _Lay, size: tuple[int, int]
) -> mask_math.Rle:
    """Run lengths of a mask on a grid over a box, cut at 0.5, in an image of ``size``."""
    x1, y1, x2, y2 = box
    left, x = lay(x1, x2, mask.shape[1], size[1])
    top, y = lay(y1, y2, mask.shape[0], size[0])
    rim = np.pad(mask, 1)  # (m + 2, m + 2)
    lines = rim[:, x.lower] * (1 - x.weight) + rim[:, x.upper] * x.weight  # (m + 2, W')
    region = lines[y.lower] * (1 - y.weight[:, None]) + lines[y.upper] * y.weight[:, None] >= 0.5  # (H', W')
    return mask_math.encode_region(region, top, left, size)


def _lay_exactly(low: float, high: float, cells: int, pixels: int) -> "tuple[int, _Axis]":
    """`maskkit.models.base.SelectedInBoxes` along one axis: the grid lies exactly where the box does (detectron2).

    Gives the first of the pixels that ``cells`` between ``low`` and ``high``, with a rim of one empty cell at either
    end, reach to, and where these pixels lie between the cells.
    """
    size = max(high - low, 1e-6)
    reach = size / cells / 2
    first = min(max(int(np.floor(low - reach)), 0), pixels)
    centre = np.arange(first, min(int(np.ceil(high + reach)), pixels)) + 0.5
    return first, _between((centre - low) * (cells / size) + 0.5, cells + 2)


def _lay_in_whole_pixels(low: float, high: float, cells: int, pixels: int) -> "tuple[int, _Axis]":
    """`maskkit.models.base.SelectedInWholePixels` along one axis: box and rim are cut to whole pixels (torchvision)."""
    half = (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
    middle = (high + low) * np.float32(0.5)
    start, stop = int(middle - half), int(middle + half) + 1
    first = max(start, 0)
    covered = np.arange(first, min(stop, pixels)) - start
    return first, _between((covered + 0.5) * ((cells + 2) / (stop - start)) - 0.5, cells + 2)


def _lay_up_to_last_pixel(low: float, high: float, cells: int, pixels: int) -> "tuple[int, _Axis]":
    """`maskkit.models.base.SelectedUpToLastPixel` along one axis, which Detectron counts from pixel to pixel."""
    return _lay_in_whole_pixels(low, high - 1, cells, pixels)


def _voted(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
    """`maskkit.models.base.SelectedVotes`: what the regions voted, cut at `AGREED`, and the box of that."""
    kept, found = _boxes(fields, meta, score)
    vote = _ballot(fields, meta)
    rles = []
    for row in kept:
        total, top, left = vote(row)
        rles.append(mask_math.encode_region(total >= AGREED, top, left, meta.size))
    found.boxes, found.masks = mask_math.boxes(rles), Masks(meta.size, rles=rles)
    return Prediction(meta, categories, found[np.flatnonzero(mask_math.area(rles))])


def _ballot(fields: Fields, meta: ImageMeta) -> Callable[[int], tuple[Float[np.ndarray, "h w"], int, int]]:
    """What gives, for an object's row, the weighted mean of its regions' cut masks, and its first row and column."""
    votes = fields["votes"]
    height, width = meta.input_size
    regions = fields["boxes"][-votes.shape[1] :] * np.array([width, height, width, height], np.float32)
    whole = np.floor(meta.to_original(regions) + 0.5).astype(np.int64)
    real = (whole[:, 2:] > whole[:, :2]).all(1)
    masks = fields["region_masks"][-len(regions) :]
    drawn = cache(lambda i: _stretch(masks[i], whole[i]) >= AGREED)

    def vote(row: int) -> tuple[np.ndarray, int, int]:
        voters = np.flatnonzero((votes[row] > 0) & real)
        if len(voters) == 0:
            return np.zeros((0, 0), np.float32), 0, 0
        left, top, right, bottom = (*whole[voters, :2].min(0), *whole[voters, 2:].max(0))
        total = np.zeros((bottom - top, right - left), np.float32)
        for i in voters.tolist():
            x1, y1, x2, y2 = whole[i] - (left, top, left, top)
            total[y1:y2, x1:x2] += votes[row, i] * drawn(i)
        return total, int(top), int(left)

    return vote


def _stretch(mask: Float[np.ndarray, "m m"], box: Int[np.ndarray, "4"]) -> Float[np.ndarray, "h w"]:
    """A mask at the size of a ``box`` of whole pixels."""
    width, height = box[2:] - box[:2]
    y, x = (_between((np.arange(n) + 0.5) * (len(mask) / n) - 0.5, len(mask)) for n in (height, width))
    lines = mask[:, x.lower] * (1 - x.weight) + mask[:, x.upper] * x.weight
    return lines[y.lower] * (1 - y.weight[:, None]) + lines[y.upper] * y.weight[:, None]


def _groups(of: Callable[[Fields], group.Groups]) -> Kind:
    """The kind whose instances ``of`` finds on the grid: masks as in `_over_input`, boxes tight around them."""

    def kind(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
        groups = of(fields)
        order = np.argsort(-groups.scores, kind="stable")
        order = order[groups.scores[order] > score]
        y, x = (_axis(cells, meta, axis) for axis, cells in enumerate(groups.numbers.shape))
        extents = ndimage.find_objects(groups.numbers)
        rles = []
        for number in groups.kept[order].tolist():
            # one cell more on every side: values are interpolated between the group and what surrounds it
            rows, columns = (slice(max(side.start - 1, 0), side.stop + 1) for side in extents[number - 1])
            mask = (groups.numbers[rows, columns] == number).astype(np.float32)
            rles.append(_to_original(mask, y, x, meta.size, rows.start, columns.start))
        found = Instances(
            mask_math.boxes(rles),
            groups.labels[order].astype(np.int64),
            groups.scores[order].astype(np.float32),
            Masks(meta.size, rles=rles),
        )
        seen = np.flatnonzero(mask_math.area(rles))  # a group may lie in the padding
        return Prediction(meta, categories, found[seen])

    return kind


def _label_map(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
    """`maskkit.models.base.SelectedSemantic`: the best class at the centre of every original pixel."""
    logits = fields["logits"]
    y, x = (_axis(cells, meta, axis) for axis, cells in enumerate(logits.shape[1:]))
    labels = np.empty(meta.size, np.uint8)
    for rows in _strips(len(logits) * meta.size[1], meta.size[0]):
        labels[rows] = _blend(logits, y.part(rows), x).argmax(0)
    return Prediction(meta, categories, semantic=labels)


def _segments(fields: Fields, meta: ImageMeta, categories: Categories, score: float) -> Prediction:
    """`maskkit.models.base.SelectedSegments`: each pixel goes to the segment with the most score times probability.

    What loses too much of its own mask to others is left out; segments of the same stuff are one (Mask2Former).
    """
    least, overlap = fields["limits"]
    kept = np.flatnonzero((fields["labels"] < len(categories)) & (fields["scores"] > max(least, score)))
    labels, scores = fields["labels"][kept].astype(np.int64), fields["scores"][kept].astype(np.float32)
    won, own = np.zeros(len(kept), np.int64), np.zeros(len(kept), np.int64)  # pixels
    winner = np.full(meta.size, -1, np.int64)
    for rows, logits in _in_two_steps(fields["segment_logits"][kept], meta) if len(kept) else ():
        best = (scores[:, None, None] * expit(logits)).argmax(0)  # (H', W)
        inside = np.take_along_axis(logits, best[None], 0)[0] >= 0
        winner[rows] = np.where(inside, best, -1)
        won += np.bincount(best.ravel(), minlength=len(kept))
        own += (logits >= 0).sum((1, 2))
    seen = np.bincount(winner[winner >= 0], minlength=len(kept)) > 0
    share = (won / own.clip(min=1)).astype(np.float32)  # as exact as the limit
    numbers = np.zeros(len(kept) + 1, np.int32)  # the last one is for pixels that nobody won
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for k in np.flatnonzero(seen & (share >= overlap)).tolist():
        label, thing = int(labels[k]), categories.things[labels[k]]
        segment = None if thing else stuff.get(label)
        if segment is None:
            segment = {"id": len(segments) + 1, "label": label, "score": float(scores[k]), "thing": thing}
            segments.append(segment)
            stuff |= {} if thing else {label: segment}
        segment["score"] = max(segment["score"], float(scores[k]))
        numbers[k] = segment["id"]
    return Prediction(meta, categories, panoptic=Panoptic(numbers[winner], segments))


def _in_two_steps(
    maps: Float[np.ndarray, "c h w"], meta: ImageMeta
) -> Iterator[tuple[slice, Float[np.ndarray, "c rows width"]]]:
    """Maps at the original pixels, strip by strip: interpolated to the network's input first, and from there without
    its padding to the image, as the detectron2 family does it."""
    y, x = (_through_input(cells, meta, axis) for axis, cells in enumerate(maps.shape[1:]))
    for rows in _strips(16 * len(maps) * meta.size[1], meta.size[0]):  # the fewer rows, the fewer cells take part
        hit = np.flatnonzero(y[rows].any(0))
        near = slice(hit[0], hit[-1] + 1)
        yield rows, y[rows, near] @ (maps[:, near] @ x.T)  # (C, H', W)


def _through_input(cells: int, meta: ImageMeta, axis: int) -> Float[np.ndarray, "n cells"]:
    """The share that each cell of one axis has in each original pixel after both interpolations."""
    pixels = meta.input_size[axis]
    step = _between((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, cells)
    shares = np.zeros((pixels, cells), np.float32)
    each = np.arange(pixels)
    shares[each, step.lower] = 1 - step.weight
    shares[each, step.upper] += step.weight
    scale, offset = meta.affine[1 - axis, [1 - axis, 2]]
    end = max(-offset / scale, (meta.size[axis] - offset) / scale)  # of the image in the input
    seen = min(max(round(end), 1), pixels)
    step = _between((np.arange(meta.size[axis]) + 0.5 - offset) / scale - 0.5, seen)
    return shares[step.lower] * (1 - step.weight[:, None]) + shares[step.upper] * step.weight[:, None]


def _strips(width: int, height: int) -> Iterator[slice]:
    """``height`` rows of ``width`` values, so many at a time as make a strip."""
    at_once = max(1, STRIP // width)
    for start in range(0, height, at_once):
        yield slice(start, start + at_once)


KINDS: dict[str, Kind] = {
    "logits": _label_map,
    "segment_logits": _segments,
    "kernels": _groups(group.of_kernels),
    "embeddings": _groups(group.of_embeddings),
    "votes": _voted,
    "window_masks": _in_windows,
    "box_masks": _in_boxes(_lay_exactly),
    "whole_box_masks": _in_boxes(_lay_in_whole_pixels),
    "last_pixel_masks": _in_boxes(_lay_up_to_last_pixel),
    "masks": _over_input("masks", 0.0),
    "location_masks": _over_input("location_masks", 0.5),
    "boxes": _detections,
}
"""What makes a prediction of a selection that has a field of this name; the first that it has counts."""


class _Axis(NamedTuple):
    """How the original pixels of one axis lie between the cells of a mask."""

    lower: Int[np.ndarray, "n"]
    """The cell at or below the centre of each pixel."""
    upper: Int[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]
    """Share of the upper cell; a centre beyond the outermost cells takes their values, as in ``F.interpolate``."""

    def part(self, rows: slice) -> "_Axis":
        """The same for some of the pixels."""
        return _Axis(*(values[rows] for values in self))

    def around(self, hit: Int[np.ndarray, "k"]) -> slice:
        """The pixels that cells between the first and the last of ``hit`` contribute to."""
        pixels = np.flatnonzero((self.upper >= hit[0]) & (self.lower <= hit[-1]))
        return slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0)


def _axis(cells: int, meta: ImageMeta, axis: int, behind: float = 0.0) -> _Axis:
    scale, offset = meta.affine[1 - axis, [1 - axis, 2]]  # the affine speaks of (x, y), images of (y, x)
    cell = meta.input_size[axis] / cells  # input pixels per cell
    centre = (np.arange(meta.size[axis]) + 0.5 - offset) / (scale * cell) - 0.5
    return _between(centre - behind / cell, cells)


def _between(places: Float[np.ndarray, "n"], cells: int) -> _Axis:
    """The neighbours of ``places``, counted in cells, among ``cells``."""
    places = np.clip(places, 0, cells - 1).astype(np.float32)
    lower = places.astype(np.int64)
    return _Axis(lower, np.minimum(lower + 1, cells - 1), places - lower)


def _blend(maps: Float[np.ndarray, "c h w"], y: _Axis, x: _Axis) -> Float[np.ndarray, "c rows width"]:
    """Maps at the pixels of two axes."""
    first = min(y.lower.min(), y.upper.min())
    near = maps[:, first : max(y.lower.max(), y.upper.max()) + 1]  # (C, h', w)
    lines = near[:, :, x.lower] * (1 - x.weight) + near[:, :, x.upper] * x.weight  # (C, h', W)
    weight = y.weight[:, None]
    return lines[:, y.lower - first] * (1 - weight) + lines[:, y.upper - first] * weight  # (C, H, W)


def _to_original(
    mask: Float[np.ndarray, "h w"], y: _Axis, x: _Axis, size: tuple[int, int], top: int = 0, left: int = 0
) -> mask_math.Rle:
    """Run lengths, at the original size, of a mask of probabilities over the network's input.

    A mask of a part of the grid begins at the cell (top, left) and has zeros all around, save at the grid's rim.
    """
    likely = mask > 0.5  # a value between neighbours exceeds 0.5 only where one of them does
    rows, columns = np.flatnonzero(likely.any(1)), np.flatnonzero(likely.any(0))
    if len(rows) == 0:
        return mask_math.empty(size)
    tall, wide = y.around(rows + top), x.around(columns + left)
    first = max(rows[0] - 1, 0)
    near = mask[first : rows[-1] + 2]  # (h', w)
    lower, upper, fx = x.lower[wide] - left, x.upper[wide] - left, x.weight[wide]
    lines = near[:, lower] * (1 - fx) + near[:, upper] * fx  # (h', W'): the few rows first, gathering columns is slow
    first += top
    above, below, fy = y.lower[tall] - first, y.upper[tall] - first, y.weight[tall, None]
    region = lines[above] * (1 - fy) + lines[below] * fy > 0.5  # (H', W')
    return mask_math.encode_region(region, tall.start, wide.start, size)
