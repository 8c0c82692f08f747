"""Saliency maps from any model: what it finds in an image, of whatever class, stands out."""

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
from maskkit.decode.outputs import ClassLogits
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.geometry import rle as mask_math
from maskkit.infer.torch_runtime import evaluating, predictor
from maskkit.infer.tta import sum_over_scales
from maskkit.models.base import Model
from maskkit.prediction import Categories, Prediction

SURE = 0.3
"""Least score of an object that stands out."""


def write_saliency(
    model: Model, input: InputConfig, categories: Categories, images: Sequence[Path], folder: Path
) -> None:
    """Write the map of each image that has none yet to ``folder``, where `maskkit.data.saliency.find` looks for it.

    Raises `DataError` for an image that cannot be read, and for a model that gives neither masks nor a background.
    """
    files = {image: folder / image.parent.name / f"{image.stem}.png" for image in images}
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
        for prediction in predictor(model, input, categories).images(images, score=SURE):
            yield foreground(prediction)


@torch.inference_mode()
def not_background(
    model: Model, image: UInt8[Tensor, "3 h w"], input: InputConfig, background: int
) -> Float[Tensor, "h w"]:
    """How likely a semantic model holds each pixel to be of any class but ``background``: mean with the mirror image.

    The model is in evaluation mode. Saliency is better unsure than wrong: a map cut to 0 and 1 tells a model of tags
    that faint objects are none.
    """

    def score(view: Float[Tensor, "1 3 y x"]) -> Float[Tensor, "1 1 cy cx"]:
        return 1 - model.select(model(view)).logits.softmax(1)[:, background, None]

    return sum_over_scales(score, image, input, next(model.parameters()).device)[0] / 2


def foreground(prediction: Prediction) -> UInt8[np.ndarray, "h w"]:
    """255 where an object is, else 0. Raises `DataError` where masks are not known."""
    if prediction.instances is None or prediction.instances.masks is None:
        raise DataError(
            "saliency comes from a model that tells objects from the background by masks; this one does not"
        )
    covered = np.zeros(prediction.meta.size, bool)
    for rle in prediction.instances.masks.rle():  # one at a time: all of them dense would fill the memory
        covered |= mask_math.decode([rle], prediction.meta.size)[0].astype(bool)
    return np.where(covered, 255, 0).astype(np.uint8)
