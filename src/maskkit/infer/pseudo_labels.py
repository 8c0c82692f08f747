"""Pseudo masks: what a model of image tags sees of images whose tags are known, as a data set of label maps.

Any semantic model trains on what `write_pseudo_masks` leaves: images beside label images and the names of the
classes, which `maskkit.data.formats.png` reads.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from maskkit.config import InputConfig, PseudoMasks
from maskkit.data.dataset import Dataset
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.infer.draw import save_labels
from maskkit.infer.tta import sum_over_scales
from maskkit.nn.semantic import rival_scores
from maskkit.prediction import Prediction


@runtime_checkable
class TagModel(Protocol):
    """What a model of image tags can do beside what all can."""

    def __call__(self, images: Float[Tensor, "b 3 h w"], /) -> Any:
        """Raw outputs."""
        ...

    def activations(self, raw: Any, /) -> Float[Tensor, "b c h w"]:
        """How much each cell shows each class, 0 and up, without the background."""
        ...


@torch.inference_mode()
def localise(
    model: TagModel, image: UInt8[Tensor, "3 h w"], tags: Bool[Tensor, "c"], input: InputConfig, views: PseudoMasks
) -> Float[Tensor, "p+1 h w"]:
    """Scores of the background, the same everywhere, and of the tagged classes, each with 1 where it is highest.

    ``tags`` are of the classes without background. The model, in evaluation mode, sees the image at every scale and
    mirrored; its activations are summed.
    """
    present = tags.nonzero()[:, 0]
    if not len(present):
        return torch.full((1, *image.shape[1:]), views.threshold, device=tags.device)

    def score(view: Float[Tensor, "1 3 y x"]) -> Float[Tensor, "1 p cy cx"]:
        return model.activations(model(view))[:, present]

    total = sum_over_scales(score, image, input, tags.device, views.scales, views.base)
    return rival_scores(total[None], views.threshold)[0]


def label_map(scores: Float[Tensor, "p+1 h w"], tags: Bool[Tensor, "c"]) -> UInt8[np.ndarray, "h w"]:
    """The class with the highest of the scores that `localise` gives for ``tags``, counted from 1; 0 is background."""
    numbers = F.pad(tags.nonzero()[:, 0] + 1, [1, 0])  # (P + 1)
    return numbers[scores.argmax(0)].to(torch.uint8).cpu().numpy()


def write_pseudo_masks(
    model: TagModel,
    dataset: Dataset,
    input: InputConfig,
    views: PseudoMasks,
    out: Path,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write the pseudo masks of ``dataset`` to ``out``: ``images/train/``, ``masks/train/`` and ``classes.txt``.

    The data set has the model's classes, the background first. Gives the rows that
    `maskkit.eval.semantic.metric.evaluate` compares with the label maps where they are known. Raises `DataError` for
    an image that cannot be read, and when ``out`` holds pseudo masks already.
    """
    if (out / "classes.txt").exists():
        raise DataError(f"{out}: holds pseudo masks already; choose another folder")
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    for i, record in enumerate(dataset.records):
        image, target, meta = dataset.load(i, "tags")
        assert target.tags is not None
        tags = target.tags[1:].to(device)
        labels = label_map(localise(model, image, tags, input, views), tags)
        prediction = Prediction(meta, dataset.categories, semantic=labels)
        name = record.path.stem if record.path.stem not in taken else f"{record.image_id}-{record.path.stem}"
        taken.add(name)
        save_labels(prediction, out / "masks" / "train" / f"{name}.png")
        with replacing(out / "images" / "train" / f"{name}{record.path.suffix}") as temporary:
            shutil.copyfile(record.path, temporary)
        rows += prediction.to_coco()
        if progress is not None:
            progress(1)
    with replacing(out / "classes.txt") as temporary:
        temporary.write_text("\n".join(dataset.categories.names) + "\n", encoding="utf-8")
    return rows
