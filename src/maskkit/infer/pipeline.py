"""Steps that run at the same time, each in its own thread, with short queues between them. No torch."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

AHEAD = 4
"""Length of the queue behind a step."""
_WAIT = 0.1
"""Seconds after which a waiting thread checks whether it is still needed."""

T = TypeVar("T")


def ahead(items: Iterable[T], size: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made by another thread, which is at most ``size`` of them ahead; its errors are raised here.

    When this generator is closed, the thread ends after the item that it works on, and closes ``items``.
    """
    queue: Queue[tuple[bool, Any]] = Queue(size)
    left = Event()

    def put(is_item: bool, value: object) -> bool:
        while not left.is_set():
            with suppress(Full):
                queue.put((is_item, value), timeout=_WAIT)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(True, item):
                    break
            else:
                put(False, None)
        except BaseException as error:  # whatever it is, the caller gets it
            put(False, error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = queue.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        left.set()
        with suppress(Empty):
            while True:
                queue.get_nowait()
        thread.join()
