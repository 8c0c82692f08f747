"""Prediction of large images in tiles: the same loop over windows of the image, whose results are put together.

Neighbouring tiles overlap, so that an object at the border of one is seen whole, or at least in part, by another. Each
pixel belongs to exactly one tile (`Window.own`): the borders between tiles run through the middle of their overlap.
How results are joined is in `maskkit.infer.stitch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from maskkit.config import InputConfig
from maskkit.errors import DataError
from maskkit.geometry.windows import Rect, windows
from maskkit.infer.predict import Failure, Predictor
from maskkit.infer.sources import Item
from maskkit.infer.stitch import stitch
from maskkit.prediction import ImageMeta, Prediction


@dataclass(frozen=True)
class TiledPredictor(Predictor):
    """A predictor that cuts every image into tiles."""

    tile: int
    """Height and width of a tile in pixels of the image."""
    overlap: float = 0.2
    """Part of a tile that neighbours share."""

    def predict(
        self,
        items: Iterable[Item],
        *,
        batch: int = 1,
        workers: int = 0,
        score: float = 0.0,
        failed: Callable[[Failure], None] | None = None,
    ) -> Iterator[Prediction]:
        """See `Predictor.predict`. An image is read whole; ``batch`` tiles share a forward pass."""
        for item in items:
            try:
                pixels, meta = item.read(None)
            except DataError as error:
                if failed is None:
                    raise
                failed(Failure(item.name, error))
                continue
            places = windows(meta.size, self.tile, self.overlap)
            cut = (_cut(pixels, number, window.seen) for number, window in enumerate(places))
            parts = super().predict(cut, batch=batch, workers=workers, score=score)
            found = stitch(zip(places, parts, strict=True), meta, self.categories)
            found.image = None if meta.path else pixels
            yield found


def with_tiles(predictor: Predictor, tile: int, overlap: float = 0.2) -> TiledPredictor:
    """The same predictor for large images. Raises `MaskkitError` for an overlap of half a tile or more."""
    windows((1, 1), tile, overlap)
    given = (predictor.runtime, predictor.decoder, predictor.input, predictor.categories)
    return TiledPredictor(*given, tile=tile, overlap=overlap)


def _cut(pixels: UInt8[np.ndarray, "h w 3"], number: int, place: Rect) -> Item:
    def read(input: InputConfig | None) -> tuple[UInt8[np.ndarray, "h w 3"], ImageMeta]:
        tile = pixels[place.top : place.bottom, place.left : place.right]
        return tile, ImageMeta(number, "", place.size, place.size)

    return Item(f"tile {number}", read)
