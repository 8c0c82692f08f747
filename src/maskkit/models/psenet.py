"""PSENet: instances grown from shrunken kernels by progressive scale expansion.

Wang, Xie, Li, Hou, Lu, Yu, Shao: "Shape Robust Text Detection with Progressive Scale Expansion Network" (CVPR 2019).

The network segments every object n times, each time shrunk a little more. The smallest kernels of neighbours do not
touch, so their connected components are the instances; these grow step by step through the larger kernels until they
fill the complete objects (`maskkit.decode.clustering.expand`). No boxes, no limit on the number of objects; but an
object in two parts becomes two.

=========  ==========================  ================================================================
`Raw`      shape (736 x 736, text)     meaning
=========  ==========================  ================================================================
kernels    (B, 7, 184, 184)            logits of the complete objects, then of ever smaller kernels
classes    (B, 0, 184, 184)            class logits of the objects' pixels; none where there is one class
=========  ==========================  ================================================================

PSENet finds text, one class. For K > 1 classes we add K maps that say of which class a pixel of an object is, learnt by
cross entropy on the pixels of objects alone; the pixels of an instance vote for its class.

Targets come from masks, so polygons and quadrilaterals are rasterised first and any augmentation is possible. The Vatti
clipping of the official code moves the outline inwards by d = area (1 - r^2) / perimeter, 20 pixels at most; what is
left are the pixels further than d from the outside, which is how `shrink` finds them. The border of the image counts
as outside.

Other differences from the official code: the padding of a batch does not count; an image without objects has a loss of
zero where the official dice is a constant 1 without gradient.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn

from maskkit.config import BackboneConfig, BackboneModelConfig
from maskkit.decode import Kernels
from maskkit.decode.outputs import KernelMaps
from maskkit.geometry.resample_tensors import resize
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.losses import dice_loss
from maskkit.nn.pixels import BACKGROUND, UNKNOWN, class_loss, likeliest, object_maps
from maskkit.ranges import Count, Share, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class PsenetConfig(BackboneModelConfig):
    """Knobs of PSENet; the defaults are the published ResNet-50 model for ICDAR 2015."""

    num_classes: Count = 1
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet50s"))
    width: Count = 256
    """Channels of the pyramid and of the head."""
    kernels: Count = 7
    """Number n of maps: the complete objects and n - 1 kernels."""
    least_ratio: Share = 0.4
    """Ratio m of the smallest kernel; the others are evenly spaced between it and 1."""
    most_shrink: Weight = 20.0
    """Input pixels by which an outline moves inwards at most."""
    complete_weight: Share = 0.7
    """Weight of the complete objects; the kernels have the rest to 1."""
    class_weight: Weight = 1.0
    negatives_per_positive: Whole = 3
    decode_stride: Count = 1
    """Input pixels per cell of the grid on which instances grow: 1 and 4 are the paper's PSENet-1s and -4s."""
    min_area: Weight = 16.0
    """Input pixels of the smallest instance, and of its smallest kernel."""
    min_score: Share = 0.85
    """Least mean probability of an instance's pixels."""


class PsenetRaw(NamedTuple):
    """What `Psenet.forward` gives; the module's docstring explains the fields."""

    kernels: Float[Tensor, "b n h w"]
    classes: Float[Tensor, "b k h w"]


class Unit(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, before: int, after: int, size: int, bias: bool = False) -> None:
        super().__init__(
            nn.Conv2d(before, after, size, padding=size // 2, bias=bias), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
        )


class Pyramid(nn.Module):
    """The paper's FPN: every level is smoothed before it goes further down, and all end at the size of the finest."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(Unit(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(Unit(width, width, 3) for _ in channels[:-1])

    def forward(self, features: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c h w"]]:
        """Levels P2 to P5, each (B, width, H/4, W/4), of C2 to C5."""
        sides = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        levels = [sides.pop()]
        for side, smooth in zip(sides[::-1], list(self.smooth)[::-1], strict=True):
            levels.append(smooth(resize(levels[-1], (side.shape[2], side.shape[3])) + side))
        finest = levels[-1]
        return [resize(level, (finest.shape[2], finest.shape[3])) for level in levels[::-1]]


class Psenet(Model[PsenetRaw, KernelMaps[Tensor]]):
    """PSENet."""

    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    config: PsenetConfig

    def __init__(self, config: PsenetConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Kernels(config.min_area / config.decode_stride**2, config.min_score)
        self.backbone = Backbone.of(config.backbone, (4, 8, 16, 32))
        self.fpn = Pyramid(list(self.backbone.channels.values()), config.width)
        classes = config.num_classes if config.num_classes > 1 else 0
        self.head = nn.Sequential(
            Unit(4 * config.width, config.width, 3, bias=True),
            nn.Conv2d(config.width, config.kernels + classes, 1),
        )
        for module in (*self.fpn.modules(), *self.head.modules()):
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> PsenetRaw:
        """Raw outputs of normalised images."""
        features = self.backbone(images)
        levels = self.fpn(list(features.values()))
        maps = self.head(torch.cat(levels, 1))  # (B, n + K, H/4, W/4)
        return PsenetRaw(maps[:, : self.config.kernels], maps[:, self.config.kernels :])

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: PsenetRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Dice of the complete objects and of the kernels (section 3.4), cross entropy of the classes if several."""
        config = self.config
        owners = object_maps(batch)  # (B, H, W)
        kernels = torch.stack([self.shrunken(o) for o in owners])  # (B, n, H, W)
        logits = resize(raw.kernels.float(), (owners.shape[1], owners.shape[2]))  # (B, n, H, W)
        complete, shrunken = kernel_losses(logits, kernels, owners != UNKNOWN, config.negatives_per_positive)
        seen = kernels[:, 0].flatten(1).any(1)
        losses = {
            "mask/complete": config.complete_weight * (complete * seen).mean(),
            "mask/shrunken": (1 - config.complete_weight) * (shrunken * seen).mean(),
        }
        if config.num_classes > 1:
            losses["classification"] = config.class_weight * class_loss(raw.classes, owners, batch.targets)
        return losses

    def shrunken(self, owners: Int[Tensor, "h w"]) -> Bool[Tensor, "n h w"]:
        """Target maps of one image from whose pixels they are: the complete objects, then ever smaller kernels."""
        config = self.config
        ratios = np.linspace(1, config.least_ratio, config.kernels)
        numbers = owners.cpu().numpy().clip(BACKGROUND) + 1
        maps = np.zeros((config.kernels, *numbers.shape), bool)
        for number, window in enumerate(ndimage.find_objects(numbers), 1):
            if window is not None:
                maps[:, *window] |= shrink(numbers[window] == number, ratios, config.most_shrink)
        return torch.from_numpy(maps).to(owners.device)

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: PsenetRaw) -> KernelMaps[Tensor]:
        """The maps on the grid on which instances grow."""
        config = self.config
        height, width = (side * 4 // config.decode_stride for side in raw.kernels.shape[2:])
        kernels = resize(raw.kernels.float(), (height, width))
        return KernelMaps(kernels, likeliest(raw.classes, (height, width)))


def shrink(mask: Bool[np.ndarray, "h w"], ratios: Float[np.ndarray, "n"], most: float) -> Bool[np.ndarray, "n h w"]:
    """The mask moved inwards by ``area (1 - r^2) / perimeter`` for each ratio, ``most`` pixels at most.

    Where nothing would be left the mask stays whole, as in the official code.
    """
    padded = np.pad(mask, 1)
    depth = np.asarray(ndimage.distance_transform_edt(padded))[1:-1, 1:-1] - 0.5  # of a pixel's centre
    offsets = np.minimum(mask.sum() * (1 - ratios**2) / perimeter(padded), most)
    shrunken = depth > offsets[:, None, None]
    return np.where(shrunken.any((1, 2), keepdims=True), shrunken, mask)


def perimeter(mask: Bool[np.ndarray, "h w"]) -> float:
    """Length of a mask's outline by the Cauchy-Crofton formula: how often lines of four directions cross it.

    ``mask`` does not touch the border. Exact for discs; a rectangle along the axes comes out 5 % too short.
    """
    straight = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    slanting = np.count_nonzero(mask[1:, 1:] != mask[:-1, :-1]) + np.count_nonzero(mask[1:, :-1] != mask[:-1, 1:])
    return math.pi / 8 * (straight + slanting / math.sqrt(2))


def kernel_losses(
    logits: Float[Tensor, "b n h w"],
    kernels: Bool[Tensor, "b n h w"],
    known: Bool[Tensor, "b h w"],
    negatives_per_positive: int,
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Dice loss of each image's complete objects, and the mean of its kernels' (equations 5 to 7).

    The complete objects are judged on hard pixels; the kernels inside the complete objects alone.
    """
    complete, truth = logits[:, 0], kernels[:, 0]
    chosen = torch.stack(
        [hard_pixels(*image, negatives_per_positive) for image in zip(complete.detach(), truth, known, strict=True)]
    )
    n = logits.shape[1] - 1
    within = (truth & known)[:, None].expand(-1, n, -1, -1).flatten(0, 1)  # (B(n - 1), H, W)
    shrunken = _dice(logits[:, 1:].flatten(0, 1), kernels[:, 1:].flatten(0, 1), within)
    return _dice(complete, truth, chosen), shrunken.unflatten(0, (-1, n)).mean(1)


def _dice(logits: Float[Tensor, "n h w"], truth: Bool[Tensor, "n h w"], where: Bool[Tensor, "n h w"]) -> Tensor:
    return dice_loss(logits.sigmoid() * where, (truth & where).float(), 0.002)


def hard_pixels(
    logits: Float[Tensor, "h w"], truth: Bool[Tensor, "h w"], known: Bool[Tensor, "h w"], per_positive: int
) -> Bool[Tensor, "h w"]:
    """Online hard example mining: the objects' pixels, and ``per_positive`` times as many others, most object-like."""
    others = logits[~truth]
    wanted = min(per_positive * int((truth & known).sum()), len(others))
    if wanted == 0:
        return known
    least = others.topk(wanted).values[-1]
    return (truth | (logits >= least)) & known
