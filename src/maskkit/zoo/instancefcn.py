"""InstanceFCN: presets."""

from maskkit.config import InputConfig, TrainConfig
from maskkit.models.instancefcn import InstanceFcn, InstanceFcnConfig
from maskkit.zoo.card import Method
from maskkit.zoo.class_names import OBJECT
from maskkit.zoo.recipes import FLIP, FROZEN_MOBILENET, NO_STD, VGG_MEAN, Recipe, small_presets

# presets --------------------------------------------------------------------------------------------------------------

METHOD = Method(
    title="InstanceFCN",
    paper="Dai, He, Li, Ren, Sun: Instance-sensitive Fully Convolutional Networks. ECCV 2016",
    model=InstanceFcn,
    presets=(
        Recipe(
            InputConfig((900, 1500), "shorter", mean=VGG_MEAN, std=NO_STD),
            FLIP,
            TrainConfig(
                steps=40000, batch=8, lr=1e-3, weight_decay=5e-4, schedule="steps", milestones=(0.8,), warmup=0
            ),
            classes=OBJECT,
        ).preset(
            "instancefcn-vgg16",
            InstanceFcnConfig(),
            "COCO val mask AR@10/100/1000 16.6/31.7/39.2; VOC 2012 val 38.9/49.7/52.6 (class-agnostic)",
        ),
        *small_presets(
            "instancefcn",
            lambda _: InstanceFcnConfig(
                backbone=FROZEN_MOBILENET,
                stage=16,
                width=128,
                scales=(1.5, 1.0, 1 / 1.5, 1 / 1.5**2),
                soft_targets=True,
            ),
            ours="facades mask AR@10/100/1000 0.079/0.165/0.207 after 237 steps",
            classes=OBJECT,
        ),
    ),
    agreement="mask assembly, 1 case",
)
