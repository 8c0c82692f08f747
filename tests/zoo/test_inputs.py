"""Published weights get the input that their zoo evaluates with: its sizes, by its own formula, and its resize."""

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskkit import zoo
from maskkit.geometry.resample import fitted_size
from maskkit.zoo.card import Preset

SIZES = [
    (480, 640), (640, 480), (427, 640), (640, 427), (333, 500), (500, 375), (612, 612), (1200, 800), (100, 1000),
    (1000, 100), (1333, 800), (800, 1333), (2160, 3840), (3024, 4032), (64, 64), (31, 57), (375, 1242), (768, 1024),
    (1080, 1920), (426, 640),
]  # fmt: skip


def of_mmdetection(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """mmcv's rescale_size."""
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def of_detectron2(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """detectron2's ResizeShortestEdge, also AdelaiDet's."""
    scale = short / min(height, width)
    new = (short, scale * width) if height < width else (scale * height, short)
    if max(new) > long:
        factor = long / max(new)
        new = (new[0] * factor, new[1] * factor)
    return int(new[0] + 0.5), int(new[1] + 0.5)


def of_torchvision(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """By torchvision itself; what the pixels are does not matter."""
    transform = GeneralizedRCNNTransform(short, long, [0.0] * 3, [1.0] * 3)
    return transform([torch.zeros(1, 1, 1).expand(3, height, width)])[0].image_sizes[0]


ZOOS = {
    "torchvision": (of_torchvision, ("bilinear", False)),
    "github.com/open-mmlab/mmdetection": (of_mmdetection, ("cv2", False)),
    "github.com/WXinlong/SOLO": (of_mmdetection, ("cv2", False)),
    "github.com/aim-uofa/AdelaiDet": (of_detectron2, ("bilinear", True)),
    "github.com/facebookresearch/detectron2": (of_detectron2, ("bilinear", True)),
}
PRESETS = [
    p
    for p in zoo.presets()
    if p.weights is not None
    and p.weights.source in ZOOS
    and not p.name.startswith(("mask2former", "rtmdet", "fcn", "deeplab"))
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_inputs_are_those_of_the_zoo(preset: Preset) -> None:
    assert preset.weights is not None
    formula, (interpolation, antialias) = ZOOS[preset.weights.source]
    given = preset.input
    assert (given.interpolation, given.antialias) == (interpolation, antialias)
    if given.resize == "stretch":
        assert preset.name.startswith("yolact")
        assert given.size == (550, 550)
        return
    assert given.resize == "shorter"
    for height, width in SIZES if formula is not of_torchvision else SIZES[:12] + SIZES[14:]:  # it resizes, slowly
        ours = fitted_size((height, width), given.size, given.resize, given.truncate)
        assert ours == formula(height, width, *given.size), (height, width)
