"""Saliency maps from any model: whatever it finds in an image, of any class, is salient."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from maskkit.config import InputConfig
from maskkit.data.images import read_image
from maskkit.data.label_map import BACKGROUND_NAME
from maskkit.data.saliency import places
from maskkit.decode.outputs import ClassLogits
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.geometry import rle as mask_math
from maskkit.infer.torch_runtime import evaluating, predictor
from maskkit.infer.tta import sum_over_scales
from maskkit.models.base import Model
from maskkit.prediction import Categories, Prediction

MIN_SCORE = 0.3
"""Smallest score of a salient object."""


def write_saliency(
    model: Model, input: InputConfig, categories: Categories, images: Sequence[Path], folder: Path
) -> None:
    """Write a saliency map for each image that has none yet to ``folder``, where `maskkit.data.saliency.find` looks.

    Raises `DataError` for an image that cannot be read, for two whose names differ in the suffix alone, and for a model
    with neither masks nor a background class.
    """
    files = places(folder, images)
    lacking = [image for image, file in files.items() if not file.is_file()]
    for image, found in zip(lacking, _maps(model, input, categories, lacking), strict=True):
        with replacing(files[image]) as temporary:
            Image.fromarray(found).save(temporary, format="PNG")


def _maps(
    model: Model, input: InputConfig, categories: Categories, images: Sequence[Path]
) -> Iterator[UInt8[np.ndarray, "h w"]]:
    if model.decoder.outputs is ClassLogits and BACKGROUND_NAME in categories.names:
        with evaluating(model):
            for image in images:
                chance = not_background(model, read_image(image), input, categories.names.index(BACKGROUND_NAME))
                yield (255 * chance).round().byte().cpu().numpy()
    else:
        for prediction in predictor(model, input, categories).images(images, score=MIN_SCORE):
            yield foreground(prediction)


@torch.inference_mode()
def not_background(
    model: Model, image: UInt8[Tensor, "3 h w"], input: InputConfig, background: int
) -> Float[Tensor, "h w"]:
    """Probability of each pixel that it is not ``background``, averaged with the horizontally flipped image.

    The model must be in evaluation mode. The map is not thresholded: a binary map would teach a model trained on tags
    that objects with a low probability are background.
    """

    def score(view: Float[Tensor, "1 3 y x"]) -> Float[Tensor, "1 1 cy cx"]:
        return 1 - model.select(model(view)).logits.softmax(1)[:, background, None]

    return sum_over_scales(score, image, input, next(model.parameters()).device)[0] / 2


def foreground(prediction: Prediction) -> UInt8[np.ndarray, "h w"]:
    """255 inside objects, else 0. Raises `DataError` for a prediction without masks."""
    if prediction.instances is None or prediction.instances.masks is None:
        raise DataError("saliency maps require a model with masks or a background class; this one has neither")
    covered = np.zeros(prediction.meta.size, bool)
    for rle in prediction.instances.masks.rle():  # one at a time: all of them dense would fill the memory
        covered |= mask_math.decode([rle], prediction.meta.size)[0].astype(bool)
    return np.where(covered, 255, 0).astype(np.uint8)
