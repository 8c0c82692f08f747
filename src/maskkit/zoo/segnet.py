"""SegNet: key maps of meetshah1995/pytorch-semseg and of the official Caffe layers, and presets."""

import re

from torch import Tensor

from maskkit.config import InputConfig, TrainConfig
from maskkit.errors import DataError
from maskkit.models.segnet import Segnet, SegnetConfig
from maskkit.nn.backbones.vgg import LAYOUT
from maskkit.zoo.card import Method
from maskkit.zoo.class_names import CAMVID
from maskkit.zoo.recipes import FLIP, NO_STD, SMALL_TRAIN, Recipe

_CONVS = [len(widths) for widths in LAYOUT]


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if m := re.fullmatch(r"down(\d)\.conv(\d)\.cbr_unit\.([01])\.(\w+)", name):
        return _encoder(int(m[1]), int(m[2]), int(m[3]), m[4])
    if m := re.fullmatch(r"up(\d)\.conv(\d)\.cbr_unit\.([01])\.(\w+)", name):
        return f"upsampling.{5 - int(m[1])}.{int(m[2]) - 1}.{m[3]}.{m[4]}"
    if m := re.fullmatch(r"conv(\d)_(\d)(_D)?(_bn)?\.(\w+)", name):
        stage, number, part = int(m[1]), int(m[2]), int(m[4] is not None)
        if m[3] is None:
            return _encoder(stage, number, part, m[5])
        # the decoder numbers its convolutions backwards
        return f"upsampling.{5 - stage}.{_CONVS[stage - 1] - number}.{part}.{m[5]}"
    raise DataError(f"{name!r} is not a tensor in checkpoints of SegNet")


def _encoder(stage: int, number: int, part: int, leaf: str) -> str:
    before = sum(3 * convs + 1 for convs in _CONVS[: stage - 1])
    return f"backbone.body.features.{before + 3 * (number - 1) + part}.{leaf}"


# presets --------------------------------------------------------------------------------------------------------------

_CAMVID = Recipe(
    InputConfig((360, 480), "pad", mean=(0.0, 0.0, 0.0), std=NO_STD),
    FLIP,
    TrainConfig(epochs=435, batch=4, lr=1e-3, milestones=(), schedule="steps"),  # 40,000 steps
    classes=CAMVID,
)

METHOD = Method(
    title="SegNet",
    paper="Badrinarayanan, Kendall, Cipolla: SegNet. TPAMI 2017",
    model=Segnet,
    presets=(
        _CAMVID.preset(
            "segnet-vgg16", SegnetConfig(num_classes=11), "CamVid test mIoU 60.10 (3.5k images), 50.2 (367)"
        ),
        _CAMVID.preset(
            "segnet-thin",
            SegnetConfig(num_classes=11, layout=((16, 16), (32, 32), (64, 64), (96, 96), (128, 128))),
            ours="CamVid val mIoU 0.398 from random weights, 20 min on 1 core",
            train=SMALL_TRAIN,
            small=True,
        ),
    ),
    rename=rename,
    agreement="meetshah1995/pytorch-semseg, 1 case",
)
