"""VGG-16 (Simonyan and Zisserman, 2014) as in the semantic segmentation methods of 2015."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.nn.backbones.pretrained import Pretrained

LAYOUT = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the thirteen convolutions, stage by stage."""


@dataclass(frozen=True)
class VggShape:
    """What differs between methods; the defaults are the original classifier."""

    first_padding: int = 1
    """Padding of the first convolution; FCN has 100."""
    pool: Literal["2x2", "3x3"] = "2x2"
    """Window of the pooling; DeepLab's is 3x3 with a padding of 1."""
    ceil: bool = False
    """Whether an incomplete window at the border is pooled too, as in Caffe."""
    output_stride: int = 32
    """8 removes the strides of the last two poolings and dilates the fifth stage by 2 (DeepLab v1)."""
    norm: bool = False
    """Whether batch norm follows every convolution (SegNet)."""
    layout: tuple[tuple[int, ...], ...] = LAYOUT
    """Channels of the convolutions, stage by stage."""


class Vgg(Pretrained):
    """The convolutions of VGG-16; ``body`` has the names of torchvision's and timm's ``vgg16`` or ``vgg16_bn``.

    `stage` gives the output of a stage and the indices of its maxima, `forward` the pooled outputs of all by stride.
    """

    def __init__(self, shape: VggShape) -> None:
        super().__init__()
        self.name = "vgg16_bn" if shape.norm else "vgg16"
        self.stages: list[list[str]] = [[] for _ in shape.layout]
        self.channels = {2 << i: widths[-1] for i, widths in enumerate(shape.layout)}
        layers: list[nn.Module] = []
        before = 3
        for i, widths in enumerate(shape.layout):
            rate = 2 if shape.output_stride == 8 and i == 4 else 1
            for width in widths:
                padding = shape.first_padding if not layers else rate
                unit: list[nn.Module] = [nn.Conv2d(before, width, 3, padding=padding, dilation=rate)]
                unit += [nn.BatchNorm2d(width)] if shape.norm else []
                for layer in (*unit, nn.ReLU()):
                    self.stages[i].append(str(len(layers)))
                    layers.append(layer)
                before = width
            stride = 1 if shape.output_stride == 8 and i >= 3 else 2
            side, padding = (3, 1) if shape.pool == "3x3" else (2, 0)
            layers.append(nn.MaxPool2d(side, stride, padding, ceil_mode=shape.ceil, return_indices=True))
        self.body: Any = nn.Module()
        self.body.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def timm_name(self) -> str:
        """timm's name of the network."""
        return self.name

    @property
    def timm_part(self) -> nn.Module:
        """The convolutions under timm's names."""
        return self.body

    def convolve(self, number: int, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Output of stage ``number`` (0 is the first) before its pooling."""
        for name in self.stages[number]:
            x = self.body.features.get_submodule(name)(x)
        return x

    def stage(
        self, number: int, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d y x"], Int[Tensor, "b d y x"]]:
        """Output of stage ``number`` after its pooling, and the indices of the maxima in each channel."""
        x = self.convolve(number, x)
        return self.body.features.get_submodule(str(int(self.stages[number][-1]) + 1))(x)

    def walk(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Run all stages, yielding what `stage` returns."""
        x = images
        for number in range(len(self.stages)):
            x, places = self.stage(number, x)
            yield x, places

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[int, Tensor]:
        """Pooled features by their stride without dilation."""
        return dict(zip(self.channels, (x for x, _ in self.walk(images)), strict=True))
