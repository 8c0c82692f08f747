"""How several methods were trained: inputs, augmentations, schedules, and presets that differ by the model alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from maskkit.config import AugmentConfig, InputConfig, ModelConfig, Preset, TrainConfig

CAFFE_INPUT = InputConfig(size=(800, 1333), resize="shorter", mean=(123.675, 116.28, 103.53), std=(1, 1, 1))
"""Input of detectron2's ResNets: shorter side 800, no division."""

SINGLE_SCALE = AugmentConfig(photometric=False, expand=1.0, iou_crop=False)
"""A mirror and nothing else."""
MULTI_SCALE = AugmentConfig(photometric=False, expand=1.0, iou_crop=False, short_sides=(640, 672, 704, 736, 768, 800))


def adelaidet_train(times: int) -> TrainConfig:
    """``times`` 90,000 steps of 16 images of COCO train2017 (1x, 2x, 3x), the rate lowered near the end."""
    return TrainConfig(
        epochs=12.28 * times,
        batch=16,
        lr=0.01,
        weight_decay=1e-4,
        decay_norm=False,
        decay_bias=True,
        schedule="steps",
        milestones=(7 / 9, 25 / 27) if times == 3 else (2 / 3, 8 / 9),
        warmup=1000,
        warmup_from=0.001,
    )


TORCHVISION_INPUT = InputConfig(
    size=(800, 1333), resize="shorter", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
)
"""Input of torchvision's detectors."""
TORCHVISION_TRAIN = TrainConfig(
    epochs=26, batch=16, lr=0.02, weight_decay=1e-4, schedule="steps", milestones=(16 / 26, 22 / 26), warmup=1000
)
"""What torchvision's detectors were trained by."""


def detectron2_train(times: int) -> TrainConfig:
    """``times`` 90,000 steps of 16 images, at twice the rate of `adelaidet_train`."""
    return replace(adelaidet_train(times), lr=0.02)


def adelaidet(name: str, model: ModelConfig, times: int, paper: str, augment: AugmentConfig = MULTI_SCALE) -> Preset:
    """A model of AdelaiDet's zoo, trained by `adelaidet_train`."""
    return Preset(
        name=name,
        model=model,
        input=CAFFE_INPUT,
        augment=augment,
        train=adelaidet_train(times),
        published="github.com/aim-uofa/AdelaiDet (non-commercial licence): download by hand, then `maskkit import`",
        paper=paper,
    )


def detectron2(name: str, model: ModelConfig, times: int, paper: str) -> Preset:
    """A model of detectron2's zoo, trained by `detectron2_train`."""
    return Preset(
        name=name,
        model=model,
        input=replace(CAFFE_INPUT, antialias=True),
        augment=SINGLE_SCALE if times == 1 else MULTI_SCALE,
        train=detectron2_train(times),
        published="github.com/facebookresearch/detectron2 (Apache-2.0): download by hand, then `maskkit import`",
        paper=paper,
    )


# small models for two processor cores, on a MobileNetV2 with TensorFlow's padding -------------------------------------

MOBILENET: dict[str, Any] = {"backbone": "mobilenetv2_100", "pad_same": True}
SMALL_TRAIN = TrainConfig(epochs=40, batch=8, optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup=50, clip=10.0)
SMALL_AUGMENT = AugmentConfig(expand=2.0)
SMALL_FCOS: dict[str, Any] = {
    **MOBILENET,
    "frozen_stride": 4,
    "width": 128,
    "tower_convs": 2,
    "strides": (8, 16, 32, 64),
    "size_ranges": (64, 128, 256),
    "distance_activation": "exp",
}
"""Knobs of a small FCOS, and of what is built on it."""


def small_presets(
    method: str,
    model: Callable[[int], ModelConfig],
    train: TrainConfig = SMALL_TRAIN,
    ours: str = "",
    sizes: tuple[int, ...] = (320, 256),
    suffix: str = "",
) -> list[Preset]:
    """``METHOD-mobilenetv2-SIZE`` for each of the ``sizes``, ``model`` may depend on it; ``ours`` is of the first."""
    return [
        Preset(
            name=f"{method}-mobilenetv2-{size}{suffix}",
            model=model(size),
            input=InputConfig(size=(size, size), mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
            augment=SMALL_AUGMENT,
            train=train,
            ours=ours if size == sizes[0] else "",
        )
        for size in sizes
    ]


def small_semantic(name: str, model: ModelConfig, size: tuple[int, int]) -> Preset:
    """A model of label maps, which learns from images of about ``size`` (height, width) and keeps their shape."""
    return Preset(
        name=name,
        model=model,
        input=InputConfig(size, "pad", mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
        augment=AugmentConfig(expand=1.0, iou_crop=False, scale_jitter=(0.75, 1.5)),
        train=SMALL_TRAIN,
    )
