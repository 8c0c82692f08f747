"""FCN: fully convolutional networks for semantic segmentation, 32s, 16s and 8s; and FCN on dilated ResNets.

Long, Shelhamer, Darrell: "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015, TPAMI 2017).

A classification network turned into convolutions scores coarse cells; its scores are enlarged by a bilinear transposed
convolution, and finer layers add their own: FCN-16s fuses pool4, FCN-8s pool3 too. On VGG-16 the image is padded by
100 and everything is cropped back, as published; on other backbones sizes are kept and nothing is padded. The same
"FCN" of torchvision is a 3x3 head on a ResNet dilated to stride 8, that of mmsegmentation three such convolutions.

=========  ==================================  ==============================================================
`Raw`      shape (500 x 500, VOC)              meaning
=========  ==================================  ==============================================================
logits     (B, 21, 500, 500)                   scores of every pixel (dilated ResNets: (B, 21, 63, 63))
others     (B, 21, 500, 500) each              the scores without the finest, without the two finest skips, that
                                               stage-wise training begins with (dilated: the auxiliary head)
=========  ==================================  ==============================================================

``staged`` trains 32s, then 16s, then 8s in one run: thirds of the training whose loss sees the scores without, with
one, with both skips; the scores of the skips start at zero, so that each stage begins where the last one ended.
Differences from the official code: small presets take the mean over the pixels where Caffe takes the sum.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import LabelMap
from maskkit.decode.outputs import ClassLogits
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.vgg import Vgg, VggShape
from maskkit.nn.blocks import may_learn
from maskkit.nn.dilation import JoinedScoreHead, ScoreHead, dilate
from maskkit.nn.semantic import pixel_loss, truth_of
from maskkit.ranges import Count, Positive, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class FcnConfig(BackboneModelConfig):
    """Knobs of FCN. ``num_classes`` counts the background where the data have one."""

    head: Literal["skips", "dilated", "joined"] = "skips"
    """``skips`` is the paper's network, ``dilated`` torchvision's, ``joined`` mmsegmentation's, dilated too."""
    skips: Whole = 2
    """Finer layers whose scores are added: 0 is FCN-32s, 1 FCN-16s, 2 FCN-8s."""
    skip_scales: tuple[Positive, Positive] = (1.0, 1.0)
    """What the features of pool4 and pool3 are multiplied by (0.01 and 0.0001 train FCN-8s at once)."""
    width: Count = 4096
    """Channels of fc6 and fc7 on VGG-16."""
    staged: bool = False
    """Train 32s, 16s and 8s one after the other, each for its share of the steps."""
    reduction: Literal["mean", "sum"] = "mean"
    """Caffe's loss is the sum over the pixels, hence its tiny learning rates."""
    auxiliary: Weight = 0.0
    """Weight of the loss of a second head on stride 16 (dilated); 0 has none."""
    via_input: bool = False
    """Whether scores go to the image by way of the network's input (mmsegmentation), not in one step."""


class FcnRaw(NamedTuple):
    """What `Fcn.forward` gives; the module's docstring explains the fields."""

    logits: Float[Tensor, "b k h w"]
    others: tuple[Float[Tensor, "b k _ _"], ...]


def bilinear_kernel(side: int) -> Float[Tensor, "s s"]:
    """Weights of the transposed convolution that interpolates bilinearly by half of ``side``."""
    centre = (side - 1) / 2 if side % 2 else side / 2 - 0.5
    ramp = 1 - (torch.arange(side) - centre).abs() / ((side + 1) // 2)
    return ramp[:, None] * ramp


class Enlarge(nn.ConvTranspose2d):
    """Fixed bilinear transposed convolution by ``factor``, class by class."""

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__(classes, classes, 2 * factor, factor, bias=False)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(classes), range(classes)] = bilinear_kernel(2 * factor)
        self.weight.requires_grad_(False)


def crop(x: Float[Tensor, "b k y x"], offset: int, like: tuple[int, int]) -> Float[Tensor, "b k h w"]:
    """The window of size ``like`` (H, W) that begins ``offset`` from the upper left corner."""
    return x[:, :, offset : offset + like[0], offset : offset + like[1]]


class Fcn(Model[FcnRaw, ClassLogits[Tensor]]):
    """FCN-32s, -16s and -8s, and FCN on dilated ResNets."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    supervision: ClassVar[frozenset[str]] = frozenset({"label_map"})
    config: FcnConfig

    def __init__(self, config: FcnConfig) -> None:
        super().__init__()
        self.config = config
        classes = config.num_classes
        self.on_vgg = config.backbone.name == "vgg16"
        self.auxiliary = None
        self.decoder = LabelMap(config.via_input)
        if config.head != "skips":
            self.backbone = dilate(Backbone.of(config.backbone, (16, 32)), 8)
            deep, middle = self.backbone.channels[32], self.backbone.channels[16]
            self.score = {"dilated": ScoreHead, "joined": JoinedScoreHead}[config.head](deep, deep // 4, classes)
            self.auxiliary = ScoreHead(middle, middle // 4, classes) if config.auxiliary else None
            return
        self.backbone = (
            Vgg(VggShape(first_padding=100, ceil=True)) if self.on_vgg else Backbone.of(config.backbone, (8, 16, 32))
        )
        channels = self.backbone.channels
        self.fc = nn.Sequential()
        if self.on_vgg:
            self.fc.extend([nn.Conv2d(512, config.width, 7), nn.ReLU(), nn.Dropout(0.5)])
            self.fc.extend([nn.Conv2d(config.width, config.width, 1), nn.ReLU(), nn.Dropout(0.5)])
        deep = config.width if self.on_vgg else channels[32]
        self.score = nn.Conv2d(deep, classes, 1)
        self.skips = nn.ModuleList(nn.Conv2d(channels[s], classes, 1) for s in (16, 8)[: config.skips])
        for parameter in (*self.score.parameters(), *self.skips.parameters()):
            nn.init.zeros_(parameter)
        if not self.on_vgg:  # without the paper's trained layers above it, a zero here would stop all learning
            nn.init.normal_(self.score.weight, std=0.01)
        self.enlarge = nn.ModuleList(Enlarge(classes, 2) for _ in self.skips)
        self.last = Enlarge(classes, 32 >> config.skips)

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> FcnRaw:
        """Raw outputs of normalised images."""
        features = self.backbone(images)
        if self.config.head != "skips":
            others = () if self.auxiliary is None or not may_learn() else (self.auxiliary(features[16]),)
            return FcnRaw(self.score(features[32]), others)
        size = (images.shape[2], images.shape[3])
        stages = [self.score(self.fc(features[32]))]  # (B, K, H/32, W/32); one more with each skip
        offsets = (5, 9) if self.on_vgg else (1, 1)
        for enlarge, skip, stride, scale, offset in zip(
            self.enlarge, self.skips, (16, 8), self.config.skip_scales, offsets, strict=False
        ):
            fine = skip(features[stride] * scale)
            stages = [enlarge(scores) for scores in stages]
            if self.on_vgg:  # whose padding makes the finer map the larger one
                fine = crop(fine, offset, (stages[0].shape[2], stages[0].shape[3]))
            else:
                stages = [crop(scores, offset, (fine.shape[2], fine.shape[3])) for scores in stages]
            stages = [*(stages if self.config.staged else ()), stages[-1] + fine]
        offset = (19, 27, 31)[self.config.skips] if self.on_vgg else (32 >> self.config.skips) // 2
        *others, logits = (crop(self.last(scores), offset, size) for scores in stages)
        return FcnRaw(logits, tuple(others))

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: FcnRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy of every pixel; of a staged training, that of the stage."""
        truth, config = truth_of(batch), self.config
        if config.head != "skips":
            losses = {"semantic": pixel_loss(raw.logits, truth)}
            for logits in raw.others:
                losses["semantic/auxiliary"] = config.auxiliary * pixel_loss(logits, truth)
            return losses
        stages = (*raw.others, raw.logits)
        stage = min(int(batch.progress * len(stages)), len(stages) - 1)
        return {"semantic": pixel_loss(stages[stage], truth, reduction=config.reduction)}

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: FcnRaw) -> ClassLogits[Tensor]:
        """The scores."""
        return ClassLogits(raw.logits)
