"""The process that has the model: it takes images from a pipe and gives answers, a batch at a time."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskkit.data.images import opened
from maskkit.errors import DataError, MaskkitError, explain
from maskkit.infer.predict import Failure
from maskkit.infer.selection import Selection
from maskkit.infer.sources import numbered_images
from maskkit.serve.answers import Answer, Ask, image_answer
from maskkit.serve.limits import MAX_TILES, Limits, Refusal
from maskkit.terminal import prepare_streams

if TYPE_CHECKING:
    from maskkit.api import Segmenter

log = logging.getLogger(__name__)

Load = Callable[[], "Segmenter"]
"""Makes the model in the process that it is passed to, so it can be pickled: a function of a module, or a partial."""
_OVERLAP = 0.2
"""Part of a tile that its neighbours share, as by default everywhere."""


class Model(NamedTuple):
    """What the service says about its model."""

    task: str
    noun: str
    """Plural noun for its results."""
    classes: list[dict[str, Any]]
    """COCO's category records, in order."""
    score: float
    """The threshold where a request names none."""
    input: dict[str, Any]
    """Size (height, width) and way of resizing."""
    licence: str | None
    """Licence of the weights, where it is known."""

    @classmethod
    def of(cls, segmenter: Segmenter) -> Model:
        """The description of a loaded model."""
        licence = segmenter.info.get("licence")
        return cls(
            segmenter.task_name,
            segmenter.task.noun,
            segmenter.categories.to_coco(),
            segmenter.score,
            {"size": list(segmenter.input.size), "resize": segmenter.input.resize},
            str(licence) if licence else None,
        )


class Engine:
    """A model that answers."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter, self.limits = segmenter, limits
        self._tiled = lru_cache(16)(segmenter.with_tiles)

    def answers(self, asks: Sequence[Ask]) -> list[Answer]:
        """An answer to each; they have one score and one tile, and share forward passes.

        An image for which the program fails, with a fault that is none of the image's, does not fail the others.
        """
        try:
            return self._together(asks)
        except Exception:
            if len(asks) > 1:
                return [answer for ask in asks for answer in self.answers([ask])]
            log.exception("an image of %d bytes could not be predicted", len(asks[0].image))
            return [_refused(Refusal(500, "internal", "the service failed on this image; its log says why"))]

    def _together(self, asks: Sequence[Ask]) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for place, ask in enumerate(asks):
            try:
                self._check(ask)
            except Refusal as refusal:
                answers[place] = _refused(refusal)
        names = {f"image {place}": place for place in range(len(asks))}

        def failed(failure: Failure) -> None:
            answers[names[failure.path]] = _refused(_unreadable(failure.error))

        segmenter = self.segmenter if asks[0].tile is None else self._tiled(asks[0].tile, _OVERLAP)
        score = segmenter.score if asks[0].score is None else asks[0].score
        items = numbered_images((place, ask.image) for place, ask in enumerate(asks) if place not in answers)
        for prediction in segmenter.predictor.predict(items, batch=len(asks), score=score, failed=failed):
            place = int(prediction.meta.image_id)
            ask = asks[place]
            prediction.meta = replace(prediction.meta, image_id=ask.image_id)
            answers[place] = image_answer(Selection(ask.classes)(prediction), ask, score)
        return [answers[place] for place in range(len(asks))]

    def _check(self, ask: Ask) -> None:
        """Refuse what the header of an image forbids; its pixels are not decoded for this."""
        try:
            with opened(BytesIO(ask.image)) as image:
                width, height = image.size
        except DataError as error:
            raise _unreadable(error) from None
        most = self.limits.max_pixels
        if width * height > most:
            raise Refusal(
                413, "too_many_pixels", f"the image has {width} x {height} pixels, the service takes at most {most}"
            )
        if ask.tile is not None and _tiles(height, ask.tile) * _tiles(width, ask.tile) > MAX_TILES:
            message = f"{width} x {height} pixels are more than {MAX_TILES} tiles of {ask.tile}; name a larger tile"
            raise Refusal(422, "too_many_tiles", message)


def run(pipe: Connection, load: Load, limits: Limits) -> None:
    """The life of the process: load, say so, answer until the other end of the pipe is closed.

    The first message is a `Model`, or the reason why there is none.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the service ends it, when all requests are answered
        signal.signal(number, signal.SIG_IGN)
    prepare_streams()
    try:
        engine = Engine(load(), limits)
        engine.segmenter.predict(np.zeros((*engine.segmenter.input.size, 3), np.uint8))  # the first one takes longer
        pipe.send(Model.of(engine.segmenter))
    except MaskkitError as error:
        pipe.send(str(error))
        return
    except OSError as error:
        pipe.send(explain(error))
        return
    except ModuleNotFoundError as error:
        pipe.send(f"this model takes {error.name}, which is not installed; maskkit-runtime has no PyTorch, maskkit has")
        return
    while True:
        try:
            asks = pipe.recv()
            if asks is None:
                return
            pipe.send(engine.answers(asks))
        except (EOFError, ConnectionError):  # the service has ended
            return


class Worker:
    """The process of a model, seen from the service. Its methods block: they are called in a thread."""

    def __init__(self, load: Load, limits: Limits) -> None:
        self._load, self._limits = load, limits
        self._process: Any = None
        self._pipe: Connection | None = None
        self.model: Model | None = None
        """The description, while the model is ready."""

    @property
    def pid(self) -> int | None:
        """The number of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    def start(self) -> Model:
        """Start the process and wait for its model. Raises `MaskkitError` where it cannot be loaded."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run, args=(theirs, self._load, self._limits), name="maskkit", daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        try:
            found = ours.recv()
        except (EOFError, ConnectionError):
            self.stop()
            raise MaskkitError("the process of the model ended while it was loading; see its messages") from None
        if isinstance(found, str):
            self.stop()
            raise MaskkitError(found)
        self.model = found
        return found

    def answers(self, asks: Sequence[Ask]) -> list[Answer]:
        """The answers to a batch. Raises ``EOFError`` where the process has ended, or gives none for very long."""
        assert self._pipe is not None
        try:
            self._pipe.send(list(asks))
            if not self._pipe.poll(2 * self._limits.timeout):  # nobody waits for the answer any more
                raise EOFError
            return self._pipe.recv()
        except (EOFError, OSError):
            self.stop()
            raise EOFError from None

    def stop(self, patience: float = 0) -> None:
        """End the process, at the latest after ``patience`` seconds."""
        self.model = None
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            if patience:
                process.join(patience)
            process.kill()
            process.join()
            process.close()


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, json.dumps(refusal.to_json()).encode())


def _unreadable(error: DataError) -> Refusal:
    """The message is about bytes in memory: it names no file."""
    status, code = (413, "too_many_pixels") if "too many pixels" in str(error) else (422, "bad_image")
    return Refusal(status, code, str(error))


def _tiles(length: int, tile: int) -> int:
    """The number of tiles along a side."""
    step = max(tile - round(tile * _OVERLAP), 1)
    return 1 + -(-max(length - tile, 0) // step)
