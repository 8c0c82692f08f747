"""The prediction loop: read, preprocess, run, decode. It does not import torch; the `Runtime` runs the network.

The same loop serves data sets (evaluation during and after training) and single images. Masks leave it as run lengths,
so that memory stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskkit.config import InputConfig
from maskkit.data.images import LARGE
from maskkit.decode import Decoder, decode
from maskkit.errors import DataError
from maskkit.infer.pipeline import ahead, in_threads
from maskkit.infer.preprocess import Inputs, Prepared, padded_size, prepare, stack
from maskkit.infer.runtimes import Runtime
from maskkit.infer.sources import Item, Pixels, dataset_images, loose_images
from maskkit.prediction import Categories, ImageMeta, Prediction

if TYPE_CHECKING:
    from maskkit.data.dataset import Dataset
    from maskkit.infer.sources import Source


class Failure(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    error: DataError


def raise_failure(failure: Failure) -> None:
    """Raise the error of an image, where none may fail."""
    raise failure.error


class Ready(NamedTuple):
    """An image that waits for its forward pass."""

    place: int
    """Its position among the images that can be read."""
    prepared: Prepared
    pixels: Pixels | None


@dataclass(frozen=True)
class Predictor:
    """A runtime with the preprocessing before it and the decoder after it."""

    runtime: Runtime
    decoder: Decoder
    input: InputConfig
    categories: Categories
    streams: int = 1
    """How many forward passes run at the same time; with more than one, images are read ahead."""

    def images(
        self,
        sources: Iterable[Source],
        *,
        batch: int = 1,
        score: float = 0.0,
        failed: Callable[[Failure], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for ``sources``, in order; image ids are their positions, counted from 1.

        An image that cannot be read raises `DataError`, or is passed to ``failed`` where that is given.
        """
        yield from self.predict(loose_images(sources), batch=batch, score=score, failed=failed)

    def dataset(
        self, dataset: Dataset, *, batch: int = 1, workers: int = 0, score: float = 0.0
    ) -> Iterator[Prediction]:
        """Predictions for every image of ``dataset``, in order. Raises `DataError` for an image that cannot be read."""
        yield from self.predict(dataset_images(dataset), batch=batch, workers=workers, score=score)

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
        """Predictions for ``items``, in order.

        ``workers`` threads read and preprocess ahead, and `streams` threads run the network while the caller uses a
        prediction; with 0 and one stream everything runs in the calling thread. Objects with a score up to ``score``
        are left out. ``batch`` is the largest number of images per forward pass: only images with the same size
        including padding share one, so that no result depends on other images. With ``pixels``, predictions keep the
        pixels of their image, unless it is too large. An image that cannot be read raises `DataError`, or is passed to
        ``failed``.
        """
        workers = max(workers, self.streams // 2)  # reading an image takes less than a pass
        outputs = self._outputs(items, batch, workers, failed, pixels)
        found: dict[int, Prediction] = {}
        following = 0
        with closing(ahead(outputs, 1) if workers else outputs) as batches:
            for group, inputs, arrays in batches:
                decoded = decode(self.decoder, arrays, inputs.metas, self.categories, score)
                for prediction, w in zip(decoded, group, strict=True):
                    prediction.image = w.pixels
                    found[w.place] = prediction
                while following in found:
                    yield found.pop(following)
                    following += 1

    def _outputs(
        self,
        items: Iterable[Item],
        batch: int,
        workers: int,
        failed: Callable[[Failure], None] | None,
        pixels: bool,
    ) -> Generator[tuple[list[Ready], Inputs, dict[str, np.ndarray]], None, None]:
        """Images that share a forward pass, their inputs, and the outputs of the network."""
        prepare = partial(_attempt, partial(self._prepare, keep=pixels))
        streams = self.streams if self.streams > 1 else 0  # one runs in the thread of `ahead`
        with (
            closing(in_threads(prepare, items, workers)) as outcomes,
            closing(in_threads(self._run, self._groups(_readable(outcomes, failed), batch), streams)) as outputs,
        ):
            yield from outputs

    def _run(self, group: list[Ready]) -> tuple[list[Ready], Inputs, dict[str, np.ndarray]]:
        inputs = stack([w.prepared for w in group], self.input)
        return group, inputs, self.runtime.run(inputs.images, inputs.sizes)

    def _groups(
        self, readable: Iterable[tuple[Prepared, Pixels | None]], batch: int
    ) -> Generator[list[Ready], None, None]:
        """Images that share a forward pass."""
        waiting: list[Ready] = []  # the first one is the next to be predicted
        ready = iter(enumerate(readable))
        window = batch if batch == 1 or self.input.resize != "shorter" else 2 * batch
        while True:
            waiting += [Ready(i, *outcome) for i, outcome in islice(ready, window - len(waiting))]
            if not waiting:
                return
            size = padded_size([waiting[0].prepared], self.input)
            group = [w for w in waiting if padded_size([w.prepared], self.input) == size][:batch]
            taken = {w.place for w in group}
            waiting = [w for w in waiting if w.place not in taken]
            yield group

    def _prepare(self, item: Item, keep: bool) -> tuple[Prepared, Pixels | None]:
        """The preprocessed image, and the pixels that stay with its prediction (`kept`)."""
        pixels, meta = item.read(self.input)
        return prepare(pixels, meta, self.input), kept(pixels, meta, keep)


def kept(pixels: Pixels, meta: ImageMeta, keep: bool) -> Pixels | None:
    """The pixels that stay with a prediction: those of an image without a file, and with ``keep`` of any small
    image."""
    small = pixels.shape[:2] == meta.size and meta.size[0] * meta.size[1] <= LARGE
    return pixels if not meta.path or (keep and small) else None


Outcome = tuple[Prepared, Pixels | None] | Failure


def _attempt(work: Callable[[Item], tuple[Prepared, Pixels | None]], item: Item) -> Outcome:
    try:
        return work(item)
    except DataError as error:
        return Failure(item.name, error)


def _readable(
    outcomes: Iterable[Outcome], failed: Callable[[Failure], None] | None
) -> Iterator[tuple[Prepared, Pixels | None]]:
    for outcome in outcomes:
        if not isinstance(outcome, Failure):
            yield outcome
        elif failed is None:
            raise outcome.error
        else:
            failed(outcome)
