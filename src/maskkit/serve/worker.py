"""The process that runs the model: it receives batches of images through a pipe and sends back the answers."""

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
from maskkit.geometry import windows
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
"""Makes the model in the other process, so it has to be picklable: a function of a module, or a partial of one."""


class Model(NamedTuple):
    """The description of a model that the service publishes."""

    task: str
    noun: str
    """Plural noun for its results: objects, regions, segments."""
    classes: list[dict[str, Any]]
    """COCO's category records, in order."""
    score: float
    """The threshold where a request names none."""
    input: dict[str, Any]
    """Size (height, width) and way of resizing."""
    licence: str | None
    """Licence of the weights, if it is known."""

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
    """Answers questions about images with a model."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter, self.limits = segmenter, limits
        self._tiled = lru_cache(16)(segmenter.with_tiles)

    def answers(self, asks: Sequence[Ask]) -> list[Answer]:
        """One answer for each of ``asks``, which have the same score and tile, and may share a forward pass.

        If the program fails on an image, only the answer for that image is an error.
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

        segmenter = self.segmenter if asks[0].tile is None else self._tiled(asks[0].tile)
        score = segmenter.score if asks[0].score is None else asks[0].score
        items = numbered_images((place, ask.image) for place, ask in enumerate(asks) if place not in answers)
        for prediction in segmenter.predictor.predict(items, batch=len(asks), score=score, failed=failed):
            place = int(prediction.meta.image_id)
            ask = asks[place]
            prediction.meta = replace(prediction.meta, image_id=ask.image_id)
            answers[place] = image_answer(Selection(ask.classes)(prediction), ask, score)
        return [answers[place] for place in range(len(asks))]

    def _check(self, ask: Ask) -> None:
        """Raise `Refusal` for an image that is empty, or too large by its header, without decoding its pixels."""
        if not ask.image:
            raise Refusal(422, "empty", "the image is empty (0 bytes)")
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
        if ask.tile is not None and windows.count((height, width), ask.tile) > MAX_TILES:
            message = f"{width} x {height} pixels are more than {MAX_TILES} tiles of {ask.tile}; name a larger tile"
            raise Refusal(422, "too_many_tiles", message)


def run(pipe: Connection, load: Load, limits: Limits) -> None:
    """What the process does: load the model, then answer until the other end of the pipe is closed.

    Its first message is the `Model`, or a text that says why it cannot be loaded.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the service ends this process, after all requests are answered
        signal.signal(number, signal.SIG_IGN)
    prepare_streams()
    try:
        engine = Engine(load(), limits)
        engine.segmenter.predict(np.zeros((*engine.segmenter.input.size, 3), np.uint8))  # the first call is slow
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
    """The model's process, as the service controls it. Its methods block, so they are called in a thread."""

    def __init__(self, load: Load, limits: Limits) -> None:
        self._load, self._limits = load, limits
        self._process: Any = None
        self._pipe: Connection | None = None
        self.model: Model | None = None
        """The description, while the model is ready."""

    @property
    def pid(self) -> int | None:
        """The id of the process, while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> Model:
        """Start the process and wait for its model. Raises `MaskkitError` where it cannot be started or loaded."""
        context = multiprocessing.get_context("spawn")
        try:
            ours, theirs = context.Pipe()
            process = context.Process(target=run, args=(theirs, self._load, self._limits), name="maskkit", daemon=True)
            process.start()
        except OSError as error:  # no memory, or too many processes or open files
            reason = error.strerror or error
            raise MaskkitError(f"the process of the model cannot be started ({reason}); free some memory") from None
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
        """The answers to a batch. Raises ``EOFError`` where the process has ended, or does not answer in time."""
        if self._pipe is None:
            raise EOFError
        try:
            self._pipe.send(list(asks))
            if not self._pipe.poll(2 * self._limits.timeout):  # all requests have timed out
                raise EOFError
            return self._pipe.recv()
        except (EOFError, OSError):
            self.stop()
            raise EOFError from None

    def stop(self, patience: float = 0) -> None:
        """End the process; it is killed after ``patience`` seconds."""
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
    """The refusal for an image that cannot be read."""
    status, code = (413, "too_many_pixels") if "too many pixels" in str(error) else (422, "bad_image")
    return Refusal(status, code, str(error))
