"""The input of a training step: `Target`, the labels of one image, and `Batch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from maskkit.geometry import masks as mask_math
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.rle import Rle
from maskkit.prediction import ImageMeta

Index = int | slice | Sequence[int] | np.ndarray | Tensor


class TargetMasks(ABC):
    """N masks of one size (H, W), stored as `RleMasks`, `DenseMasks` or `maskkit.data.patches.Patches`.

    Indexing with an int array, a bool array or a slice gives the same kind; an int gives masks of length one.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = (int(size[0]), int(size[1]))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Index) -> Self: ...

    @abstractmethod
    def dense(self, size: tuple[int, int] | None = None) -> Bool[Tensor, "n h w"]:
        """Dense masks; at another ``size`` (H, W) resampled bilinearly and thresholded at 0.5."""

    @abstractmethod
    def rle(self) -> list[Rle]:
        """Compressed COCO records, one per mask."""

    @abstractmethod
    def boxes(self) -> Float[Tensor, "n 4"]:
        """Tight boxes ``x1 y1 x2 y2`` in pixel edges; zeros for an empty mask."""

    @abstractmethod
    def areas(self) -> Int[Tensor, "n"]:
        """Number of pixels of each mask."""

    def to(self, device: torch.device | str) -> TargetMasks:
        """The same masks, dense, on ``device``."""
        return DenseMasks(self.dense().to(device, non_blocking=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)}, size={self.size})"


class RleMasks(TargetMasks):
    """Masks stored as run lengths; `to` leaves them in main memory."""

    def __init__(self, size: tuple[int, int], rles: list[Rle]) -> None:
        super().__init__(size)
        self._rles = rles

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: Index) -> RleMasks:
        return RleMasks(self.size, [self._rles[i] for i in positions(index, len(self)).tolist()])

    def dense(self, size: tuple[int, int] | None = None) -> Bool[Tensor, "n h w"]:
        """Dense masks; at another ``size`` (H, W) resampled bilinearly and thresholded at 0.5."""
        dense = torch.from_numpy(rle_codec.decode(self._rles, self.size))
        return dense if size is None else mask_math.resample(dense, size)

    def rle(self) -> list[Rle]:
        """Compressed COCO records, one per mask."""
        return self._rles

    def boxes(self) -> Float[Tensor, "n 4"]:
        """Tight boxes ``x1 y1 x2 y2`` in pixel edges; zeros for an empty mask."""
        return torch.from_numpy(rle_codec.boxes(self._rles))

    def areas(self) -> Int[Tensor, "n"]:
        """Number of pixels of each mask."""
        return torch.from_numpy(rle_codec.area(self._rles))

    def to(self, device: torch.device | str) -> RleMasks:
        """These masks, which are not moved."""
        return self


class DenseMasks(TargetMasks):
    """Masks stored as one bool tensor ``(N, H, W)``."""

    def __init__(self, dense: Tensor | np.ndarray) -> None:
        tensor = torch.as_tensor(dense)
        if tensor.ndim != 3:
            raise ValueError(f"dense masks have the shape (N, H, W), got {tuple(tensor.shape)}")
        super().__init__((tensor.shape[1], tensor.shape[2]))
        self._dense = tensor.bool()

    def __len__(self) -> int:
        return len(self._dense)

    def __getitem__(self, index: Index) -> DenseMasks:
        return DenseMasks(self._dense[positions(index, len(self))])

    def dense(self, size: tuple[int, int] | None = None) -> Bool[Tensor, "n h w"]:
        """Dense masks; at another ``size`` (H, W) resampled bilinearly and thresholded at 0.5."""
        return self._dense if size is None else mask_math.resample(self._dense, size)

    def rle(self) -> list[Rle]:
        """Compressed COCO records, one per mask."""
        return rle_codec.encode(self._dense.cpu().numpy())

    def boxes(self) -> Float[Tensor, "n 4"]:
        """Tight boxes ``x1 y1 x2 y2`` in pixel edges; zeros for an empty mask."""
        return mask_math.dense_boxes(self._dense)

    def areas(self) -> Int[Tensor, "n"]:
        """Number of pixels of each mask."""
        return self._dense.sum((1, 2))


def positions(index: Index, count: int) -> Int[Tensor, "k"]:
    """The positions, of ``count``, that an index of any kind selects."""
    if not isinstance(index, slice):
        index = torch.as_tensor(index).cpu()
        index = index if index.numel() else index.long()  # an empty list becomes float32
    return torch.arange(count)[index].reshape(-1)


@dataclass
class Target:
    """The labels of one image. It may have no objects, boxes without masks, and crowds.

    ``has_mask`` says for each object whether its mask is known: a file may have masks for some objects and boxes for
    others. The mask of a box-only object is empty, and no loss may read it. ``masks`` is None when no mask of the
    image is known, or none is used.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, "n"]
    masks: TargetMasks | None
    crowd: Bool[Tensor, "n"]
    has_mask: Bool[Tensor, "n"]
    semantic: UInt8[Tensor, "h w"] | None = None
    tags: Bool[Tensor, "k"] | None = None
    saliency: Float[Tensor, "h w"] | None = None
    """The saliency map: how much each pixel stands out, 0 to 1, whatever its class."""

    @classmethod
    def of(
        cls,
        boxes: Any,
        labels: Any,
        masks: TargetMasks | Tensor | np.ndarray | None = None,
        crowd: Any = None,
        has_mask: Any = None,
        semantic: Tensor | None = None,
        tags: Tensor | None = None,
    ) -> Target:
        """A target from array-likes; masks count as known unless ``has_mask`` says otherwise.

        Raises ``ValueError`` when boxes, labels and masks differ in number."""
        boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        n = len(boxes)
        if masks is not None and not isinstance(masks, TargetMasks):
            masks = DenseMasks(masks)
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
        """The objects selected by an index array, a bool array or a slice; labels of the whole image stay."""
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
            name: value.to(device) if isinstance(value, TargetMasks) else value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | TargetMasks)
        }
        return replace(self, **move)


@dataclass
class Batch:
    """Normalised images, padded on the right and below by `InputConfig.surround`, and their targets.

    ``sizes`` are the (height, width) of the images inside their padding; nothing else says what is padding.
    """

    images: Float[Tensor, "b 3 h w"]
    sizes: Int[Tensor, "b 2"]
    targets: list[Target]
    metas: list[ImageMeta]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What was subtracted from RGB (0..255) to make ``images``."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What it was then divided by."""
    progress: float = 1.0
    """Share of the training that is done after this batch, for losses with a warm-up; 1 outside training."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def valid(self) -> Bool[Tensor, "b h w"]:
        """True for pixels of an image, False for padding."""
        height, width = (torch.arange(n, device=self.sizes.device) for n in self.images.shape[2:])
        rows, columns = height < self.sizes[:, :1], width < self.sizes[:, 1:]  # (B, H), (B, W)
        return rows[:, :, None] & columns[:, None]

    def pixels(self) -> Float[Tensor, "b 3 h w"]:
        """The images as RGB (0..255), with black padding."""
        return self.rgb(self.images, self.valid)

    def rgb(self, images: Float[Tensor, "n 3 h w"], valid: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalised ``images`` of the batch, or crops of them, as RGB (0..255); black where not ``valid``."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (images.float() * std + mean) * valid[:, None]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            targets=[t.to(device) for t in self.targets],
        )


def full_sizes(images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b 2"]:
    """`Batch.sizes` of images without padding."""
    sides = [torch.full((), side, dtype=torch.int64, device=images.device) for side in images.shape[2:]]
    return torch.stack(sides).expand(images.shape[0], 2)
