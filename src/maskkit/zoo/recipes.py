"""What the presets of one zoo share: inputs, augmentation, schedules, sources of weights, and classes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from maskkit.config import AugmentConfig, BackboneConfig, BackboneModelConfig, InputConfig, ModelConfig, TrainConfig
from maskkit.nn.grid import GridConfig
from maskkit.prediction import Categories
from maskkit.zoo.card import Preset, Weights
from maskkit.zoo.class_names import CAMVID, COCO, COCO_IDS, VOC_SEMANTIC


@dataclass(frozen=True)
class Recipe:
    """Everything about a preset except its model and its results."""

    input: InputConfig
    augment: AugmentConfig
    train: TrainConfig
    weights: Weights | None = None
    classes: Categories = COCO
    small: bool = False

    def preset(
        self, name: str, model: ModelConfig, paper: str | None = None, ours: str | None = None, **changes: Any
    ) -> Preset:
        """A preset with this recipe; ``changes`` override fields of the recipe."""
        own = replace(self, **changes)
        return Preset(name, model, own.input, own.augment, own.train, own.classes, own.weights, paper, ours, own.small)


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""RGB (0..255), as in torchvision and timm."""
NO_STD = (1.0, 1.0, 1.0)
PANET_MEAN = (122.7717, 115.9465, 102.9801)
"""Detectron's mean, in RGB."""
CAFFE_MEAN = (122.675, 116.669, 104.008)
VGG_MEAN = (122.68, 116.67, 104.01)

Resize = Literal["stretch", "pad", "shorter"]
Interpolation = Literal["bilinear", "cv2", "cv2_float"]


def imagenet_input(
    size: tuple[int, int], resize: Resize, *, divide: bool = True, interpolation: Interpolation = "bilinear"
) -> InputConfig:
    """An input normalised by ImageNet's mean and, unless the weights come from Caffe, its standard deviation."""
    std = IMAGENET_STD if divide else NO_STD
    return InputConfig(size, resize, interpolation=interpolation, mean=IMAGENET_MEAN, std=std)


FLIP = AugmentConfig(photometric=False, expand=1.0, iou_crop=False)
"""Horizontal flips and nothing else."""
SHORT_SIDES = (640, 672, 704, 736, 768, 800)
LIGHT_SHORT_SIDES = (352, 384, 416, 448, 480, 512)
"""For SOLO's light models."""
MULTI_SCALE = replace(FLIP, short_sides=SHORT_SIDES)


# detectron2 and what is built on it -----------------------------------------------------------------------------------

CAFFE_INPUT = replace(imagenet_input((800, 1333), "shorter", divide=False), antialias=True)
"""Input of detectron2's ResNets: shorter side 800, Pillow's resize, no division by the standard deviation."""


def caffe_resnet(layers: int = 50) -> BackboneConfig:
    """A ResNet of detectron2's zoo, whose weights come from Caffe, with its first stage frozen."""
    return BackboneConfig(f"resnet{layers}", frozen_stride=4, stride_in_1x1=True)


def detectron2_train(times: int, lr: float = 0.02) -> TrainConfig:
    """detectron2's 1x, 2x and 3x schedules: ``times`` 90,000 steps of 16 images of COCO train2017."""
    return TrainConfig(
        epochs=12.28 * times,
        batch=16,
        lr=lr,
        weight_decay=1e-4,
        decay_norm=False,
        decay_bias=True,
        schedule="steps",
        milestones=(7 / 9, 25 / 27) if times == 3 else (2 / 3, 8 / 9),
        warmup=1000,
        warmup_from=0.001,
    )


ADELAIDET = Weights("github.com/aim-uofa/AdelaiDet", "non-commercial", non_commercial=True)


def adelaidet(times: int, augment: AugmentConfig = MULTI_SCALE) -> Recipe:
    """AdelaiDet's zoo: detectron2's schedules at half the learning rate."""
    return Recipe(CAFFE_INPUT, augment, detectron2_train(times, 0.01), ADELAIDET)


def detectron2(times: int, file: str) -> Recipe:
    """detectron2's zoo; ``file`` is the path of the weights in it, as MODEL_ZOO.md and model_zoo.py give it."""
    weights = Weights("github.com/facebookresearch/detectron2", "CC-BY-SA-3.0")  # the code is Apache-2.0
    weights = weights.at(f"https://dl.fbaipublicfiles.com/detectron2/{file}")
    augment = FLIP if times == 1 else MULTI_SCALE
    return Recipe(CAFFE_INPUT, augment, detectron2_train(times), weights)


# torchvision ----------------------------------------------------------------------------------------------------------


def torchvision_detection(weights: str, size: tuple[int, int] = (800, 1333), lr: float = 0.02) -> Recipe:
    """torchvision's detectors; ``weights`` is their name there. Every id from 1 to 90 is a class.

    The schedule is that of the first versions; the second ones had a better one, which the library does not describe.
    """
    train = TrainConfig(
        epochs=26, batch=16, lr=lr, weight_decay=1e-4, schedule="steps", milestones=(16 / 26, 22 / 26), warmup=1000
    )
    source = Weights("torchvision", "BSD-3-Clause", weights)
    input = replace(imagenet_input(size, "shorter"), rounding="down")  # GeneralizedRCNNTransform
    return Recipe(input, FLIP, train, source, COCO_IDS)


TORCHVISION_WEIGHTS = Weights("torchvision", "BSD-3-Clause")
NO_LIMIT = 65_536
"""As the longest side of an input."""
TORCHVISION_SEMANTIC = Recipe(
    # transforms of the weights (SemanticSegmentation, resize_size=520): the shorter side, Pillow's resize, no padding
    replace(imagenet_input((520, NO_LIMIT), "shorter"), antialias=True, rounding="longer_down", multiple=1),
    replace(FLIP, scale_jitter=(0.5, 2.0), canvas=(480, 480)),
    TrainConfig(epochs=30, batch=32, lr=0.02, weight_decay=1e-4),
    TORCHVISION_WEIGHTS,
    VOC_SEMANTIC,
)
"""torchvision's semantic models, trained on COCO with the classes of VOC."""


# mmdetection and what is built on it ----------------------------------------------------------------------------------

MMDETECTION = Weights("github.com/open-mmlab/mmdetection", "Apache-2.0")
MMDETECTION_INPUT = imagenet_input((800, 1333), "shorter", interpolation="cv2")
"""Input of mmdetection's models in PyTorch style: shorter side 800, OpenCV's resize of bytes, ImageNet's statistics."""


def mmdetection_file(folder: str, end: str) -> Weights:
    """mmdetection's weights in ``folder`` of OpenMMLab's server; the file is called like the folder, plus ``end``."""
    name = folder.rpartition("/")[2]
    return MMDETECTION.at(f"https://download.openmmlab.com/mmdetection/{folder}/{name}{end}.pth")


def _openmmlab_train(
    times: int, milestones: tuple[float, float], warmup_from: float, lr: float = 0.01, clip: float = 35.0
) -> TrainConfig:
    """OpenMMLab's schedules: ``times`` 12 epochs of COCO in batches of 16."""
    return TrainConfig(
        epochs=12 * times,
        batch=16,
        lr=lr,
        weight_decay=1e-4,
        schedule="steps",
        milestones=milestones,
        warmup=500,
        warmup_from=warmup_from,
        clip=clip,
    )


def mmdetection(times: int, input: InputConfig = MMDETECTION_INPUT) -> Recipe:
    """mmdetection's zoo: ``times`` 12 epochs of 16 images, with multi-scale training in the 2x schedule. The rate is
    that of the one-stage methods."""
    train = _openmmlab_train(times, (8 / 12, 11 / 12), warmup_from=1 / 3)
    return Recipe(input, FLIP if times == 1 else MULTI_SCALE, train, MMDETECTION)


def mmdetection_90k(weights: Weights) -> Recipe:
    """Its models that follow detectron2: 90,000 steps, with multi-scale training."""
    train = replace(detectron2_train(1, 0.01), decay_norm=True)
    return replace(mmdetection(1), augment=MULTI_SCALE, train=train, weights=weights)


MMDETECTION_FCOS: dict[str, Any] = {"score": "product", "clip": True}
"""Fields of mmdetection's anchor-free detectors, of which the score of class times quality is no square root."""


def mmdetection_two_stage(times: int, caffe: bool, weights: Weights) -> Recipe:
    """mmdetection's two-stage detectors: ``times`` 12 epochs, with multi-scale training in the 3x schedule.

    The ``caffe`` style has BGR images and Caffe's ResNets.
    """
    milestones = (8 / 12, 11 / 12) if times < 3 else (27 / 36, 33 / 36)
    train = _openmmlab_train(times, milestones, warmup_from=0.001, lr=0.02, clip=0.0)
    input = replace(MMDETECTION_INPUT, std=NO_STD) if caffe else MMDETECTION_INPUT
    return Recipe(input, MULTI_SCALE if times == 3 else FLIP, train, replace(weights, bgr=caffe))


def mmdetection_resnet(layers: int, caffe: bool = False) -> BackboneConfig:
    """A ResNet of mmdetection's detectors, with its first stage frozen; ``caffe`` strides in the first 1x1."""
    return BackboneConfig(f"resnet{layers}", frozen_stride=4, stride_in_1x1=caffe)


def solo_recipe(times: int, warmup_from: float) -> Recipe:
    """The zoo of WXinlong/SOLO, built on mmdetection: ``times`` 12 epochs, with multi-scale training in the 3x
    schedule."""
    train = _openmmlab_train(times, (9 / 12, 11 / 12), warmup_from)
    weights = Weights("github.com/WXinlong/SOLO", "academic use", non_commercial=True)
    return Recipe(MMDETECTION_INPUT, MULTI_SCALE if times == 3 else FLIP, train, weights)


LIGHT_GRID = GridConfig(scale_ranges=((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048)))
"""Of SOLO's light models for a shorter side of 512."""
SMALL_TOWERS: dict[str, Any] = {"width": 96, "head_width": 96, "head_convs": 2}
"""Knobs of the small SOLOs and SOLOv2s."""


def small_grid(size: int) -> GridConfig:
    """Grids of a small SOLO for an input of ``size``: ranges of object sizes a fifth finer than the published ones."""
    shares = ((0.0, 0.12), (0.08, 0.22), (0.16, 0.44), (0.32, 0.8), (0.6, 2.0))
    return GridConfig(
        grids=(40, 28, 20, 14, 10),
        scale_ranges=tuple((size * low, size * high) for low, high in shares),
        min_area=(3, 4, 8, 16, 16),
        candidates=300,
        nms_top=300,
    )


# small models for two CPU cores ---------------------------------------------------------------------------------------

MOBILENET = BackboneConfig("mobilenetv2_100", pad_same=True)
"""A MobileNetV2 with TensorFlow's padding."""
FROZEN_MOBILENET = replace(MOBILENET, frozen_stride=4)
HALF = (127.5, 127.5, 127.5)
"""TensorFlow's mean and standard deviation."""
SMALL_TRAIN = TrainConfig(epochs=40, batch=8, optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup=50, clip=10.0)
SMALL_AUGMENT = AugmentConfig(expand=2.0)
SMALL_DETECTOR: dict[str, Any] = {
    "width": 128,
    "tower_convs": 2,
    "strides": (8, 16, 32, 64),
    "size_ranges": (64, 128, 256),
}
"""Fields of a small anchor-free detector."""
SMALL_FCOS: dict[str, Any] = {**SMALL_DETECTOR, "distance_activation": "exp"}
"""Fields of a small FCOS, and of the methods built on it."""

SMALL_CONDINST: dict[str, Any] = {
    "backbone": FROZEN_MOBILENET,
    "detector": SMALL_FCOS,
    "masks": {"branch_width": 64, "branch_convs": 2},
}
"""Fields of a small CondInst or BoxInst."""


def small_proposals(size: int, after: int) -> dict[str, Any]:
    """Changes of a region proposal network on one level that make it small, for an input of ``size``."""
    anchors = (tuple(size * share for share in (0.09, 0.18, 0.36, 0.72)),)
    return {"anchor_sizes": anchors, "before": (1000, 1000), "after": (after, after)}


def small_presets(
    method: str,
    model: Callable[[int], ModelConfig],
    train: TrainConfig = SMALL_TRAIN,
    ours: str | None = None,
    sizes: tuple[int, ...] = (320, 256),
    suffix: str = "",
    classes: Categories = COCO,
) -> tuple[Preset, ...]:
    """``METHOD-mobilenetv2-SIZE`` for each of ``sizes``; ``model`` maps a size to a config, ``ours`` is the first's."""
    return tuple(
        Recipe(
            InputConfig((size, size), mean=HALF, std=HALF), SMALL_AUGMENT, train, classes=classes, small=True
        ).preset(f"{method}-mobilenetv2-{size}{suffix}", model(size), ours=ours if size == sizes[0] else None)
        for size in sizes
    )


NANODET_INPUT = replace(imagenet_input((416, 416), "stretch"), antialias=True)
"""The aspect ratio is not kept."""


def on_nanodet(preset: Preset, ours: str | None = None) -> Preset:
    """``METHOD-nanodet-SIZE`` of a small preset: on the backbone and the pyramid of the built-in model.

    These were trained on COCO, and learn at a tenth of the rate of the rest. Batch norm is folded into them.
    """
    assert isinstance(preset.model, BackboneModelConfig)
    return replace(
        preset,
        name=preset.name.replace("mobilenetv2", "nanodet"),
        model=replace(preset.model, backbone=BackboneConfig("nanodet_plus_m")),
        input=replace(NANODET_INPUT, size=preset.input.size),
        train=replace(preset.train, backbone_lr=0.1),
        ours=ours,
    )


def small_semantic(name: str, model: ModelConfig, size: tuple[int, int], ours: str | None = None) -> Preset:
    """A small semantic model for images of about ``size`` (height, width), whose aspect ratio is kept."""
    classes = {len(c): c for c in (CAMVID, VOC_SEMANTIC)}[model.num_classes]
    augment = replace(FLIP, photometric=True, scale_jitter=(0.75, 1.5))
    recipe = Recipe(InputConfig(size, "pad", mean=HALF, std=HALF), augment, SMALL_TRAIN, classes=classes, small=True)
    return recipe.preset(name, model, ours=ours)
