"""Decoder of class activation maps: each class is divided by its maximum and competes with a constant background."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from maskkit.decode.label_map import LabelMap
from maskkit.decode.outputs import ClassLogits, TagMaps
from maskkit.prediction import Categories, ImageMeta, Prediction


@dataclass(frozen=True)
class TaggedLabelMap:
    """The class with the highest score at the centre of every original pixel; 0 is background."""

    outputs: ClassVar[type[TagMaps]] = TagMaps
    threshold: float = 0.2
    """Score of the background; each class has the score 1 at its maximum."""

    def __call__(
        self, out: TagMaps[np.ndarray], meta: ImageMeta, categories: Categories, score: float = 0.0
    ) -> Prediction:
        """The label map in original pixels; ``score`` is ignored."""
        scores = rival_scores(out.activations, out.present > 0, self.threshold)
        return LabelMap()(ClassLogits(scores), meta, categories)


def rival_scores(
    activations: Float[np.ndarray, "c h w"], present: Bool[np.ndarray, "c"], threshold: float
) -> Float[np.ndarray, "c+1 h w"]:
    """Scores of the background (``threshold`` everywhere) and of the classes (activations divided by their maximum).

    A class that is not present has the score 0.
    """
    activations = activations * present[:, None, None]
    highest = activations.max((1, 2), keepdims=True)
    background = np.full((1, *activations.shape[1:]), threshold, activations.dtype)
    return np.concatenate([background, activations / (highest + np.float32(1e-5))])
