"""Prediction of large images in tiles: the same loop over windows of the image, whose results are merged.

Neighbouring tiles overlap, so that an object at the border of one tile is also seen, whole or in part, by another. Each
pixel belongs to exactly one tile (`Window.own`): the borders between tiles run through the middle of their overlap.
`maskkit.infer.stitch` merges the results.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from maskkit.config import InputConfig
from maskkit.data.images import LARGE
from maskkit.data.rules import size_mismatch
from maskkit.data.tiff import LargeTiff, open_tiff
from maskkit.errors import DataError
from maskkit.geometry.windows import OVERLAP, Rect, windows
from maskkit.infer.predict import Failure, Predictor, kept
from maskkit.infer.sources import Item, Pixels
from maskkit.infer.stitch import stitch
from maskkit.prediction import ImageMeta, Prediction

MOST = 1 << 32
"""Pixels that run lengths can count: the C code has 32 bits."""


@dataclass(frozen=True, kw_only=True)
class TiledPredictor(Predictor):
    """A predictor that cuts every image into tiles."""

    tile: int
    """Height and width of a tile in pixels of the image."""
    overlap: float = OVERLAP
    """Share of a tile that its neighbours see too."""

    def predict(
        self,
        items: Iterable[Item],
        *,
        batch: int = 1,
        workers: int = 0,
        score: float = 0.0,
        failed: Callable[[Failure], None] | None = None,
        pixels: bool = False,
    ) -> Generator[Prediction, None, None]:
        """See `Predictor.predict`. ``batch`` tiles share a forward pass.

        A large TIFF is read tile by tile (`maskkit.data.tiff`), any other image whole.
        """
        for item in items:
            try:
                with self._opened(item) as (image, meta):
                    places = windows(meta.size, self.tile, self.overlap)
                    cut = (_cut(image, number, window.seen) for number, window in enumerate(places))
                    parts = super().predict(cut, batch=batch, workers=workers, score=score)
                    found = stitch(zip(places, parts, strict=True), meta, self.categories)
                    found.image = kept(image, meta, pixels) if isinstance(image, np.ndarray) else None
            except DataError as error:
                if failed is None:
                    raise
                failed(Failure(item.name, error))
                continue
            yield found

    @contextmanager
    def _opened(self, item: Item) -> Iterator[tuple[Pixels | LargeTiff, ImageMeta]]:
        """The image from which the tiles are read, and its meta. Raises `DataError`."""
        with ExitStack() as stack:
            tiff = stack.enter_context(open_tiff(item.path, self.tile, LARGE)) if item.path is not None else None
            if tiff is None:
                yield item.read(None)
            elif item.size not in (None, tiff.size):
                raise DataError(f"{item.name}: {size_mismatch(item.size, tiff.size)}")
            elif tiff.size[0] * tiff.size[1] >= MOST:
                height, width = tiff.size
                raise DataError(
                    f"{item.name}: has {width} x {height} pixels; run lengths count up to {MOST:,}, cut it into parts"
                )
            else:
                yield tiff, ImageMeta(item.image_id, str(item.path), tiff.size, tiff.size)


def with_tiles(predictor: Predictor, tile: int, overlap: float = OVERLAP) -> TiledPredictor:
    """The same predictor for large images. Raises `MaskkitError` for an overlap of half a tile or more."""
    windows((1, 1), tile, overlap)
    given = (predictor.runtime, predictor.decoder, predictor.input, predictor.categories, predictor.streams)
    return TiledPredictor(*given, tile=tile, overlap=overlap)


def _cut(pixels: Pixels | LargeTiff, number: int, place: Rect) -> Item:
    def read(input: InputConfig | None) -> tuple[Pixels, ImageMeta]:
        of = (
            pixels[place]
            if isinstance(pixels, LargeTiff)
            else pixels[place.top : place.bottom, place.left : place.right]
        )
        return of, ImageMeta(number, "", place.size, place.size)

    return Item(f"tile {number}", read)
