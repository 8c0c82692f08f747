"""Pseudo masks: label maps that a model trained on image tags predicts for images with known tags.

Any semantic model trains on the data set that `write_pseudo_masks` writes: images, label images and class names, in the
format that `maskkit.data.formats.png` reads.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from maskkit.config import InputConfig, PseudoMasks
from maskkit.data.dataset import Dataset
from maskkit.decode import TaggedLabelMap
from maskkit.decode.outputs import TagMaps
from maskkit.errors import DataError
from maskkit.files import in_file_name, replacing
from maskkit.infer.draw import save_labels
from maskkit.infer.torch_runtime import evaluating
from maskkit.infer.tta import sum_over_scales
from maskkit.models.base import Model
from maskkit.prediction import Categories, ImageMeta, Prediction


def learns_from_tags(model: Model) -> bool:
    """Whether the model trains on image tags; its outputs are `maskkit.decode.outputs.TagMaps`."""
    return model.supervision_of(model.config) == {"tags"}


@torch.inference_mode()
def localise(
    model: Model, image: UInt8[Tensor, "3 h w"], tags: Bool[Tensor, "c"], input: InputConfig, settings: PseudoMasks
) -> TagMaps[np.ndarray]:
    """Activations (C, H, W) of the tagged classes at the image's resolution, 0 for classes that are not tagged.

    ``tags`` cover the classes without background, on the device of the model. Activations are summed over all scales,
    each with its horizontal flip.
    """
    present = tags.nonzero()[:, 0]
    activations = torch.zeros(len(tags), *image.shape[1:])

    def score(pixels: Float[Tensor, "1 3 y x"]) -> Float[Tensor, "1 p cy cx"]:
        return model.select(model(pixels)).activations[:, present]

    if len(present):
        with evaluating(model):
            total = sum_over_scales(score, image, input, tags.device, settings.scales, settings.base)
        activations[present.cpu()] = total.cpu()
    return TagMaps(activations.numpy(), tags.cpu().numpy())


def label_map(found: TagMaps[np.ndarray], threshold: float) -> UInt8[np.ndarray, "h w"]:
    """The label map of what `localise` returns: the best class, counted from 1; 0 is background."""
    size = (found.activations.shape[1], found.activations.shape[2])
    names = Categories.of(map(str, range(len(found.present) + 1)))
    labels = TaggedLabelMap(threshold)(found, ImageMeta(0, "", size, size), names).semantic
    assert labels is not None
    return labels


def pseudo_masks(model: Model, dataset: Dataset, input: InputConfig, settings: PseudoMasks) -> Iterator[Prediction]:
    """The pseudo masks of each image of ``dataset``, which has the model's classes, background first.

    Raises `DataError` for an image that cannot be read.
    """
    device = next(model.parameters()).device
    for i in range(len(dataset)):
        image, target, meta = dataset.load(i, "tags")
        assert target.tags is not None
        found = localise(model, image, target.tags[1:].to(device), input, settings)
        yield Prediction(meta, dataset.categories, semantic=label_map(found, settings.threshold))


def write_pseudo_masks(
    model: Model,
    dataset: Dataset,
    input: InputConfig,
    settings: PseudoMasks,
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write the pseudo masks of ``dataset`` to ``out``: ``images/train/``, ``masks/train/`` and ``classes.txt``.

    The data set has the model's classes, background first. Returns COCO rows of the masks, for
    `maskkit.eval.semantic.metric.evaluate` where true label maps exist. Raises `DataError` for an image that cannot be
    read, and when ``out`` already contains pseudo masks.
    """
    if (out / "classes.txt").exists():
        raise DataError(f"{out}: already contains pseudo masks; choose another folder")
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    for record, prediction in zip(dataset.records, pseudo_masks(model, dataset, input, settings), strict=True):
        name = record.path.stem
        while name.lower() in taken:
            name = f"{in_file_name(record.image_id)}-{name}"
        taken.add(name.lower())
        save_labels(prediction, out / "masks" / "train" / f"{name}.png")
        with replacing(out / "images" / "train" / f"{name}{record.path.suffix}") as temporary:
            shutil.copyfile(record.path, temporary)
        rows += prediction.to_coco()
        if progress is not None:
            progress(1)
    with replacing(out / "classes.txt") as temporary:
        temporary.write_text("\n".join(dataset.categories.names) + "\n", encoding="utf-8")
    return rows
