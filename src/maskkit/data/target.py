"""From a record to what training takes: the image and its target as tensors."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from maskkit.data import saliency
from maskkit.data.records import Record, Supervision, box_of
from maskkit.geometry import rle as mask_math
from maskkit.targets import RleMasks, Target


def target_of(record: Record, supervision: Supervision, classes: int) -> Target:
    """The target of an image; see `Dataset.load` for ``supervision``. Raises `DataError`."""
    target = _labels_of(record, supervision, classes)
    if record.saliency is not None:
        target.saliency = saliency.read(record.saliency, record.size)
    return target


def to_tensor(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    """A copy of the pixels as a tensor."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _labels_of(record: Record, supervision: Supervision, classes: int) -> Target:
    objects = record.annotations
    if supervision == "tags":
        seen = {a.label for a in objects}
        if record.semantic is not None:
            seen |= record.semantic.present(record.size)
        tags = torch.zeros(classes, dtype=torch.bool)
        tags[sorted(seen)] = True
        return Target.of([], [], tags=tags)
    height, width = record.size
    boxes = torch.tensor([box_of(a, record.size) for a in objects], dtype=torch.float32).reshape(-1, 4)
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    masks, semantic = None, None
    if supervision == "masks" and record.semantic is not None and not record.semantic.has_background:
        semantic = torch.from_numpy(record.semantic.read(record.size))
    rles = [(a.rle(record.size) if supervision == "masks" else None) or a.drawn for a in objects]
    known = [rle is not None for rle in rles]
    if any(known) or (supervision == "masks" and not objects):
        masks = RleMasks(record.size, [rle or mask_math.empty(record.size) for rle in rles])
    return Target.of(boxes, [a.label for a in objects], masks, [a.crowd for a in objects], known, semantic)
