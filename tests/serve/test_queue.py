"""The queue when the process of the model ends and cannot be started again."""

import asyncio
import multiprocessing
from types import SimpleNamespace
from typing import Any

import pytest

from maskkit.errors import MaskkitError
from maskkit.serve.answers import Ask
from maskkit.serve.limits import Limits
from maskkit.serve.metrics import Metrics
from maskkit.serve.queue import Queue
from maskkit.serve.worker import Model, Worker
from tests.serve.fake import load


def fails(*_: Any, **__: Any) -> Any:
    raise OSError(11, "Resource temporarily unavailable")


def test_a_process_that_cannot_be_started_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pipe=fails))
    with pytest.raises(
        MaskkitError, match=r"the process of the model cannot be started \(Resource temporarily unavailable\)"
    ):
        Worker(load, Limits()).start()


def test_waiting_images_are_refused_and_the_service_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(self: Worker) -> Model:
        raise MaskkitError("the process of the model cannot be started: no memory")

    async def life() -> list[int]:
        queue = Queue(load, Limits(), Metrics())
        queue.worker.model = Model("instance", "objects", [], 0.5, {}, None)  # whose process has ended
        monkeypatch.setattr(Worker, "start", no_process)
        await queue.start()
        first = await asyncio.wait_for(queue.asked([Ask(b"")]), 5)
        late = asyncio.create_task(queue.asked([Ask(b"")]))
        await asyncio.sleep(0)
        await asyncio.wait_for(queue.stop(), 5)
        return [answer.status for answer in first + await late]

    assert asyncio.run(life()) == [503, 503]
