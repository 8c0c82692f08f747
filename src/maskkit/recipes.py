"""How several methods were trained: inputs, augmentations and schedules that their presets share."""

from dataclasses import replace
from typing import Any

from maskkit.config import AugmentConfig, InputConfig, TrainConfig

CAFFE_INPUT = InputConfig(size=(800, 1333), resize="shorter", mean=(123.675, 116.28, 103.53), std=(1, 1, 1))
"""Input of detectron2's ResNets: shorter side 800, no division."""

SINGLE_SCALE = AugmentConfig(photometric=False, expand=1.0, iou_crop=False)
"""A mirror and nothing else."""
MULTI_SCALE = AugmentConfig(photometric=False, expand=1.0, iou_crop=False, short_sides=(640, 672, 704, 736, 768, 800))


def adelaidet_train(times: int) -> TrainConfig:
    """``times`` 90,000 steps of 16 pictures of COCO train2017 (1x, 2x, 3x), the rate lowered near the end."""
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


def small_input(size: int) -> InputConfig:
    """Input of the small models for two processor cores, whose MobileNetV2 comes from TensorFlow."""
    return InputConfig(size=(size, size), mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))


TORCHVISION_INPUT = InputConfig(
    size=(800, 1333), resize="shorter", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
)
"""Input of torchvision's detectors."""
TORCHVISION_TRAIN = TrainConfig(
    epochs=26, batch=16, lr=0.02, weight_decay=1e-4, schedule="steps", milestones=(16 / 26, 22 / 26), warmup=1000
)
"""What torchvision's detectors were trained by."""


def detectron2_train(times: int) -> TrainConfig:
    """``times`` 90,000 steps of 16 pictures, at twice the rate of `adelaidet_train`."""
    return replace(adelaidet_train(times), lr=0.02)


SMALL_AUGMENT = AugmentConfig(expand=2.0)
SMALL_TRAIN = TrainConfig(epochs=40, batch=8, optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup=50, clip=10.0)
SMALL_FCOS: dict[str, Any] = {
    "backbone": "mobilenetv2_100",
    "frozen_stride": 4,
    "pad_same": True,
    "width": 128,
    "tower_convs": 2,
    "strides": (8, 16, 32, 64),
    "reach": (64, 128, 256),
    "distances": "exp",
}
"""Knobs of a small FCOS, and of what is built on it."""
