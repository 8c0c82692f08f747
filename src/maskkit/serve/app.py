"""The service as an ASGI application, and the server that runs it until a signal stops it."""

from __future__ import annotations

import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import maskkit
from maskkit.errors import MaskkitError, explain
from maskkit.files import DEMO_IMAGES
from maskkit.serve.limits import Limits, Refusal
from maskkit.serve.metrics import Metrics
from maskkit.serve.queue import Queue
from maskkit.serve.routes import authorised, refused, router
from maskkit.serve.worker import Load

log = logging.getLogger(__name__)

Log = Callable[[dict[str, Any]], None]
"""Takes the log record of a request."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        b"media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
)


@dataclass(frozen=True)
class Service:
    """What the routes of an application share."""

    name: str
    """File name of the model."""
    limits: Limits
    token: str | None
    metrics: Metrics
    queue: Queue
    samples: dict[str, bytes]
    """Names and contents of the sample images."""


def create_app(
    load: Load,
    name: str = "model",
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    token: str | None = None,
    cors: Sequence[str] = (),
    page: bool = True,
    log: Log | None = None,
) -> FastAPI:
    """An application that serves the model that ``load`` makes, in another process.

    Every request to /v1 and /metrics has to send ``token``, where it is given. ``cors`` are the origins whose pages may
    read answers. With ``page``, / is a page to try the model. ``log`` is called with a record of each request.
    """
    metrics = Metrics()
    samples = {path.name: path.read_bytes() for path in sorted(DEMO_IMAGES.glob("*.jpg"))} if page else {}
    queue = Queue(load, limits, metrics)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await queue.start()
        try:
            yield
        finally:
            await queue.stop()

    # without FastAPI's documentation pages: they load scripts from other hosts
    app = FastAPI(
        title="maskkit",
        version=maskkit.__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = Service(name, limits, token, metrics, queue, samples)
    app.include_router(router, dependencies=[] if token is None else [Depends(authorised)])
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_api_route("/healthz", _healthy, summary="The service answers.", response_class=JSONResponse)
    app.add_api_route("/readyz", _ready, summary="The model is loaded.", responses={503: {"description": "It is not."}})
    if page:
        html = (Path(__file__).parent / "page" / "index.html").read_text(encoding="utf-8")
        app.add_api_route("/", lambda: HTMLResponse(html), include_in_schema=False)
    if cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(_Watch, metrics=metrics, log=log)
    return app


class _Watch:
    """Middleware that counts and logs every request, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Log | None) -> None:
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, seen = time.perf_counter(), {"status": 500, "in": 0, "out": 0}

        async def received() -> Message:
            message = await receive()
            seen["in"] += len(message.get("body", b""))
            return message

        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            seen["out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, received, sent)
        except Exception:  # a bug: the server logs what is raised, the client learns no details
            if not started:
                refusal = Refusal(500, "internal", "the service failed; its log says why")
                await refused(Request(scope), refusal)(scope, receive, sent)
            raise
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, seen["status"]).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            if self.log is not None:
                images, found = scope.get("maskkit.found", (0, 0))
                record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "method": scope["method"]}
                record |= {"route": route, "ms": round(1000 * seconds, 1), **seen, "images": images, "found": found}
                self.log(record)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
    return refused(request, Refusal(422, "invalid", "; ".join(reasons)))


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, "http", str(error.detail))
    answer = refused(request, refusal)
    answer.headers.update(error.headers or {})
    return answer


def _healthy() -> dict[str, str]:
    return {"status": "ok"}


def _ready(request: Request) -> Response:
    is_ready = request.app.state.service.queue.model is not None
    return JSONResponse({"status": "ready" if is_ready else "loading"}, 200 if is_ready else 503)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 takes a free one. Raises `MaskkitError` where that is impossible."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except OSError as error:
        raise MaskkitError(f"--host {host}: {explain(error)}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise MaskkitError(f"{host}:{port}: {error.strerror or error}; choose another --port or --host") from None
    return bound


def run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, then answer the requests that were accepted.

    The model has to be loaded before: ``app.state.service.queue.worker.start()``.
    """
    limits: Limits = app.state.service.limits
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(limits.timeout) + 5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    before = [signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)]
    try:  # uvicorn raises the signal again when it has ended
        uvicorn.Server(config).run([bound])
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def line(record: dict[str, Any]) -> str:
    """The log record of a request as one line of JSON."""
    return json.dumps(record)
