"""Steps that run at the same time, each in its own thread, with short queues between them. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

AHEAD = 4
"""Length of the queue behind a step."""
_WAIT = 0.1
"""Seconds after which a waiting thread checks whether it is still needed."""

T = TypeVar("T")
R = TypeVar("R")


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


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """``work`` of each item, in order; ``threads`` at a time, a few items ahead, or with 0 in the calling thread.

    An error of ``items`` is raised after the results before it. When this generator is closed, the threads end after
    the items that they work on.
    """
    if threads < 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        rest, failure = iter(items), None
        try:
            while True:
                try:
                    waiting.extend(pool.submit(work, item) for item in islice(rest, 2 * threads - len(waiting)))
                except Exception as error:
                    rest, failure = iter(()), error
                if waiting:
                    yield waiting.popleft().result()
                elif failure is not None:
                    raise failure
                else:
                    return
        finally:
            pool.shutdown(cancel_futures=True)
