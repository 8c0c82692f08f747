"""PSENet: key map of whai362/PSENet (Apache-2.0), and presets."""

import re

from torch import Tensor

from maskkit.config import AugmentConfig, BackboneConfig, TrainConfig
from maskkit.errors import DataError
from maskkit.models.psenet import Psenet, PsenetConfig
from maskkit.zoo.card import Method, Weights
from maskkit.zoo.class_names import TEXT
from maskkit.zoo.recipes import FROZEN_MOBILENET, Recipe, imagenet_input, small_presets

_STEM = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}
_UNIT = {"conv": "0", "bn": "1"}
_HEAD = {"conv1": "0.0", "bn1": "0.1", "conv2": "1"}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if m := re.fullmatch(r"backbone\.(conv[123]|bn[123])\.(\w+)", name):  # a stem of three convolutions
        return f"backbone.body.{_STEM[m[1]]}.{m[2]}"
    if m := re.fullmatch(r"backbone\.(layer\d\..+)", name):
        return f"backbone.body.{m[1]}"
    if m := re.fullmatch(r"fpn\.toplayer_\.(conv|bn)\.(\w+)", name):
        return f"fpn.lateral.3.{_UNIT[m[1]]}.{m[2]}"
    if m := re.fullmatch(r"fpn\.(latlayer|smooth)([123])_\.(conv|bn)\.(\w+)", name):  # counted from the top
        part = "lateral" if m[1] == "latlayer" else "smooth"
        return f"fpn.{part}.{3 - int(m[2])}.{_UNIT[m[3]]}.{m[4]}"
    if m := re.fullmatch(r"det_head\.(conv[12]|bn1)\.(\w+)", name):
        return f"head.{_HEAD[m[1]]}.{m[2]}"
    raise DataError(f"{name!r} is not a tensor in checkpoints of PSENet")


# presets --------------------------------------------------------------------------------------------------------------

METHOD = Method(
    title="PSENet",
    paper="Wang et al.: Shape Robust Text Detection with Progressive Scale Expansion Network. CVPR 2019",
    model=Psenet,
    presets=(
        Recipe(
            imagenet_input((736, 2048), "shorter"),
            AugmentConfig(expand=1.0, short_sides=(544, 640, 736, 832, 928)),
            TrainConfig(
                epochs=600, batch=16, lr=1e-3, momentum=0.99, schedule="steps", milestones=(1 / 3, 2 / 3), warmup=0
            ),
            Weights("github.com/whai362/PSENet", "Apache-2.0"),
            TEXT,
        ).preset(
            "psenet-resnet50",
            PsenetConfig(backbone=BackboneConfig("resnet50s", norm="train")),
            "ICDAR 2015 F-measure 80.6 (78.5 as released at 736 px)",
        ),
        *small_presets(
            "psenet",
            lambda _: PsenetConfig(backbone=FROZEN_MOBILENET, width=64, min_area=9.0, min_score=0.0),
            ours="nuclei mask AP 0.424 at 448 px, 20 min on 1 core",
            classes=TEXT,
        ),
    ),
    rename=rename,
    agreement="whai362/PSENet, 3 cases",
)
