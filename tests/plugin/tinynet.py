"""A method of another package, of two thousand weights: one object per class, cut out of a class map.

It is found by its entry point (tinynet-0.1.dist-info), as an installed package would be.

It has what a resume can get wrong: batch norm statistics, a backbone, random choices in the loss.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskkit.config import AugmentConfig, InputConfig, ModelConfig, TrainConfig
from maskkit.decode import OverInput
from maskkit.decode.outputs import ObjectMasks
from maskkit.models.base import Model
from maskkit.prediction import Categories
from maskkit.ranges import Count
from maskkit.targets import Batch, Target
from maskkit.zoo.card import Method, Preset


@dataclass(frozen=True)
class TinyConfig(ModelConfig):
    num_classes: Count = 3
    width: Count = 8
    poison: bool = False
    """Whether the loss is not a number."""


class TinyRaw(NamedTuple):
    maps: Tensor  # (B, C, H/4, W/4)


class TinyNet(Model[TinyRaw, ObjectMasks[Tensor]]):
    decoder = OverInput()
    config: TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = nn.Sequential(
            nn.Conv2d(3, config.width, 3, stride=2, padding=1),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
            nn.Conv2d(config.width, config.width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(config.width, config.num_classes, 3, padding=1)

    def forward(self, images: Tensor, sizes: Tensor | None = None, targets: list[Target] | None = None) -> TinyRaw:
        return TinyRaw(self.head(self.backbone(images)))

    def loss_terms(self, raw: TinyRaw, batch: Batch) -> dict[str, Tensor]:
        maps = raw.maps.float()
        truth = torch.zeros_like(maps)
        for i, target in enumerate(batch.targets):
            if target.masks is not None:
                size = raw.maps.shape[2], raw.maps.shape[3]
                for label, mask in zip(target.labels, target.masks.dense(size), strict=True):
                    truth[i, label] = torch.maximum(truth[i, label], mask.float())
        chosen = torch.rand_like(maps) < 0.5
        loss = F.binary_cross_entropy_with_logits(maps[chosen], truth[chosen])
        return {"mask": loss * float("nan") if self.config.poison else loss, "mask/size": 1e-3 * maps.pow(2).mean()}

    def select(self, raw: TinyRaw) -> ObjectMasks[Tensor]:
        masks = raw.maps.sigmoid()
        inside = masks > 0.3
        boxes = torch.stack([extent(inside.any(2)), extent(inside.any(3))], -1).flatten(2)  # (B, C, 2, 2): low, high
        scores = masks.amax((2, 3)) * inside.any(3).any(2)
        scores, labels = scores.sort(dim=1, descending=True)
        image = torch.arange(scores.shape[0])[:, None]
        return ObjectMasks(boxes[image, labels], labels, scores, masks[image, labels], scores)


def extent(line: Tensor) -> Tensor:
    """First and last True along the last axis as shares of its length."""
    n = line.shape[-1]
    first = line.float().argmax(-1)
    last = n - line.flip(-1).float().argmax(-1)
    return torch.stack([first, last], -1) / n


METHOD = Method(
    title="TinyNet",
    paper="none",
    model=TinyNet,
    presets=(
        Preset(
            "tinynet",
            TinyConfig(),
            InputConfig(size=(64, 64)),
            AugmentConfig(photometric=False, iou_crop=False, expand=1.5, vertical_flip=0.5),
            TrainConfig(
                steps=30,
                batch=4,
                optimizer="adamw",
                lr=0.02,
                workers=0,
                eval_every=2.0,
                save_every=4,
                warmup=3,
                ema=0.8,
            ),
            classes=Categories.of(["a", "b", "c"]),
            weights=None,
            paper=None,
            ours=None,
        ),
    ),
    agreement="nothing to agree with",
)
