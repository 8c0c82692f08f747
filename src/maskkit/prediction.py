"""The output of a model: `Prediction` and its parts. numpy only; importing this module never imports torch.

Two conventions hold throughout the package. Coordinates are pixel *edges*: pixel column ``i`` covers ``[i, i + 1)``, so
an image of width W spans 0 to W and a change of resolution is a plain factor. Class numbers are 0..K-1; the ids and
names of the user's file are kept in `Categories` only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from maskkit.errors import MaskkitError
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.resample import strips
from maskkit.geometry.rle import Rle

if TYPE_CHECKING:
    import supervision


ImageId = int | str
"""The id of an image in the user's file: any whole number, any text. Images of no data set are numbered from 1."""


class Category(NamedTuple):
    """One class: its name, its id in the user's file, and whether it is a thing (else stuff)."""

    name: str
    id: int
    thing: bool


@dataclass(frozen=True)
class Categories:
    """Class names and the ids they have in the user's file, in the order of the class numbers 0..K-1.

    A class is a *thing*, which has instances, or *stuff*, which only covers pixels. By default all are things.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    things: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "things", tuple(map(bool, self.things)) or (True,) * len(self.ids))
        if len(self.things) != len(self.ids):
            raise ValueError(f"categories need one flag per id, got {len(self.things)} for {len(self.ids)} ids")
        if len(self.names) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"categories need one unique id per name, got names {self.names} and ids {self.ids}")

    @classmethod
    def of(cls, names: Iterable[str], stuff: Iterable[str] = ()) -> Categories:
        """Categories with the ids 1..K: first the things called ``names``, then ``stuff``."""
        names, stuff = tuple(names), tuple(stuff)
        things = (True,) * len(names) + (False,) * len(stuff)
        return cls(names + stuff, tuple(range(1, len(things) + 1)), things)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Category:
        return Category(self.names[number], self.ids[number], self.things[number])

    def __iter__(self) -> Iterator[Category]:
        return map(Category, self.names, self.ids, self.things)

    def subset(self, numbers: Iterable[int]) -> Categories:
        """The classes with these numbers, in that order."""
        chosen = [self[n] for n in numbers]
        return Categories(tuple(c.name for c in chosen), tuple(c.id for c in chosen), tuple(c.thing for c in chosen))

    @property
    def titles(self) -> tuple[str, ...]:
        """The names for tables; one that several classes share is followed by the id, so that all differ."""
        uses = Counter(self.names)
        return tuple(c.name if uses[c.name] == 1 else f"{c.name} ({c.id})" for c in self)

    def numbers_in(self, other: Categories) -> dict[int, int]:
        """For each class that ``other`` has too, its number there. Names are compared exactly.

        Classes of a name that is used twice, here or there, are the same where their ids are.
        """
        ours, theirs = Counter(self.names), Counter(other.names)
        by_name = {c.name: n for n, c in enumerate(other) if ours[c.name] == theirs[c.name] == 1}
        by_id = {(c.name, c.id): n for n, c in enumerate(other)}
        found = {i: by_name.get(c.name, by_id.get((c.name, c.id))) for i, c in enumerate(self)}
        return {i: n for i, n in found.items() if n is not None}

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's category records, with ``isthing`` unless all classes are things."""
        flags = not all(self.things)
        return [{"id": c.id, "name": c.name} | ({"isthing": int(c.thing)} if flags else {}) for c in self]

    def index(self, category_id: int) -> int:
        """Class number 0..K-1 of an id of the file. Raises ``KeyError`` for an unknown id."""
        try:
            return self.ids.index(category_id)
        except ValueError:
            raise KeyError(category_id) from None


class Masks:
    """N masks of one size (H, W), kept as COCO run lengths.

    Indexing with an int array, a bool array or a slice gives `Masks`; an int gives `Masks` of length one.
    """

    def __init__(self, size: tuple[int, int], rles: list[Rle]) -> None:
        self.size = (int(size[0]), int(size[1]))
        self._rles = rles

    @classmethod
    def from_dense(cls, dense: Bool[np.ndarray, "n h w"]) -> Masks:
        """Masks of anything array-like of shape ``(N, H, W)``; nonzero values are foreground."""
        array = np.asarray(dense) != 0
        if array.ndim != 3:
            raise ValueError(f"dense masks have the shape (N, H, W), got {array.shape}")
        return cls((array.shape[1], array.shape[2]), rle_codec.encode(array))

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Masks:
        """Zero masks of an image of ``size`` (H, W)."""
        return cls(size, [])

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Masks:
        return Masks(self.size, [self._rles[i] for i in _numbers(index, len(self))])

    def rle(self) -> list[Rle]:
        """Compressed COCO records, one per mask."""
        return self._rles

    def dense(self) -> Bool[np.ndarray, "n h w"]:
        """Dense masks ``(N, H, W)``."""
        return rle_codec.decode(self._rles, self.size)

    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """Tight boxes ``x1 y1 x2 y2`` in pixel edges; zeros for an empty mask."""
        return rle_codec.boxes(self._rles)

    def areas(self) -> Int[np.ndarray, "n"]:
        """Pixels of each mask."""
        return rle_codec.area(self._rles)

    def __repr__(self) -> str:
        return f"Masks({len(self)}, size={self.size})"


@dataclass(frozen=True)
class ImageMeta:
    """How the pixels of the network's input map to the original image.

    ``affine`` (2, 3) maps input ``(x, y, 1)`` to the original image, both in pixel edges; ``size`` is the original
    (H, W); ``input_size`` is the (h, w) of the transformed image, and once it is in a batch that of the network's
    whole input, padding included.
    """

    image_id: ImageId
    path: str
    size: tuple[int, int]
    input_size: tuple[int, int]
    affine: Float[np.ndarray, "2 3"] = field(default_factory=lambda: np.eye(3, dtype=np.float64)[:2])

    def to_original(self, boxes: Float[np.ndarray, "n 4"], clip: bool = True) -> Float[np.ndarray, "n 4"]:
        """Boxes ``x1 y1 x2 y2`` of the input in the original image, clipped to it unless ``clip`` is False.

        The corners of a flipped box are sorted again.
        """
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2) @ self.affine[:, :2].T + self.affine[:, 2]
        corners = np.sort(corners, axis=1).reshape(-1, 4)
        return (np.clip(corners, 0, np.tile(self.size[::-1], 2)) if clip else corners).astype(np.float32)


@dataclass
class Instances:
    """Objects found in one image, in its original pixels, best score first."""

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    masks: Masks | None = None
    mask_scores: Float[np.ndarray, "n"] | None = None
    """Scores of the masks where a method scores them separately from the boxes (YOLACT++), else None."""
    track_ids: Int[np.ndarray, "n"] | None = None
    """The number of each object's track, from 1, the same in all frames of a video; None without tracking."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Sequence[int] | slice | np.ndarray) -> Instances:
        return Instances(
            self.boxes[index],
            self.labels[index],
            self.scores[index],
            self.masks[index] if self.masks is not None else None,
            self.mask_scores[index] if self.mask_scores is not None else None,
            self.track_ids[index] if self.track_ids is not None else None,
        )


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a `Panoptic` image."""

    id: int
    """Its value in `Panoptic.ids`, from 1."""
    label: int
    """Class number 0..K-1."""
    score: float
    thing: bool


@dataclass
class Panoptic:
    """An image divided into segments: ``ids (H, W)`` holds the segment id of each pixel, 0 where there is none."""

    ids: Int[np.ndarray, "h w"]
    segments: list[PanopticSegment]

    def __len__(self) -> int:
        return len(self.segments)


_SHOWN = 3
"""Number of objects that the text of a prediction names."""


@dataclass(repr=False)
class Prediction:
    """What a model finds in one image. Metrics, drawing and results files know nothing else about a model.

    Exactly one of ``instances``, ``semantic`` and ``panoptic`` is set. ``len`` is the number of rows of `to_coco`.
    """

    meta: ImageMeta
    categories: Categories
    instances: Instances | None = None
    semantic: UInt8[np.ndarray, "h w"] | None = None
    panoptic: Panoptic | None = None
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """RGB pixels, kept only when the image was passed as pixels and cannot be read again from ``meta.path``."""

    def __len__(self) -> int:
        if self.semantic is not None:
            return len(_labels_in(self.semantic))
        found = self.instances if self.instances is not None else self.panoptic
        return len(found) if found is not None else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.to_coco()

    def __repr__(self) -> str:
        height, width = self.meta.size
        name = repr(self.meta.path) if self.meta.path else f"image {self.meta.image_id}"
        return f"Prediction({name}, {width} x {height} pixels, {self._found()})"

    def _found(self) -> str:
        """What was found, the best or largest first, in a few words."""
        names = self.categories.names
        if self.semantic is not None:
            found, noun = [names[label] for label in _labels_in(self.semantic) if label < len(names)], "classes"
        elif self.panoptic is not None:
            segments = sorted(self.panoptic.segments, key=lambda s: -s.score)
            found, noun = [f"{names[s.label]} {s.score:.2f}" for s in segments], "segments"
        elif self.instances is not None:
            pairs = zip(self.instances.labels.tolist(), self.instances.scores.tolist(), strict=True)
            found, noun = [f"{names[label]} {score:.2f}" for label, score in pairs], "objects"
        else:
            return "nothing"
        more = ", ..." if len(found) > _SHOWN else ""
        return f"{len(found)} {noun}" + (f": {', '.join(found[:_SHOWN])}{more}" if found else "")

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"]:
        """Dense masks ``(N, H, W)``, one for each row of `to_coco`: of objects, segments, or classes that occur.

        They take N times the image's pixels in bytes; ``instances.masks`` keeps run lengths. Raises `MaskkitError` for
        a model that finds boxes alone.
        """
        if self.semantic is not None:
            return self.semantic == np.array(_labels_in(self.semantic), np.uint8)[:, None, None]
        if self.panoptic is not None:
            return self.panoptic.ids == np.array([s.id for s in self.panoptic.segments], np.int64)[:, None, None]
        if self.instances is None or self.instances.masks is None:
            raise MaskkitError("this model finds boxes without masks; they are in prediction.instances.boxes")
        return self.instances.masks.dense()

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO result rows: the ids of the user's file, boxes ``x y w h``, masks as RLE with text counts.

        A row has ``mask_score`` beside ``score`` where the method scores masks separately from boxes, and ``track_id``
        where objects were tracked. A label map gives
        one row with a mask per class that occurs, as in COCO's stuff results; a panoptic image gives one row with a
        mask and a score per segment.
        """
        if self.semantic is not None:
            labels = _labels_in(self.semantic)
            return [self._row(label, rle_codec.encode((self.semantic == label)[None])[0]) for label in labels]
        if self.panoptic is not None:
            masks = ((s, rle_codec.encode((self.panoptic.ids == s.id)[None])[0]) for s in self.panoptic.segments)
            return [self._row(segment.label, rle) | {"score": float(segment.score)} for segment, rle in masks]
        return self._object_rows(self.instances) if self.instances is not None else []

    def _row(self, label: int, rle: Rle) -> dict[str, Any]:
        """The common part of the rows of label maps and panoptic images."""
        category = self.categories.ids[label]
        return {"image_id": self.meta.image_id, "category_id": category, "segmentation": rle_codec.to_text(rle)}

    def _object_rows(self, found: Instances) -> list[dict[str, Any]]:
        rles = found.masks.rle() if found.masks is not None else [None] * len(found)
        rows: list[dict[str, Any]] = []
        for i, rle in enumerate(rles):
            x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
            row: dict[str, Any] = {
                "image_id": self.meta.image_id,
                "category_id": self.categories.ids[int(found.labels[i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found.scores[i]),
            }
            if rle is not None:
                row["segmentation"] = rle_codec.to_text(rle)
            if found.mask_scores is not None:
                row["mask_score"] = float(found.mask_scores[i])
            if found.track_ids is not None:
                row["track_id"] = int(found.track_ids[i])
            rows.append(row)
        return rows

    def to_supervision(self) -> supervision.Detections:
        """The instances as `supervision.Detections`: masks dense, class names in ``data["class_name"]``.

        Raises `MaskkitError` when the extra ``maskkit[interop]`` is not installed.
        """
        from maskkit.infer.interop import to_supervision

        return to_supervision(self)

    def save(self, path: str | Path) -> Path:
        """Draw the prediction over its image and write it; the extension of ``path`` chooses the format.

        Raises `DataError` when the image cannot be read again, or the extension is not that of an image format."""
        from maskkit.infer.draw import save

        return save(self, Path(path))


def _labels_in(semantic: UInt8[np.ndarray, "h w"]) -> list[int]:
    """The class numbers that occur, in order; some rows at a time, since sorting a large image takes its memory."""
    found: set[int] = set()
    for rows in strips(semantic.shape[1], len(semantic), 1 << 20):
        found.update(np.unique(semantic[rows]).tolist())
    return sorted(found)


def _numbers(index: int | slice | Sequence[int] | np.ndarray, count: int) -> list[int]:
    """The positions, of ``count``, that an index of any kind selects."""
    if not isinstance(index, slice):
        index = np.asarray(index)
        index = index if index.size else index.astype(np.int64)  # an empty list becomes float64
    return np.arange(count)[index].reshape(-1).tolist()
