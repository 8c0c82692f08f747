"""The tiny method as a panoptic one: a segment per class."""

from dataclasses import replace

import torch

from maskkit.decode import Segments
from maskkit.decode.outputs import SegmentQueries
from maskkit.models import tinynet  # type: ignore[attr-defined]  # registered for the test as this one is


class TinySegments(tinynet.TinyNet):
    tasks = ("panoptic",)
    decoder = Segments(score=0.3, overlap=0.0)

    def select(self, raw: tinynet.TinyRaw) -> SegmentQueries:
        scores = raw.maps.sigmoid().amax((2, 3))
        labels = torch.arange(scores.shape[1]).expand(scores.shape)
        return SegmentQueries(raw.maps, labels, scores)


MODEL = TinySegments
PRESETS = [replace(preset, name="tinysegments") for preset in tinynet.PRESETS]
