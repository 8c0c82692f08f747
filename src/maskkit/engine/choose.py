"""The preset of a training that names none, by the labels of the data and the number of images."""

from pathlib import Path

from maskkit.checkpoints import find
from maskkit.checkpoints.header import categories_of, read_header
from maskkit.config import DataConfig
from maskkit.data import open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.rules import counted
from maskkit.errors import DataError
from maskkit.infer.torch_runtime import find_device

LARGE = 2000
"""Number of training images from which on a published model is fine-tuned, if there is an accelerator."""

KNOWN = 0.5
"""Share of the class names that the built-in model has to know to be the initial weights."""


def choose(data: DataConfig, device: str | None = None) -> tuple[str, str]:
    """The name of the preset for ``data``, and a line that says why.

    ``device`` is that of the training, as in `find_device`. The figures behind the choice are in ``docs/benchmarks``.
    Raises `DataError` for data that cannot be read or have no labels that a preset learns from.
    """
    train_set = open_dataset(data.train, "train", data.allow_outside)
    labels = kind_of(train_set, data)
    large = len(train_set) >= LARGE and find_device(device).type != "cpu"
    name, reason = _preset(labels, large, train_set)
    images, classes = counted(len(train_set), "image"), len(train_set.categories)
    what = f"{images} with {_LABELS[labels]}, {classes} {'class' if classes == 1 else 'classes'}"
    return name, f"{what}: --model {name}, {reason}"


_LABELS = {
    "panoptic": "segments of things and stuff",
    "masks": "masks of objects",
    "boxes": "boxes of objects",
    "label_map": "label maps",
}


def kind_of(train_set: Dataset, data: DataConfig) -> str:
    """The labels that a training on ``data`` can use: ``panoptic``, ``masks``, ``boxes`` or ``label_map``.

    Raises `DataError` where there are no labels, or image tags alone.
    """
    objects = [a for record in train_set.records for a in record.annotations]
    maps = any(record.semantic is not None and record.semantic.known for record in train_set.records)
    if data.labels != "tags" and objects:
        if data.labels == "boxes" or not any(a.segmentation is not None for a in objects):
            return "boxes"
        return "masks" if all(train_set.categories.things) else "panoptic"
    if data.labels == "masks" and maps:
        return "label_map"
    if data.labels == "tags" or any(record.semantic is not None for record in train_set.records):
        raise DataError(
            f"{data.train}: image tags alone train no model of masks; maskkit pseudo-masks makes masks of them, or "
            "name a preset with --model"
        )
    raise DataError(f"{data.train}: no image has a label, there is nothing to learn; add annotations")


def _preset(labels: str, large: bool, train_set: Dataset) -> tuple[str, str]:
    """Name and reason."""
    if labels == "panoptic":
        return "mask2former-mobilenetv2-320-panoptic", "the small panoptic model"
    if labels == "label_map":
        if large:
            return "deeplabv3-resnet50-coco", "fine-tuned on the accelerator, since there are many images"
        return "fcn8s-mobilenetv2-320", "the small semantic model that learned fastest on street scenes"
    if large:
        return "maskrcnn-resnet50", "fine-tuned on the accelerator, since there are many images"
    if (known := known_classes(train_set)) >= KNOWN * len(train_set.categories):
        return "nanoinst-416", f"small, since the built-in model, from which it starts, knows {known} of them"
    if labels == "boxes":
        return "condinst-mobilenetv2-320", "the small model with the best masks from boxes"
    return "maskrcnn-mobilenetv2-320", "the small model with the best masks after minutes of training"


def known_classes(train_set: Dataset) -> int:
    """Number of classes of the data whose names the built-in model knows."""
    if not Path(find.BUILT_IN_WEIGHTS).is_file():
        return 0
    return len(train_set.categories.numbers_in(categories_of(read_header(find.BUILT_IN_WEIGHTS))))
