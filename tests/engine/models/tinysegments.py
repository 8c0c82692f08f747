"""The tiny method as a panoptic one: a segment per class."""

from dataclasses import replace

import torch

from maskkit.models import tinynet  # type: ignore[attr-defined]  # registered for the test as this one is
from maskkit.models.base import SelectedSegments


class TinySegments(tinynet.TinyNet):
    tasks = ("panoptic",)

    def select(self, raw: tinynet.TinyRaw) -> SelectedSegments:
        scores = raw.maps.sigmoid().amax((2, 3))
        labels = torch.arange(scores.shape[1]).expand(scores.shape)
        return SelectedSegments(raw.maps, labels, scores, raw.maps.new_tensor([[0.3, 0.0]] * len(scores)))


MODEL = TinySegments
PRESETS = [replace(preset, name="tinysegments") for preset in tinynet.PRESETS]
