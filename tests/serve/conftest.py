import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from maskkit.serve.app import bound_socket, create_app
from maskkit.serve.limits import Limits
from maskkit.serve.worker import Load
from tests.serve.fake import load


def png(size: tuple[int, int] = (48, 64), seed: int = 0, colour: tuple[int, int, int] | None = None) -> bytes:
    """An encoded image of noise, or of one colour."""
    pixels = np.random.default_rng(seed).integers(0, 256 - 20 * (seed % 8), (*size, 3), np.uint8)
    if colour is not None:
        pixels[:] = colour
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Running:
    """A service in a thread."""

    def __init__(self, limits: Limits, model: Load, **options: Any) -> None:
        self.records: list[dict[str, Any]] = []
        self.app = create_app(model, "fake.onnx", limits, log=self.records.append, **options)
        self.socket: socket.socket = bound_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, log_config=None, lifespan="on", timeout_graceful_shutdown=20)
        )
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False)

    @property
    def queue(self) -> Any:
        return self.app.state.service.queue

    def predict(self, image: bytes, **params: Any) -> httpx.Response:
        return self.client.post("/v1/predict", files={"image": image}, params=params)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.client.close()
        self.socket.close()


@contextmanager
def running(
    limits: Limits | None = None, seconds: float = 0.0, model: Load | None = None, **options: Any
) -> Iterator[Running]:
    """``model`` is loaded in place of the fake one."""
    service = Running(limits or Limits(), model or partial(load, seconds), **options)
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    """A service that several tests share."""
    with running(Limits(max_bytes=300_000, max_pixels=1_000_000, max_images=3, batch=8, wait=20)) as found:
        yield found


@pytest.fixture(scope="session")
def other() -> Callable[..., Any]:
    return running
