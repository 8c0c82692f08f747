"""The prediction loop: read, resize, collate, forward, decode.

One loop serves a data set (`predict_dataset`: evaluation during and after training) and loose images
(`predict_images`: the user's own). Masks leave it as run lengths, so memory does not grow with the images.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from maskkit.config import InputConfig, Tta
from maskkit.data.dataset import Dataset
from maskkit.data.images import read_image
from maskkit.data.loader import collate, eval_loader
from maskkit.data.transforms import apply, eval_ops
from maskkit.decode import LabelMap, decode
from maskkit.errors import DataError
from maskkit.infer.tta import probabilities
from maskkit.models.base import Model
from maskkit.prediction import Categories, ImageMeta, Prediction
from maskkit.targets import Batch, Target

Source = str | Path | np.ndarray | Image.Image | Tensor
"""An image file, or RGB pixels: ``(H, W, 3)`` uint8 array, PIL image, ``(3, H, W)`` uint8 tensor."""


class Failure(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    error: DataError


def predict_dataset(
    model: Model,
    dataset: Dataset,
    input: InputConfig,
    categories: Categories,
    batch: int = 1,
    workers: int = 0,
    device: torch.device | str | None = None,
    score: float = 0.0,
    progress: Callable[[int], None] | None = None,
    tta: Tta | None = None,
) -> Iterator[Prediction]:
    """Predictions for every image of ``dataset``, in its order; ``progress`` is told how many have just been done.

    ``device`` None means where the model is. Raises `DataError` at an image that cannot be read.
    """
    device = device if device is not None else next(model.parameters()).device
    with evaluating(model.to(device)):
        for group in eval_loader(dataset, input, batch, workers):
            yield from predict_batch(model, group.to(device), categories, score, tta, input)
            if progress is not None:
                progress(len(group))


def predict_images(
    model: Model,
    sources: Iterable[Source],
    input: InputConfig,
    categories: Categories,
    *,
    batch: int = 1,
    score: float = 0.0,
    failed: Callable[[Failure], None] | None = None,
    tta: Tta | None = None,
) -> Iterator[Prediction]:
    """Predictions for ``sources``, in order; image ids are their positions, counted from 1.

    An image that cannot be read raises `DataError`, or is handed to ``failed`` while the others go on.
    """
    device = next(model.parameters()).device
    images = _readable(sources, failed)
    ops, rng = eval_ops(input), np.random.default_rng(0)  # the resize draws nothing
    with evaluating(model):
        while group := list(islice(images, batch)):
            samples = [apply(ops, (image, Target.of([], []), meta), rng) for image, meta in group]
            predictions = predict_batch(model, collate(samples, input).to(device), categories, score, tta, input)
            for prediction, (image, meta) in zip(predictions, group, strict=True):
                if not meta.path:
                    prediction.image = image.permute(1, 2, 0).numpy()  # (H, W, 3)
                yield prediction


@torch.inference_mode()
def predict_batch(
    model: Model,
    batch: Batch,
    categories: Categories,
    score: float = 0.0,
    tta: Tta | None = None,
    input: InputConfig | None = None,
) -> list[Prediction]:
    """Predictions of one collated batch, which is on the model's device."""
    images = batch.images.contiguous(memory_format=torch.channels_last)
    if tta is not None and input is not None:
        mean = probabilities(lambda x: model.select(model(x)).logits, images, tta, input)
        return decode(LabelMap(), {"logits": mean.cpu().numpy()}, batch.metas, categories)
    return model.decode(model(images, batch.sizes), batch.metas, categories, score)


def read_source(source: Source) -> UInt8[Tensor, "3 h w"]:
    """RGB pixels of anything `Source` allows. Raises `DataError` for a file or an array that is no image."""
    if isinstance(source, str | Path):
        return read_image(source)
    if isinstance(source, Image.Image):
        if source.mode.startswith(("I", "F")):
            raise DataError(
                f"a PIL image of mode {source.mode!r} has no defined brightness; convert it to 8 bits first"
            )
        source = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise DataError(
                f"an image as an array is (H, W, 3) RGB uint8, got {source.shape} {source.dtype}; convert it first"
            )
        return torch.from_numpy(source.copy()).permute(2, 0, 1)  # (3, H, W)
    if source.dtype != torch.uint8 or source.ndim != 3 or source.shape[0] != 3 or source.numel() == 0:
        raise DataError(
            f"an image as a tensor is (3, H, W) RGB uint8, got {tuple(source.shape)} {source.dtype}; convert it first"
        )
    return source.cpu()


def _readable(
    sources: Iterable[Source], failed: Callable[[Failure], None] | None
) -> Iterator[tuple[UInt8[Tensor, "3 h w"], ImageMeta]]:
    for number, source in enumerate(sources, 1):
        path = str(source) if isinstance(source, str | Path) else ""
        try:
            image = read_source(source)
        except DataError as error:
            if failed is None:
                raise
            failed(Failure(path or f"image {number}", error))
            continue
        size = (image.shape[1], image.shape[2])
        yield image, ImageMeta(number, path, size, size)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode inside, whatever it was before outside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
