"""Published weights get the input that their zoo evaluates with: its sizes, by its own formula, and its resize."""

import re

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import resize

from maskkit import zoo
from maskkit.geometry.resample import fitted_size
from maskkit.zoo.card import Preset
from maskkit.zoo.recipes import NO_LIMIT

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
    """What its detectors do, by themselves."""
    resize = GeneralizedRCNNTransform(short, long, [0.0] * 3, [1.0] * 3).eval().resize
    return tuple(resize(torch.zeros(3, height, width, device="meta"), None)[0].shape[1:])  # type: ignore[return-value]


def of_torchvision_semantic(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """The transforms of its semantic weights: the shorter side, whatever the longer one becomes."""
    assert long == NO_LIMIT
    return tuple(resize(torch.zeros(1, height, width), [short]).shape[1:])  # type: ignore[return-value]


ZOOS = {
    "github.com/open-mmlab/mmdetection": (of_mmdetection, ("cv2", False)),
    "github.com/open-mmlab/mmsegmentation": (of_mmdetection, ("cv2", False)),
    "github.com/WXinlong/SOLO": (of_mmdetection, ("cv2", False)),
    "github.com/aim-uofa/AdelaiDet": (of_detectron2, ("bilinear", True)),
    "github.com/facebookresearch/detectron2": (of_detectron2, ("bilinear", True)),
    "github.com/facebookresearch/Mask2Former": (of_detectron2, ("bilinear", True)),
    "github.com/baaivision/EVA": (of_detectron2, ("bilinear", True)),
    "torchvision": (of_torchvision, ("bilinear", False)),
    "torchvision semantic": (of_torchvision_semantic, ("bilinear", True)),
}
PRESETS = [
    p
    for p in zoo.presets()
    if p.weights is not None and p.weights.source in ZOOS and not re.match(r"mask2former.*-mmdet", p.name)
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_inputs_are_those_of_the_zoo(preset: Preset) -> None:
    assert preset.weights is not None
    semantic = " semantic" if preset.weights.source == "torchvision" and len(preset.classes) == 21 else ""
    formula, (interpolation, antialias) = ZOOS[preset.weights.source + semantic]
    given = preset.input
    assert (given.interpolation, given.antialias) == (interpolation, antialias)
    if given.resize == "stretch":
        assert preset.name.startswith("yolact")
        assert given.size == (550, 550)
        return
    assert given.resize == ("pad" if preset.name.startswith(("rtmdet", "eva")) else "shorter")
    for height, width in SIZES:
        ours = fitted_size((height, width), given.size, given.resize, given.rounding)
        assert ours == formula(height, width, *given.size), (height, width)


def test_half_a_pixel_is_rounded_up_in_padded_inputs() -> None:
    """An image of 361 x 1280 is 180.5 pixels high at half its size."""
    assert fitted_size((361, 1280), (640, 640), "pad") == of_mmdetection(361, 1280, 640, 640) == (181, 640)


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("mask2former-resnet50", (800, 1333)),
        ("mask2former-swin-l-panoptic", (800, 1333)),
        ("mask2former-resnet50-semantic", (512, 2048)),
        ("mask2former-swin-l-semantic", (640, 2560)),
        ("fcn-resnet50-coco", (520, NO_LIMIT)),
        ("deeplabv3-resnet101-coco", (520, NO_LIMIT)),
        ("maskrcnn-resnet50", (800, 1333)),
        ("fasterrcnn-mobilenetv3-large", (800, 1333)),
        ("fasterrcnn-mobilenetv3-large-320", (320, 640)),
        ("deeplabv3-mobilenetv3-large-coco", (520, NO_LIMIT)),
        ("fcos-resnet50-torchvision", (800, 1333)),
        ("fasterrcnn-resnet50-d2-1x", (800, 1333)),
        ("eva-giant-1280", (1536, 1536)),
    ],
)
def test_sizes_of_official_evaluations(preset: str, size: tuple[int, int]) -> None:
    """INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST of the zoos' configurations; the transforms of torchvision's weights."""
    assert zoo.preset(preset).input.size == size
