"""Tracking: assigns the objects in a frame of a video to those of earlier frames. numpy and scipy only.

The order of the association is that of ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every
Detection Box", ECCV 2022, algorithm 1): first all tracks with the detections of high score, then the remaining tracks
with those of low score, which are often partly hidden objects. Differences:

- The similarity is the mean of the IoU of masks, as run lengths, and the IoU of boxes: masks separate objects with the
  same box, boxes are more stable for thin objects. If a model finds no masks, boxes alone are used.
- Instead of a Kalman filter, a track predicts its last mask, moved by its velocity. The velocity is a running average
  of the observed shifts, which are measured only while the box keeps its size: an object that becomes hidden seems to
  slow down.
- A hidden or partly hidden object is also predicted in its box as it was when it was last whole. A part that reappears
  has a small IoU with the last mask, but lies in that box.
- The class of a track is the one that most of its detections had, weighted by their scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from maskkit.errors import MaskkitError
from maskkit.geometry import rle
from maskkit.geometry.rle import Rle
from maskkit.prediction import Instances, Prediction

LOW = 1 / 3
"""Detections of the second round have at least this share of the score of the first (ByteTrack: 0.1 of 0.6)."""
_OVERLAP = 0.15
"""Least IoU in the first round; 0.2 in ByteTrack."""
_OVERLAP_LOW = 0.35
"""Least IoU in the second round; 0.5 in ByteTrack, but masks agree less than boxes."""
_INSIDE = 0.5
"""Least share of a detection's box inside the box where a hidden track is expected."""
_MARGIN = 0.1
"""Share of its size by which that box is enlarged on each side."""
_HIDDEN = 0.7
"""Factor on that share, which is weaker evidence than an IoU."""
_OTHER_CLASS = 0.8
"""Factor on the similarity of a detection whose class is not that of the track."""
_WHOLE = 0.95
"""An object whose box has at least this share of its track's area is whole."""
_PARTLY = 0.8
"""With less than this share it is partly hidden."""
_GAIN = 0.3
"""Weight of the last shift in the velocity."""
_SHRINK = 0.98
"""Factor by which the area of a track may fall per frame, because objects may move away."""


@dataclass
class _Shape:
    """A mask and its box, or a box alone, and the time of its frame."""

    box: Float[np.ndarray, "4"]
    mask: Rle | None
    area: float
    """Area of the box; that of thin masks would vary more."""
    seen: int
    """Number of its frame."""

    def moved_box(self, velocity: Float[np.ndarray, "2"], now: int) -> Float[np.ndarray, "4"]:
        """Its box at frame ``now``, with a velocity (x, y) in pixels per frame."""
        return self.box + np.tile(velocity * (now - self.seen), 2)

    def moved_mask(self, velocity: Float[np.ndarray, "2"], now: int) -> Rle | None:
        """Its mask at frame ``now``, moved by whole pixels."""
        dx, dy = np.round(velocity * (now - self.seen)).astype(int).tolist()
        return rle.shifted(self.mask, dx, dy) if self.mask is not None else None


@dataclass
class _Track:
    number: int
    last: _Shape
    whole: _Shape
    """The last shape that was whole."""
    area: float = 0.0
    """Area of the box in pixels when the object is not hidden."""
    velocity: Float[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2))
    times: int = 0
    """Number of its detections."""
    votes: dict[int, float] = field(default_factory=dict)
    """Sum of the scores of its detections for each class number."""

    @property
    def label(self) -> int:
        return max(self.votes, key=self.votes.__getitem__)

    def is_partly(self, shape: _Shape) -> bool:
        """Whether only a part of the object is visible."""
        return shape.area < _PARTLY * self.area

    def add(self, shape: _Shape, label: int, score: float, patience: int) -> None:
        """Add a detection."""
        self.votes[label] = self.votes.get(label, 0.0) + score
        self.area = max(shape.area, _SHRINK * self.area)
        was_partly, is_partly = self.is_partly(self.last), self.is_partly(shape)
        if self.times and not was_partly and not is_partly:
            step = _shift(self.last, shape) / (shape.seen - self.last.seen)
            self.velocity = step if self.times == 1 else self.velocity + _GAIN * (step - self.velocity)
        if shape.area >= _WHOLE * self.area:
            self.whole = shape
        elif shape.seen - self.whole.seen > patience:  # it is smaller now
            self.whole, self.area = shape, shape.area
        self.last = shape
        self.times += 1


class Tracker:
    """Assigns track numbers to the objects of one frame after another.

    Detections with a score of at least ``score`` start tracks. Weaker ones, down to a third of it (`LOW`), only
    continue tracks; if they do not, they are dropped. A track ends after ``patience`` frames without a detection, or
    after one frame if it had only one.
    """

    def __init__(self, score: float = 0.5, patience: int = 30) -> None:
        self.score, self.patience = score, patience
        self._tracks: list[_Track] = []
        self._now = self._count = 0

    def __call__(self, prediction: Prediction) -> Prediction:
        """The prediction of the next frame with ``track_ids``; each object gets the class of its track.

        Raises `MaskkitError` for the prediction of a semantic or panoptic model.
        """
        if prediction.instances is None:
            raise MaskkitError("only objects can be tracked; this model gives every pixel a class, predict without it")
        return replace(prediction, instances=self._follow(prediction.instances))

    def _follow(self, found: Instances) -> Instances:
        self._now += 1
        shapes = _shapes(found, self._now)
        tracks = self._tracks
        chosen = self._assign(shapes, np.asarray(found.labels), np.asarray(found.scores) >= self.score)
        for i in np.flatnonzero((chosen < 0) & (found.scores >= self.score)).tolist():
            self._count += 1
            chosen[i] = len(tracks)
            tracks.append(_Track(self._count, shapes[i], shapes[i]))
        kept = np.flatnonzero(chosen >= 0)
        for i in kept.tolist():
            tracks[chosen[i]].add(shapes[i], int(found.labels[i]), float(found.scores[i]), self.patience)
        numbers = np.array([tracks[chosen[i]].number for i in kept.tolist()], np.int64)
        labels = np.array([tracks[chosen[i]].label for i in kept.tolist()], np.int64)
        self._tracks = [t for t in tracks if self._now - t.last.seen < (self.patience if t.times > 1 else 1)]
        return replace(found[kept], labels=labels, track_ids=numbers)

    def _assign(
        self, shapes: list[_Shape], labels: Int[np.ndarray, "n"], strong: Bool[np.ndarray, "n"]
    ) -> Int[np.ndarray, "n"]:
        """The index of the track of each detection, or -1."""
        chosen = np.full(len(shapes), -1, np.int64)
        if not shapes or not self._tracks:
            return chosen
        alike = self._alike(shapes, labels)
        current = np.array([t.last.seen == self._now - 1 for t in self._tracks])
        for those, least, tracks in ((strong, _OVERLAP, current | True), (~strong, _OVERLAP_LOW, current)):
            rows = np.flatnonzero(those)
            columns = np.flatnonzero(tracks & ~np.isin(np.arange(len(tracks)), chosen))
            score = np.where(alike >= least, alike, 0.0)[np.ix_(rows, columns)]
            for i, j in zip(*linear_sum_assignment(score, maximize=True), strict=True):
                if score[i, j] > 0:
                    chosen[rows[i]] = columns[j]
        return chosen

    def _alike(self, shapes: list[_Shape], labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n m"]:
        """Similarity of each detection and each track, 0 to 1."""
        tracks, now = self._tracks, self._now
        alike = _iou(shapes, tracks, now)
        other = labels[:, None] != np.array([t.label for t in tracks])
        hidden = [j for j, t in enumerate(tracks) if t.last.seen < now - 1 or t.is_partly(t.last)]
        if hidden:
            inside = _inside(shapes, np.array([tracks[j].whole.moved_box(tracks[j].velocity, now) for j in hidden]))
            inside[(inside < _INSIDE) | other[:, hidden]] = 0
            alike[:, hidden] = np.maximum(alike[:, hidden], _HIDDEN * inside)
        return np.where(other, _OTHER_CLASS * alike, alike)


def _shift(before: _Shape, after: _Shape) -> Float[np.ndarray, "2"]:
    """The movement (x, y) of an object: the shift of its box's centre.

    If its area shrinks, it may be moving behind something, whose border stops one edge of the box. Then the movement is
    the shift of the edge that moves more, if both edges move in one direction.
    """
    edges = (after.box - before.box).reshape(2, 2)
    mean = edges.mean(0)
    more = edges[abs(edges).argmax(0), [0, 1]]
    return np.where((edges.prod(0) >= 0) & (after.area < _SHRINK * before.area), more, mean)


def _shapes(found: Instances, now: int) -> list[_Shape]:
    boxes = np.asarray(found.boxes if found.masks is None else found.masks.boxes(), np.float64)
    masks = found.masks.rle() if found.masks is not None else [None] * len(boxes)
    return [_Shape(*given, now) for given in zip(boxes, masks, _sizes(boxes).tolist(), strict=True)]


def _iou(shapes: list[_Shape], tracks: list[_Track], now: int) -> Float[np.ndarray, "n m"]:
    """IoU of each detection with each predicted track: the mean of mask IoU and box IoU, or box IoU without masks."""
    given, boxes = np.array([s.box for s in shapes]), np.array([t.last.moved_box(t.velocity, now) for t in tracks])
    shared = _shared(given, boxes)
    of_boxes = shared / np.maximum(_sizes(given)[:, None] + _sizes(boxes) - shared, 1e-9)
    masks = [mask for t in tracks if (mask := t.last.moved_mask(t.velocity, now)) is not None]
    if len(masks) < len(tracks):
        return of_boxes
    return (of_boxes + rle.iou([s.mask for s in shapes if s.mask is not None], masks)) / 2


def _inside(shapes: list[_Shape], boxes: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """The share of each detection's box that is inside each of ``boxes``, which are enlarged by `_MARGIN`."""
    margin = _MARGIN * (boxes[:, 2:] - boxes[:, :2])
    given = np.array([s.box for s in shapes])
    return _shared(given, np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], 1)) / np.maximum(
        _sizes(given)[:, None], 1e-9
    )


def _shared(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Area of the intersection of each two boxes."""
    return (np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])).clip(min=0).prod(2)


def _sizes(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
