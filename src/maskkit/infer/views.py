"""Testing a semantic model on several views of a picture: scales, mirror images, sliding windows, and a CRF at the end.

The class probabilities of all views are averaged. `ManyViews` wraps a model and is one, so that prediction, evaluation
and the command line take it as they take any other.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maskkit.config import InputConfig, Views
from maskkit.models.base import Model, SelectedSemantic
from maskkit.nn.crf import CrfConfig, mean_field
from maskkit.types import Batch, Target


class ViewsRaw(NamedTuple):
    """What `ManyViews.forward` gives."""

    probabilities: Float[Tensor, "b k h w"]


class ManyViews(Model):
    """A semantic model that looks at a picture in many ways before it decides. It does not learn."""

    tasks: ClassVar[tuple[str, ...]] = ("semantic",)

    def __init__(self, model: Model, views: Views, input: InputConfig) -> None:
        super().__init__()
        self.model, self.views, self.input = model, views, input
        self.config = model.config

    def forward(self, images: Float[Tensor, "b 3 h w"], targets: list[Target] | None = None) -> ViewsRaw:
        """Mean class probabilities of normalised pictures, at their own size."""
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


def places(size: tuple[int, int], window: Sequence[int], overlap: float) -> Iterator[tuple[int, int]]:
    """Upper left corners (y, x) of windows that cover ``size`` (H, W), the last ones moved back to its border."""
    starts = []
    for side, length in zip(size, window, strict=True):
        step = -int(-length * (1 - overlap) // 1)
        count = -(-(side - length) // step) + 1
        starts.append([min(i * step, side - length) for i in range(count)])
    yield from ((y, x) for y in starts[0] for x in starts[1])
