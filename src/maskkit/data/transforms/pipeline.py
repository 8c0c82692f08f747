"""The transforms of training and of evaluation."""

from collections.abc import Callable, Sequence

import numpy as np

from maskkit.config import AugmentConfig, InputConfig
from maskkit.data.transforms.copy_paste import CopyPaste
from maskkit.data.transforms.geometric import CropObject, CropOrPad, DropSmall, Expand, Flip, IoUCrop, VerticalFlip
from maskkit.data.transforms.photometric import Photometric
from maskkit.data.transforms.resize import Resize, ScaleJitter, Shrink
from maskkit.data.transforms.sample import Operation, Sample


def train_ops(
    augment: AugmentConfig, input: InputConfig, partner: Callable[[np.random.Generator], Sample] | None = None
) -> list[Operation]:
    """The operations of training, in the order of `AugmentConfig`'s fields; scale jitter replaces the resize.

    Images far larger than the input are shrunk first, which bounds time and memory. ``partner`` draws the other image
    of copy-paste. Raises ``ValueError`` when copy-paste is on without it.
    """
    # The smallest crop is 0.3 of a side, so an image of four times the input keeps all detail that the input can show.
    limit = 4 * max(augment.canvas or input.size)
    ops: list[Operation] = [Shrink(limit)]
    if augment.crop is not None:
        ops.insert(0, CropObject(augment.crop))
    if augment.copy_paste > 0:
        if partner is None:
            raise ValueError("copy-paste must be given a partner: a function that draws another training sample")
        ops.append(CopyPaste(augment.copy_paste, partner))
    if augment.photometric:
        ops.append(Photometric())
    if augment.expand > 1:
        ops.append(Expand(augment.expand, input.surround, limit=limit))
    if augment.iou_crop:
        ops.append(IoUCrop())
    if augment.flip > 0:
        ops.append(Flip(augment.flip))
    if augment.vertical_flip > 0:
        ops.append(VerticalFlip(augment.vertical_flip))
    if augment.scale_jitter is not None:
        size, mode = (input.size, input.resize) if augment.canvas is None else (augment.canvas, "pad")
        ops.append(ScaleJitter(augment.scale_jitter, size, mode, input.surround))
    else:
        ops.append(_resize(input, augment.short_sides))
        if augment.canvas is not None:
            ops.append(CropOrPad(augment.canvas, input.surround))
    ops.append(DropSmall())
    return ops


def _resize(input: InputConfig, short_sides: tuple[int, ...] = ()) -> Resize:
    return Resize(input.size, input.resize, input.antialias, short_sides, input.interpolation, input.rounding)


def eval_ops(input: InputConfig) -> list[Operation]:
    """The operations of evaluation and prediction: only the resize."""
    return [_resize(input)]


def apply(ops: Sequence[Operation], sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample after all operations, in order."""
    for op in ops:
        sample = op(*sample, rng)
    return sample
