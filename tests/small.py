"""A small YOLACT with random weights, as a model and as a checkpoint."""

from pathlib import Path

import torch

from maskkit.api import configure, create_model
from maskkit.checkpoints.checkpoint import save_model
from maskkit.config import RunConfig
from maskkit.models.base import Model
from maskkit.prediction import Categories, Instances, Masks, Prediction

PRESET = "yolact-mobilenetv2-256"
SECTIONS = {"model": {"width": 16, "num_classes": 2}, "input": {"size": (64, 64)}}


def small_config() -> RunConfig:
    """Two classes, 64 x 64 pixels."""
    return configure(PRESET, **SECTIONS)


def small_model(seed: int = 0) -> Model:
    """Random weights; some anchors score above the threshold of the method."""
    torch.manual_seed(seed)
    return create_model(PRESET, 2, width=16).eval()


def save_small(path: Path, names: tuple[str, ...] = ("disc", "ring")) -> Path:
    """A checkpoint of `small_model` for classes called ``names`` with the ids 7, 8."""
    save_model(path, small_model(), small_config(), Categories(names, (7, 8)), {"step": 3})
    return path


def objects(prediction: Prediction) -> Instances:
    """What a prediction found, which must be something with instances."""
    assert prediction.instances is not None
    return prediction.instances


def masks(prediction: Prediction) -> Masks:
    """The masks of a prediction, which must have some."""
    found = objects(prediction).masks
    assert found is not None
    return found
