"""Random changes of a training image together with its boxes, masks and geometry.

A transform is a frozen dataclass that takes ``(image, target, meta, rng)`` and returns ``(image, target, meta)``. All
random numbers come from ``rng``.
"""

from maskkit.data.transforms.copy_paste import CopyPaste
from maskkit.data.transforms.geometric import CropObject, CropOrPad, DropSmall, Expand, Flip, IoUCrop, VerticalFlip
from maskkit.data.transforms.photometric import Photometric
from maskkit.data.transforms.pipeline import apply, eval_ops, train_ops
from maskkit.data.transforms.resize import Resize, ScaleJitter, Shrink
from maskkit.data.transforms.sample import Operation, Sample

__all__ = [
    "CopyPaste",
    "CropObject",
    "CropOrPad",
    "DropSmall",
    "Expand",
    "Flip",
    "IoUCrop",
    "Operation",
    "Photometric",
    "Resize",
    "Sample",
    "ScaleJitter",
    "Shrink",
    "VerticalFlip",
    "apply",
    "eval_ops",
    "train_ops",
]
