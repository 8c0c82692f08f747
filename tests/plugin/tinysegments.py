"""The tiny method as a panoptic one: a segment per class."""

from dataclasses import replace

import tinynet
import torch
from torch import Tensor

from maskkit.decode import Segments
from maskkit.decode.outputs import SegmentQueries


class TinySegments(tinynet.TinyNet):
    tasks = ("panoptic",)
    decoder = Segments(score=0.3, overlap=0.0)

    def select(self, raw: tinynet.TinyRaw) -> SegmentQueries[Tensor]:  # type: ignore[override]
        scores = raw.maps.sigmoid().amax((2, 3))
        labels = torch.arange(scores.shape[1]).expand(scores.shape)
        return SegmentQueries(raw.maps, labels, scores)


METHOD = replace(
    tinynet.METHOD,
    title="TinySegments",
    model=TinySegments,
    presets=tuple(replace(preset, name="tinysegments") for preset in tinynet.METHOD.presets),
)
