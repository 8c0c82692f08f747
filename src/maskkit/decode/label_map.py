"""Decoder of label maps: the best class of every original pixel."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from maskkit.decode.grid import in_two_steps, input_taps
from maskkit.decode.outputs import ClassLogits
from maskkit.geometry.resample import interpolate, strips
from maskkit.prediction import Categories, ImageMeta, Prediction


@dataclass(frozen=True)
class LabelMap:
    """The class with the highest logit at the centre of every original pixel."""

    outputs: ClassVar[type[ClassLogits[np.ndarray]]] = ClassLogits
    via_input: bool = False
    """Whether logits are interpolated twice, to the network's input and from there to the image (mmsegmentation)."""
    align_corners: bool = False
    """Whether the outermost cells lie on the outermost pixels then, both times."""

    def __call__(
        self, out: ClassLogits[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The label map in original pixels; ``score`` is ignored."""
        labels = np.empty(meta.size, np.uint8)
        if self.via_input:
            for rows, logits in in_two_steps(out.logits, meta, self.align_corners):
                labels[rows] = logits.argmax(0)
            return Prediction(meta, categories, semantic=labels)
        y, x = (input_taps(cells, meta, axis) for axis, cells in enumerate(out.logits.shape[1:]))
        for rows in strips(len(out.logits) * meta.size[1], meta.size[0]):
            labels[rows] = interpolate(out.logits, y.part(rows), x).argmax(0)
        return Prediction(meta, categories, semantic=labels)
