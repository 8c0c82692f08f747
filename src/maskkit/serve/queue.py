"""The queue between requests and the model's process: bounded, in order, with batches."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from maskkit.errors import MaskkitError
from maskkit.serve.answers import Answer, Ask
from maskkit.serve.limits import Limits, Refusal, busy, not_ready
from maskkit.serve.metrics import Metrics
from maskkit.serve.worker import Load, Model, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = 10.0
"""Seconds that the model's process has to end before it is killed."""


@dataclass(eq=False)
class _Waiting:
    ask: Ask
    answer: asyncio.Future[Answer]
    since: float = field(default=0.0)


class Slots:
    """The places in the queue that a request holds."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self.count = queue, 0

    def take(self, count: int) -> None:
        """Take ``count`` more places. Raises `Refusal` where there are not enough."""
        if self._queue.held + count > self._queue.limits.queue:
            raise busy()
        self._queue.held += count
        self.count += count


class Queue:
    """The images of all requests, on their way to the model.

    `asked` may be called between ``start`` and ``stop``, in the same event loop.
    """

    def __init__(self, load: Load, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self.worker = Worker(load, limits)
        self.held = 0
        """Places that requests hold."""
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, "maskkit-queue")
        self._news = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        metrics.watch(lambda: len(self._waiting), lambda: self.worker.model is not None)

    @property
    def model(self) -> Model | None:
        """The description of the model, while it is ready."""
        return self.worker.model

    async def start(self) -> None:
        """Start to work; loads the model unless ``worker.start`` was called before. Raises `MaskkitError`."""
        if self.worker.model is None:
            await self._in_thread(self.worker.start)
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer what is waiting, then end the model's process."""
        self._stopping = True
        self._news.set()
        if self._task is not None:
            await self._task
        await self._in_thread(self.worker.stop, _PATIENCE)
        self._thread.shutdown()

    @contextmanager
    def slots(self, count: int = 1) -> Iterator[Slots]:
        """Places for a request, inside ``with``. Raises `Refusal` where there are not enough, or no model is ready."""
        if self.model is None or self._stopping:
            raise not_ready()
        slots = Slots(self)
        try:
            slots.take(count)
            yield slots
        finally:
            self.held -= slots.count

    async def asked(self, asks: Sequence[Ask]) -> list[Answer]:
        """The answers, in order; they are refusals where the model's process ends. The call may be cancelled."""
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(ask, loop.create_future(), loop.time()) for ask in asks]
        self._waiting += waiting
        self._news.set()
        try:
            return await asyncio.gather(*(w.answer for w in waiting))
        finally:
            for w in waiting:
                w.answer.cancel()
            self._waiting = [w for w in self._waiting if not w.answer.done()]

    async def _work(self) -> None:
        while batch := await self._batch():
            self.metrics.batch.observe(len(batch))
            try:
                answers = await self._in_thread(self.worker.answers, [w.ask for w in batch])
            except EOFError:
                answers = None
            for n, w in enumerate(batch):
                if not w.answer.done():
                    w.answer.set_result(answers[n] if answers is not None else _lost())
            if answers is None:
                log.error("the process of the model ended; another one is started")
                await self._start_again()

    async def _batch(self) -> list[_Waiting]:
        """The next images that can share a forward pass; none at the end."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                if self._stopping:
                    return []
                await self._more(None)
            first = self._waiting[0]
            batch = [w for w in self._waiting if _together(w.ask, first.ask)][: self.limits.batch]
            left = first.since + self.limits.wait / 1000 - loop.time()
            # nothing to wait for: the batch is full, or all images of all requests are here
            if len(batch) == self.limits.batch or self.held <= len(self._waiting) or left <= 0:
                self._waiting = [w for w in self._waiting if w not in batch]
                return batch
            await self._more(left)

    async def _more(self, seconds: float | None) -> None:
        """Wait for news, at most for ``seconds``."""
        self._news.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)

    async def _start_again(self) -> None:
        self.metrics.restarts.inc()
        pause = 1
        while not self._stopping:
            try:
                await self._in_thread(self.worker.start)
                return
            except MaskkitError as error:
                log.error("%s; the next attempt is in %d s", error, pause)
                if not self._stopping:  # `stop` may have been called meanwhile
                    await self._more(pause)
                pause = min(2 * pause, 30)

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args))


def _together(one: Ask, other: Ask) -> bool:
    """Whether two images may share a forward pass."""
    return (one.score, one.tile) == (other.score, other.tile)


def _lost() -> Answer:
    refusal = Refusal(503, "worker_ended", "the process of the model ended; try again, or send a smaller image", 5)
    return Answer(refusal.status, json.dumps(refusal.to_json()).encode())
