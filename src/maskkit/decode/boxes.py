"""Decoders of objects with boxes: without masks, with masks in boxes, and with masks in windows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from maskkit.decode.outputs import Boxes, ObjectMasks, RegionVotes
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.resample import DENSE, Taps, interpolate, strips, taps_at
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction

Scored = Boxes[np.ndarray] | ObjectMasks[np.ndarray] | RegionVotes[np.ndarray]


@dataclass(frozen=True)
class BoxesOnly:
    """Boxes without masks (Faster R-CNN, FCOS)."""

    outputs: ClassVar[type[Boxes[np.ndarray]]] = Boxes

    def __call__(
        self, out: Boxes[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The objects with a score above ``score``, in original pixels."""
        return Prediction(meta, categories, scored_boxes(out, meta, score)[1])


@dataclass(frozen=True)
class InBoxes:
    """Masks on a grid over each object's box, thresholded at 0.5; outside the grid the mask is empty."""

    outputs: ClassVar[type[ObjectMasks[np.ndarray]]] = ObjectMasks
    paste: Literal["exact", "whole_pixels", "last_pixel"] = "exact"
    """How the grid is placed: ``exact`` over the box (detectron2); ``whole_pixels`` over the box rounded to whole
    pixels (torchvision); ``last_pixel`` likewise, for boxes whose x2 y2 are the indices of their last pixel
    (Detectron)."""

    def __call__(
        self, out: ObjectMasks[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The objects with a score above ``score``, in original pixels."""
        kept, found = scored_boxes(out, meta, score)
        place = _PLACES[self.paste]
        rles = [in_box(box, mask, meta.size, place) for box, mask in zip(found.boxes, out.masks[kept], strict=True)]
        found.masks = Masks(meta.size, rles)
        found.mask_scores = separate_scores(out, kept, found)
        return Prediction(meta, categories, found)


@dataclass(frozen=True)
class InWindows:
    """Masks on a grid over windows that may extend beyond the image (InstanceFCN). The box is that of the mask."""

    outputs: ClassVar[type[ObjectMasks[np.ndarray]]] = ObjectMasks

    def __call__(
        self, out: ObjectMasks[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The objects with a score above ``score`` and at least one pixel, in original pixels."""
        kept = best_first(out.scores, score)
        windows = meta.to_original(out.boxes[kept] * _input_extent(meta), clip=False)
        rles = [in_box(window, mask, meta.size) for window, mask in zip(windows, out.masks[kept], strict=True)]
        labels, scores = out.labels[kept].astype(np.int64), out.scores[kept].astype(np.float32)
        found = Instances(rle_codec.boxes(rles), labels, scores, Masks(meta.size, rles))
        return Prediction(meta, categories, found[np.flatnonzero(rle_codec.area(rles))])


def best_first(scores: Float[np.ndarray, "k"], score: float) -> Int[np.ndarray, "n"]:
    """Indices of the rows with a score above ``score``, best first."""
    kept = np.flatnonzero(scores > score)
    return kept[np.argsort(-scores[kept], kind="stable")]


def scored_boxes(out: Scored, meta: ImageMeta, score: float) -> tuple[Int[np.ndarray, "n"], Instances]:
    """Indices of the rows with a score above ``score``, best first, and these rows as instances without masks.

    A box without area in the original image, such as one inside the padding, is dropped.
    """
    kept = best_first(out.scores, score)
    boxes = meta.to_original(out.boxes[kept] * _input_extent(meta))
    visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept, boxes = kept[visible], boxes[visible]
    return kept, Instances(boxes, out.labels[kept].astype(np.int64), out.scores[kept].astype(np.float32))


def separate_scores(
    out: ObjectMasks[np.ndarray], kept: Int[np.ndarray, "n"], found: Instances
) -> Float[np.ndarray, "n"] | None:
    """The mask scores where they differ from the box scores, else None."""
    mask_scores = out.mask_scores[kept].astype(np.float32)
    return None if np.array_equal(mask_scores, found.scores) else mask_scores


def _input_extent(meta: ImageMeta) -> Float[np.ndarray, "4"]:
    height, width = meta.input_size
    return np.array([width, height, width, height], np.float32)


Place = Callable[[float, float, int, int], tuple[int, Taps]]
"""For the arguments ``(low, high, cells, pixels)`` along one axis: the first pixel that is covered, and the taps."""


def exact(low: float, high: float, cells: int, pixels: int) -> tuple[int, Taps]:
    """The grid from ``low`` to ``high``, with one empty cell added at either end."""
    size = max(high - low, 1e-6)
    half_cell = size / cells / 2
    first = min(max(int(np.floor(low - half_cell)), 0), pixels)
    centre = np.arange(first, min(int(np.ceil(high + half_cell)), pixels)) + 0.5
    return first, taps_at((centre - low) * (cells / size) + 0.5, cells + 2)


def _whole_pixels(low: float, high: float, cells: int, pixels: int) -> tuple[int, Taps]:
    half = (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
    middle = (high + low) * np.float32(0.5)
    start = int(middle - half)
    stop = max(int(middle + half), start) + 1  # a box thinner than a pixel covers one
    first = max(start, 0)
    covered = np.arange(first, min(stop, pixels)) - start
    return first, taps_at((covered + 0.5) * ((cells + 2) / (stop - start)) - 0.5, cells + 2)


def _last_pixel(low: float, high: float, cells: int, pixels: int) -> tuple[int, Taps]:
    return _whole_pixels(low, high - 1, cells, pixels)


_PLACES: dict[str, Place] = {"exact": exact, "whole_pixels": _whole_pixels, "last_pixel": _last_pixel}


def in_box(
    box: Float[np.ndarray, "4"], mask: Float[np.ndarray, "m m"], size: tuple[int, int], place: Place = exact
) -> rle_codec.Rle:
    """Run lengths of a mask on a grid over a box, thresholded at 0.5, in an image of ``size`` (H, W)."""
    x1, y1, x2, y2 = box
    left, x = place(x1, x2, mask.shape[1], size[1])
    top, y = place(y1, y2, mask.shape[0], size[0])
    if not len(x.lower) or not len(y.lower):
        return rle_codec.empty(size)
    padded, region = np.pad(mask, 1), np.empty((len(y.lower), len(x.lower)), bool)
    for rows in strips(region.shape[1], region.shape[0], DENSE):
        region[rows] = interpolate(padded, y.part(rows), x) >= 0.5
    return rle_codec.encode_region(region, top, left, size)
