"""The central types: what a data set gives (`Target`), what travels (`Batch`), what comes out (`Prediction`).

Two conventions hold everywhere. Coordinates are pixel *edges*: pixel column ``i`` covers ``[i, i + 1)``, so an image
of width W spans 0 to W and a change of resolution is a plain factor. Class numbers are 0..K-1; the ids and names of
the user's file live in `Categories` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from maskkit.geometry import rle as mask_math
from maskkit.geometry.rle import Rle

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True)
class Categories:
    """Class names with the ids they have in the user's file, in the order of the class numbers 0..K-1."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    things: tuple[bool, ...] = ()
    """Which classes have objects to be told apart; the others are stuff, as sky is. All are things when not given."""

    def __post_init__(self) -> None:
        if not self.things:
            object.__setattr__(self, "things", (True,) * len(self.names))
        if len(self.things) != len(self.names):
            raise ValueError(f"categories need to know of each name whether it is a thing, got {self.things}")
        if len(self.names) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"categories need one unique id per name, got names {self.names} and ids {self.ids}")

    @classmethod
    def of(cls, names: Iterable[str], stuff: Iterable[str] = ()) -> Categories:
        """Categories with the ids 1..K, first the things called ``names``, then ``stuff``."""
        names, stuff = tuple(names), tuple(stuff)
        things = (True,) * len(names) + (False,) * len(stuff)
        return cls(names + stuff, tuple(range(1, len(things) + 1)), things)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, numbers: Sequence[int]) -> Categories:
        """The classes of these numbers, in that order."""
        parts = ([values[n] for n in numbers] for values in (self.names, self.ids, self.things))
        return Categories(*map(tuple, parts))  # type: ignore[arg-type]

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO's category records; ``isthing`` stands there when not all are things."""
        rows = zip(self.ids, self.names, self.things, strict=True)
        flags = not all(self.things)
        return [{"id": i, "name": name} | ({"isthing": int(thing)} if flags else {}) for i, name, thing in rows]

    def index(self, category_id: int) -> int:
        """Class number 0..K-1 of an id of the file; ``KeyError`` when the id is unknown."""
        try:
            return self.ids.index(category_id)
        except ValueError:
            raise KeyError(category_id) from None


class Masks:
    """N masks of one size (H, W), kept as run lengths or dense, whichever they came as.

    Indexing with an int array, a bool array or a slice gives `Masks`; an int gives `Masks` of length one.
    """

    def __init__(self, size: tuple[int, int], *, rles: list[Rle] | None = None, dense: Tensor | None = None) -> None:
        if (rles is None) == (dense is None):
            raise ValueError("Masks are made of run lengths or of dense masks, exactly one of the two")
        if dense is not None and (dense.ndim != 3 or tuple(dense.shape[1:]) != tuple(size)):
            raise ValueError(f"dense masks have shape (N, {size[0]}, {size[1]}), got {tuple(dense.shape)}")
        self.size = (int(size[0]), int(size[1]))
        self._rles = rles
        self._dense = dense.bool() if dense is not None else None

    @classmethod
    def from_dense(cls, dense: Bool[Tensor, "n h w"] | np.ndarray) -> Masks:
        """Masks of a ``(N, H, W)`` tensor or array, anything but zero is foreground."""
        tensor = torch.as_tensor(dense)
        return cls((tensor.shape[1], tensor.shape[2]), dense=tensor)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Masks:
        """No masks at all."""
        return cls(size, rles=[])

    def __len__(self) -> int:
        return len(self._rles) if self._rles is not None else len(self._dense)  # type: ignore[arg-type]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray | Tensor) -> Masks:
        if not isinstance(index, slice):
            index = torch.as_tensor(index).cpu()
            index = index if index.numel() else index.long()  # an empty list has no type of its own
        chosen = torch.arange(len(self))[index].reshape(-1)
        if self._rles is not None:
            return Masks(self.size, rles=[self._rles[i] for i in chosen.tolist()])
        assert self._dense is not None
        return Masks(self.size, dense=self._dense[chosen])

    def dense(self, size: tuple[int, int] | None = None) -> Bool[Tensor, "n h w"]:
        """Dense masks; at another ``size`` (H, W) resampled bilinearly and cut at 0.5."""
        dense = self._dense
        if dense is None:
            dense = torch.from_numpy(mask_math.decode(self._rles or [], self.size))
        return dense if size is None else mask_math.resample(dense, size)

    def rle(self) -> list[Rle]:
        """Compressed COCO records, one per mask."""
        if self._rles is not None:
            return self._rles
        assert self._dense is not None
        return mask_math.encode(self._dense.cpu().numpy())

    def boxes(self) -> Float[Tensor, "n 4"]:
        """Tight boxes ``x1 y1 x2 y2`` in pixel edges; zeros for an empty mask."""
        if self._dense is not None:
            return mask_math.dense_boxes(self._dense)
        return torch.from_numpy(mask_math.boxes(self.rle()))

    def areas(self) -> Int[Tensor, "n"]:
        """Pixels of each mask."""
        if self._dense is not None:
            return self._dense.sum((1, 2))
        return torch.from_numpy(mask_math.area(self.rle()))

    def to(self, device: torch.device | str) -> Masks:
        """The same masks with dense storage on ``device``; run lengths stay where they are."""
        return self if self._dense is None else Masks(self.size, dense=self._dense.to(device, non_blocking=True))

    def __repr__(self) -> str:
        return f"Masks({len(self)}, size={self.size}, {'rle' if self._rles is not None else 'dense'})"


@dataclass
class Target:
    """What is known about one image. Zero objects, boxes without masks and crowds are all normal.

    ``has_mask`` says for each object whether its mask is known: a file may hold masks for some objects and boxes for
    others; the mask of a box-only object is empty and no loss may read it. ``masks`` is None when no mask of the
    image is known, or wanted.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, "n"]
    masks: Masks | None
    crowd: Bool[Tensor, "n"]
    has_mask: Bool[Tensor, "n"]
    semantic: UInt8[Tensor, "h w"] | None = None
    tags: Bool[Tensor, "k"] | None = None
    saliency: Float[Tensor, "h w"] | None = None
    """How much each pixel stands out, 0 to 1, whatever it shows."""

    @classmethod
    def of(
        cls,
        boxes: Any,
        labels: Any,
        masks: Masks | Tensor | np.ndarray | None = None,
        crowd: Any = None,
        has_mask: Any = None,
        semantic: Tensor | None = None,
        tags: Tensor | None = None,
    ) -> Target:
        """A target from anything array-like; every mask is taken as known unless ``has_mask`` says otherwise."""
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        n = len(boxes)
        if masks is not None and not isinstance(masks, Masks):
            masks = Masks.from_dense(masks)
        labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        if len(labels) != n or (masks is not None and len(masks) != n):
            raise ValueError(f"{n} boxes, {len(labels)} labels, {len(masks) if masks is not None else 'no'} masks")
        flags = torch.zeros(n, dtype=torch.bool) if crowd is None else torch.as_tensor(crowd).bool().reshape(-1)
        known = (
            torch.full((n,), masks is not None) if has_mask is None else torch.as_tensor(has_mask).bool().reshape(-1)
        )
        return cls(boxes, labels, masks, flags, known, semantic, tags)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Target:
        """The objects chosen by an index array, a bool array or a slice; what belongs to the image stays."""
        return replace(
            self,
            boxes=self.boxes[index],
            labels=self.labels[index],
            masks=self.masks[index] if self.masks is not None else None,
            crowd=self.crowd[index],
            has_mask=self.has_mask[index],
        )

    def to(self, device: torch.device | str) -> Target:
        """The same target on ``device``."""
        move = {
            name: value.to(device) if isinstance(value, Masks) else value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Masks)
        }
        return replace(self, **move)


@dataclass(frozen=True)
class ImageMeta:
    """Where the pixels of the network's input come from.

    ``affine`` (2, 3) maps input ``(x, y, 1)`` to the original image, both in pixel edges; ``size`` is the original
    (H, W); ``input_size`` is the (h, w) of the image while it is transformed, and of the network's whole input,
    padding included, once it is in a `Batch`.
    """

    image_id: int
    path: str
    size: tuple[int, int]
    input_size: tuple[int, int]
    affine: Float[np.ndarray, "2 3"] = field(default_factory=lambda: np.eye(3, dtype=np.float64)[:2])

    def to_original(self, boxes: Float[np.ndarray, "n 4"], clip: bool = True) -> Float[np.ndarray, "n 4"]:
        """Boxes of the input in the original image, clipped to it unless ``clip`` is off. A mirrored axis is put in
        order again."""
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2) @ self.affine[:, :2].T + self.affine[:, 2]
        corners = np.sort(corners, axis=1).reshape(-1, 4)
        return (np.clip(corners, 0, np.tile(self.size[::-1], 2)) if clip else corners).astype(np.float32)


@dataclass
class Batch:
    """Images of one size, padded right and below with zeros (the mean colour) where ``valid`` is False."""

    images: Float[Tensor, "b 3 h w"]
    valid: Bool[Tensor, "b h w"]
    targets: list[Target]
    metas: list[ImageMeta]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What was subtracted from RGB on 0..255 to make ``images``."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What it was divided by."""
    progress: float = 1.0
    """Share of the training that is done with this batch, for losses that grow; 1 outside of a training."""

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self) -> Float[Tensor, "b 3 h w"]:
        """The images as RGB on 0..255, the padding black."""
        mean, std = (self.images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (self.images.float() * std + mean) * self.valid[:, None]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            valid=self.valid.to(device, non_blocking=True),
            targets=[t.to(device) for t in self.targets],
        )


@dataclass
class Instances:
    """Objects found in one image, in its original pixels, best score first. Plain numpy, no framework needed."""

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    masks: Masks | None = None
    mask_scores: Float[np.ndarray, "n"] | None = None
    """Scores that rank the masks where a method rates them apart from the boxes (YOLACT++), else None."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Instances:
        return Instances(
            self.boxes[index],
            self.labels[index],
            self.scores[index],
            self.masks[index] if self.masks is not None else None,
            self.mask_scores[index] if self.mask_scores is not None else None,
        )


@dataclass
class Panoptic:
    """An image cut into segments: ``ids (H, W)`` names a segment per pixel, 0 is nothing."""

    ids: Int[np.ndarray, "h w"]
    segments: list[dict[str, Any]]
    """One dict per segment: ``id``, ``label`` (0..K-1), ``score``, ``thing``."""

    def __len__(self) -> int:
        return len(self.segments)


@dataclass
class Prediction:
    """What a model says about one image: the only thing that metrics, drawing, serving and export know."""

    meta: ImageMeta
    categories: Categories
    instances: Instances | None = None
    semantic: UInt8[np.ndarray, "h w"] | None = None
    panoptic: Panoptic | None = None
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """RGB pixels, kept only when the image was given as an array and cannot be read again from ``meta.path``."""

    def __len__(self) -> int:
        found = self.instances if self.instances is not None else self.panoptic
        return len(found) if found is not None else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.to_coco()

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO result rows: the ids of the user's file, boxes ``x y w h``, masks as RLE with text counts.

        A row has ``mask_score`` beside ``score`` where the method ranks masks apart. A label map gives one row per
        class that occurs, with its mask and nothing else, as in COCO's stuff results; a panoptic image gives one row
        per segment, with its mask and score.
        """
        rows: list[dict[str, Any]] = []
        if self.semantic is not None:
            for label in np.unique(self.semantic).tolist():
                (rle,) = mask_math.encode((self.semantic == label)[None])
                category = self.categories.ids[label]
                rows.append({"image_id": self.meta.image_id, "category_id": category, "segmentation": _text(rle)})
        for segment in self.panoptic.segments if self.panoptic is not None else ():
            (rle,) = mask_math.encode((self.panoptic.ids == segment["id"])[None])  # type: ignore[union-attr]
            category = self.categories.ids[segment["label"]]
            row = {"image_id": self.meta.image_id, "category_id": category, "segmentation": _text(rle)}
            rows.append(row | {"score": float(segment["score"])})
        found = self.instances
        if found is None:
            return rows
        rles = found.masks.rle() if found.masks is not None else [None] * len(found)
        for i, rle in enumerate(rles):
            x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
            row: dict[str, Any] = {
                "image_id": self.meta.image_id,
                "category_id": self.categories.ids[int(found.labels[i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found.scores[i]),
            }
            if rle is not None:
                row["segmentation"] = _text(rle)
            if found.mask_scores is not None:
                row["mask_score"] = float(found.mask_scores[i])
            rows.append(row)
        return rows

    def to_supervision(self) -> supervision.Detections:
        """The instances as `supervision.Detections`, masks dense, class names in ``data["class_name"]``."""
        from maskkit.infer.draw import to_supervision

        return to_supervision(self)

    def save(self, path: str | Path) -> Path:
        """Draw the prediction over its image and write it; the ending of ``path`` chooses the format."""
        from maskkit.infer.draw import save

        return save(self, Path(path))


def _text(rle: Rle) -> Rle:
    """The record as JSON can hold it."""
    counts = rle["counts"]
    return {
        "size": [int(v) for v in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
