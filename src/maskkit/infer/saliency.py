"""Saliency maps from any model: what it finds in a picture, of whatever class, stands out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskkit import masks as mask_math
from maskkit.config import InputConfig
from maskkit.data.label_map import BACKGROUND_NAME
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.infer.predict import predict_pictures
from maskkit.models.base import Model
from maskkit.types import Categories, Prediction

SURE = 0.3
"""Least score of an object that stands out."""


def write_saliency(
    model: Model, input: InputConfig, categories: Categories, pictures: Sequence[Path], folder: Path
) -> None:
    """Write the map of each picture that has none yet to ``folder``, where `maskkit.data.saliency.find` looks for it.

    Raises `DataError` for a picture that cannot be read, and for a model that gives no masks.
    """
    files = {picture: folder / picture.parent.name / f"{picture.stem}.png" for picture in pictures}
    lacking = [picture for picture, file in files.items() if not file.is_file()]
    found = predict_pictures(model, lacking, input, categories, score=SURE)
    for picture, prediction in zip(lacking, found, strict=True):
        with replacing(files[picture]) as temporary:
            Image.fromarray(foreground(prediction)).save(temporary, format="PNG")


def foreground(prediction: Prediction) -> UInt8[np.ndarray, "h w"]:
    """255 where an object is, or a pixel that is not of the background, else 0."""
    names = prediction.categories.names
    if prediction.semantic is not None and BACKGROUND_NAME in names:
        return np.where(prediction.semantic != names.index(BACKGROUND_NAME), 255, 0).astype(np.uint8)
    if prediction.instances is None or prediction.instances.masks is None:
        raise DataError(
            "saliency comes from a model that tells objects from the background by masks; this one does not"
        )
    covered = np.zeros(prediction.meta.size, bool)
    for rle in prediction.instances.masks.rle():  # one at a time: all of them dense would fill the memory
        covered |= mask_math.decode([rle], prediction.meta.size)[0].astype(bool)
    return np.where(covered, 255, 0).astype(np.uint8)
