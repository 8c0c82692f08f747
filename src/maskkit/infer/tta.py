"""Testing a semantic model on several views of an image: scales, mirror images, sliding windows, and a CRF at the end.

The class probabilities of all views are averaged. `ManyViews` wraps a model and is one, so that prediction, evaluation
and the command line take it as they take any other.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from maskkit.config import InputConfig, Views
from maskkit.data.loader import normalise
from maskkit.models.base import Model, SelectedSemantic
from maskkit.nn.crf import CrfConfig, mean_field
from maskkit.types import Batch, Target


class ViewsRaw(NamedTuple):
    """What `ManyViews.forward` gives."""

    probabilities: Float[Tensor, "b k h w"]


class ManyViews(Model):
    """A semantic model that looks at an image in many ways before it decides. It does not learn."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)

    def __init__(self, model: Model, views: Views, input: InputConfig) -> None:
        super().__init__()
        self.model, self.views, self.input = model, views, input
        self.config = model.config

    def forward(self, images: Float[Tensor, "b 3 h w"], targets: list[Target] | None = None) -> ViewsRaw:
        """Mean class probabilities of normalised images, at their own size."""
        size = (images.shape[2], images.shape[3])
        base = self.views.base or max(size)
        total = images.new_zeros(())
        for scale in self.views.scales:
            factor = round(base * scale) / max(size)
            scaled = [max(1, round(side * factor)) for side in size]
            view = F.interpolate(images, size=scaled, mode="bilinear")
            total = total + F.interpolate(self._slide(view), size=size, mode="bilinear")
        mean = total / len(self.views.scales)
        if self.views.crf:
            std, shift = (mean.new_tensor(v)[:, None, None] for v in (self.input.std, self.input.mean))
            pixels = (images * std + shift).clamp(0, 255)
            mean = torch.stack([mean_field(p, x, CrfConfig()) for p, x in zip(mean, pixels, strict=True)])
        return ViewsRaw(mean)

    def _slide(self, view: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Probabilities of a view, averaged where windows overlap; padded with the mean colour to a window at least."""
        if self.views.window is None:
            return self._look(view)
        height, width = view.shape[2:]
        window = self.views.window
        missing = [max(want - have, 0) for want, have in zip(window, (height, width), strict=True)]
        top, left = missing[0] // 2, missing[1] // 2
        padded = F.pad(view, [left, missing[1] - left, top, missing[0] - top])
        total, count = view.new_zeros(()), view.new_zeros(1, 1, *padded.shape[2:])
        for y, x in places((padded.shape[2], padded.shape[3]), window, self.views.overlap):
            part = slice(y, y + window[0]), slice(x, x + window[1])
            found = self._look(padded[:, :, part[0], part[1]])
            if total.ndim == 0:
                total = view.new_zeros(len(view), found.shape[1], *padded.shape[2:])
            total[:, :, part[0], part[1]] += found
            count[:, :, part[0], part[1]] += 1
        return (total / count)[:, :, top : top + height, left : left + width]

    def _look(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Probabilities of what is shown to the network, and of its mirror image."""
        found = self._probabilities(images)
        return (found + self._probabilities(images.flip(3)).flip(3)) / 2 if self.views.flip else found

    def _probabilities(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        logits = self.model.select(self.model(images)).logits.float()
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear").softmax(1)

    def loss(self, raw: ViewsRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Views serve testing alone."""
        raise NotImplementedError("views serve testing alone; train the model inside")

    def select(self, raw: ViewsRaw) -> SelectedSemantic:
        """The probabilities, whose order is that of logits."""
        return SelectedSemantic(raw.probabilities)


def sum_over_views(
    score: Callable[[Tensor], Tensor],
    image: UInt8[Tensor, "3 h w"],
    input: InputConfig,
    device: torch.device,
    scales: Sequence[float] = (1.0,),
    base: int | None = None,
) -> Float[Tensor, "c h w"]:
    """Sum of the maps that ``score`` gives for the image at each of ``scales``, as it is and mirrored.

    ``score`` makes maps (1, C, h, w) from normalised pixels on ``device``. At scale 1 the longer side has ``base``
    pixels, or as many as that of ``input``; nothing is padded. The maps come back at the image's own size.
    """
    height, width = image.shape[1:]
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    factor = (base or max(input.size)) / max(height, width)
    total = torch.zeros((), device=device)
    for scale in scales:
        size = [max(1, round(side * factor * scale)) for side in (width, height)]
        resized = np.array(pixels.resize((size[0], size[1]), Image.Resampling.BICUBIC))
        view = normalise(torch.from_numpy(resized).permute(2, 0, 1), input)[None].to(device)
        for mirrored in (False, True):
            found = score(view.flip(3) if mirrored else view)
            found = F.interpolate(found, size=(height, width), mode="bilinear")[0]
            total = total + (found.flip(2) if mirrored else found)
    return total


def places(size: tuple[int, int], window: Sequence[int], overlap: float) -> Iterator[tuple[int, int]]:
    """Upper left corners (y, x) of windows that cover ``size`` (H, W), the last ones moved back to its border."""
    starts = []
    for side, length in zip(size, window, strict=True):
        step = -int(-length * (1 - overlap) // 1)
        count = -(-(side - length) // step) + 1
        starts.append([min(i * step, side - length) for i in range(count)])
    yield from ((y, x) for y in starts[0] for x in starts[1])
