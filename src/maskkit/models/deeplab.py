"""DeepLab v1, v2, v3 and v3+, and LR-ASPP: semantic segmentation by atrous convolution.

Chen, Papandreou, Kokkinos, Murphy, Yuille: "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs" (ICLR 2015, v1), "DeepLab" (TPAMI 2017, v2), "Rethinking Atrous Convolution for Semantic Image
Segmentation" (2017, v3), "Encoder-Decoder with Atrous Separable Convolution" (ECCV 2018, v3+). Howard et al.:
"Searching for MobileNetV3" (ICCV 2019, section 6.4, LR-ASPP, here the version "lite").

The deep stages of a classification network keep their resolution: instead of striding they look at every n-th
neighbour. v1 scores the result, v2 sums four scores that see at four rates (ASPP) and takes the best of three image
scales, v3 joins features at several rates and their global mean, v3+ refines them with features of stride 4. The lite
version weighs features by their global mean, and adds scores of finer features to theirs.

=========  ======================================  ==========================================================
`Raw`      shape (513 x 513, VOC)                  meaning
=========  ======================================  ==========================================================
logits     (B, 21, 33, 33); v1, v2: 65; v3+: 129   scores of the classes, background among them
others     v2: 3 x (B, 21, ...); else 1 or 0       v2: the scores at each scale, of which ``logits`` is the maximum;
                                                   v3: scores of the auxiliary head
=========  ======================================  ==========================================================

The fully connected CRF that sharpened v1 and v2 is `maskkit.nn.crf`, run by `maskkit.infer.tta`. Differences from
the official code: labels are shrunk with width and height in their right places (v2's port swaps them); the mean over
the image uses its running statistics where a batch of one leaves nothing to normalise by; v3 has no multi-grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import BackboneModelConfig
from maskkit.decode import LabelMap
from maskkit.decode.outputs import ClassLogits
from maskkit.models.base import Model
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.vgg import Vgg, VggShape
from maskkit.nn.blocks import may_learn
from maskkit.nn.dilation import AtrousConv, LoneBatchNorm, ScoreHead, SeparableConv, dilate
from maskkit.nn.semantic import pixel_loss, truth_of
from maskkit.ranges import Count, Decay, FeatureStride, Positive, Weight, Whole
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class DeeplabConfig(BackboneModelConfig):
    """Knobs of DeepLab. ``num_classes`` counts the background where the data have one."""

    version: Literal["v1", "v2", "v3", "v3+", "lite"] = "v3"
    output_stride: Count = 16
    """8 or 16: what the strides of the backbone stop at."""
    rates: tuple[Count, ...] = (6, 12, 18)
    """Dilations of the 3x3 branches of ASPP."""
    width: Count = 256
    """Channels of each branch."""
    low_stride: FeatureStride = 4
    """Stride of the finer features of v3+ and the lite version; -8 stands for what enters stride 8, the output of its
    first block (MobileNetV3 in torchvision)."""
    refine: Whole = 1
    """3x3 convolutions between ASPP (v3+: the joined features) and the scores; TensorFlow has 0 in v3, 2 in v3+."""
    low_width: Count = 48
    """Channels that the finer features are reduced to (v3+)."""
    dropout: Decay = 0.1
    scales: tuple[Positive, ...] = ()
    """Further scales at which v2 looks at the image."""
    auxiliary: Weight = 0.0
    """Weight of the loss of a second head; 0 has none."""
    auxiliary_stride: FeatureStride = 16
    """Stride of the features that the second head reads, as for `low_stride`."""
    first_block: bool = False
    """Whether the block that loses its stride is dilated as those behind it are, in v3 and v3+ (MobileNetV3 in
    torchvision); in v1 and v2 it always is."""
    align_corners: bool = False
    """Whether the outermost cells lie on the outermost pixels, as in TensorFlow; the input has 16 n + 1 pixels then."""
    join: Literal["1x1", "3x3"] = "1x1"
    """The convolution that joins ASPP's branches; with 3x3 the dropout is just before the scores (mmsegmentation)."""
    separable: bool = False
    """Whether ASPP's 3x3 branches and the refinement are depthwise separable (mmsegmentation's v3+)."""
    via_input: bool = False
    """Whether scores go to the image by way of the network's input (mmsegmentation), not in one step."""
    pad_first: bool = False
    """Inverted residuals pad before their expansion, so that the border is no zero (a MobileNet port's habit)."""


class DeeplabRaw(NamedTuple):
    """What `Deeplab.forward` gives; the module's docstring explains the fields."""

    logits: Float[Tensor, "b k h w"]
    others: tuple[Float[Tensor, "b k _ _"], ...]


def conv(config: DeeplabConfig, before: int, after: int, rate: int = 1) -> nn.Sequential:
    """A 3x3 convolution with norm and ReLU, of the kind that ``config`` says."""
    return SeparableConv(before, after, rate) if config.separable else AtrousConv(before, after, 3, rate)


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling of v3: 1x1, 3x3 at several rates, and the mean of the image, joined."""

    def __init__(self, channels: int, config: DeeplabConfig) -> None:
        super().__init__()
        width, rates, wide = config.width, config.rates, config.join == "3x3"
        self.branches = nn.ModuleList([AtrousConv(channels, width), *(conv(config, channels, width, r) for r in rates)])
        self.pool = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), LoneBatchNorm(width), nn.ReLU())
        self.project = AtrousConv((len(rates) + 2) * width, width, 3 if wide else 1)
        self.dropout = nn.Dropout(0.0 if wide else config.dropout)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b w h w"]:
        """Features that have seen their neighbourhood at every rate."""
        mean = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.dropout(self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1)))


class LiteAspp(nn.Module):
    """LR-ASPP: features weighed by the mean of the image, whose scores are added to those of finer features."""

    def __init__(self, channels: int, low: int, width: int, classes: int) -> None:
        super().__init__()
        self.features = AtrousConv(channels, width)
        self.gate = nn.Conv2d(channels, width, 1, bias=False)
        self.high = nn.Conv2d(width, classes, 1)
        self.low = nn.Conv2d(low, classes, 1)

    def forward(self, x: Float[Tensor, "b c _ _"], low: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        """Logits."""
        x = self.features(x) * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.low(low) + self.high(F.interpolate(x, size=low.shape[2:], mode="bilinear"))


class SummedAspp(nn.Module):
    """ASPP of v2: the sum of scores by 3x3 convolutions at several rates."""

    def __init__(self, channels: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, classes, 3, padding=r, dilation=r) for r in rates)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits."""
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class LargeFov(nn.Sequential):
    """The head of v1 on VGG: fc6 as a 3x3 convolution of dilation 12, fc7, scores."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=12, dilation=12),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(width, classes, 1),
        )
        nn.init.normal_(self[-1].weight, std=0.01)  # type: ignore[arg-type]


class PadFirst(nn.Module):
    """An inverted residual of timm with its padding moved in front of the expansion."""

    conv_pw: Any
    conv_dw: Any
    conv_pwl: Any
    bn1: Any
    bn2: Any
    bn3: Any

    def __init__(self, block: Any) -> None:
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)
        self.has_skip = block.has_skip
        self.pad = self.conv_dw.padding[0]
        self.conv_dw.padding = (0, 0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Output of the block."""
        y = self.bn1(self.conv_pw(F.pad(x, [self.pad] * 4)))
        y = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(y))))
        return x + y if self.has_skip else y


class Deeplab(Model[DeeplabRaw, ClassLogits[Tensor]]):
    """DeepLab in its four versions."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)
    supervision: ClassVar[frozenset[str]] = frozenset({"label_map"})
    config: DeeplabConfig

    def __init__(self, config: DeeplabConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = LabelMap(config.via_input, config.via_input and config.align_corners)
        self.backbone = self._backbone(config)
        channels, classes, width = self.backbone.channels, config.num_classes, config.width
        self.aspp: nn.Module = nn.Identity()
        self.low: nn.Module | None = None
        self.refine = nn.Sequential()
        if config.version == "v1":
            on_vgg = isinstance(self.backbone, Vgg)
            self.score = LargeFov(channels[32], width, classes) if on_vgg else nn.Conv2d(channels[32], classes, 1)
        elif config.version == "v2":
            self.score = SummedAspp(channels[32], classes, config.rates)
        elif config.version == "lite":
            self.score = LiteAspp(channels[32], channels[config.low_stride], width, classes)
        else:
            self.aspp = Aspp(channels[32], config)
            joined = width
            if config.version == "v3+":
                self.low = AtrousConv(channels[config.low_stride], config.low_width)
                joined += config.low_width
            widths = [joined, *[width] * config.refine]
            self.refine.extend(conv(config, a, b) for a, b in pairwise(widths))
            if config.join == "3x3":
                self.refine.append(nn.Dropout(config.dropout))
            self.score = nn.Conv2d(widths[-1], classes, 1)
        read = channels[config.auxiliary_stride] if config.auxiliary else 0
        self.auxiliary = ScoreHead(read, read // 4, classes) if config.auxiliary else None

    @staticmethod
    def _backbone(config: DeeplabConfig) -> Backbone | Vgg:
        """The atrous backbone: VGG-16 or a network of timm."""
        if config.backbone.name == "vgg16":
            return Vgg(VggShape(pool="3x3", ceil=True, output_stride=config.output_stride))
        read = (config.low_stride, 16, 32, *([config.auxiliary_stride] if config.auxiliary else []))
        backbone = Backbone.of(config.backbone, tuple(dict.fromkeys(read)))
        caffe = config.version in ("v1", "v2")
        dilate(backbone, config.output_stride, first_block=caffe or config.first_block)
        if caffe and hasattr(backbone.body, "maxpool"):
            backbone.body.maxpool.ceil_mode = True
        if config.pad_first:
            backbone.body.conv_stem.padding = (0, 0)
            for stage in backbone.body.blocks:
                for i, block in enumerate(stage):
                    if hasattr(block, "conv_pwl"):
                        stage[i] = PadFirst(block)
        return backbone

    # forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> DeeplabRaw:
        """Raw outputs of normalised images."""
        features = self.backbone(images)
        logits = self.head(features)
        if not self.config.scales:
            read = self.config.auxiliary_stride
            auxiliary = self.auxiliary if may_learn() else None
            return DeeplabRaw(logits, () if auxiliary is None else (auxiliary(features[read]),))
        scaled = [F.interpolate(images, scale_factor=s, mode="bilinear") for s in self.config.scales]
        every = (logits, *(self.head(self.backbone(s)) for s in scaled))
        enlarged = [F.interpolate(e, size=logits.shape[2:], mode="bilinear") for e in every]
        return DeeplabRaw(torch.stack(enlarged).amax(0), every)

    def head(self, features: dict[int, Tensor]) -> Float[Tensor, "b k h w"]:
        """Logits of the features of one image scale."""
        if self.config.version == "lite":
            return self.score(features[32], features[self.config.low_stride])
        x = self.aspp(features[32])  # (B, w, H/16, W/16)
        if self.low is not None:
            low = self.low(features[self.config.low_stride])  # (B, 48, H/4, W/4)
            corners = self.config.align_corners
            x = torch.cat([low, F.interpolate(x, size=low.shape[2:], mode="bilinear", align_corners=corners)], 1)
        return self.score(self.refine(x))

    # loss ------------------------------------------------------------------------------------------------------------

    def loss_terms(self, raw: DeeplabRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy: v1 and v2 on their own grid, v2 at each scale and on their maximum, v3 at every pixel."""
        truth, config = truth_of(batch), self.config
        if config.version in ("v1", "v2"):
            terms = [pixel_loss(logits, truth, at="cells") for logits in (raw.logits, *raw.others)]
            return {"semantic": terms[0], **{f"semantic/{i}": term for i, term in enumerate(terms[1:])}}
        losses = {"semantic": pixel_loss(raw.logits, truth, align_corners=config.align_corners)}
        for logits in raw.others:
            losses["semantic/auxiliary"] = config.auxiliary * pixel_loss(
                logits, truth, align_corners=config.align_corners
            )
        return losses

    # selection -------------------------------------------------------------------------------------------------------

    def select(self, raw: DeeplabRaw) -> ClassLogits[Tensor]:
        """The logits; enlarged to the input where their corners lie on its corners, unless the decoder does that."""
        if not self.config.align_corners or self.config.via_input:
            return ClassLogits(raw.logits)
        fine = self.config.version in ("v3+", "lite")
        stride = abs(self.config.low_stride) if fine else self.config.output_stride
        size = [stride * (cells - 1) + 1 for cells in raw.logits.shape[2:]]
        return ClassLogits(F.interpolate(raw.logits, size=size, mode="bilinear", align_corners=True))
