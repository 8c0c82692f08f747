"""`maskkit serve`: a model behind HTTP, and a page to try it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from maskkit.cli.options import Fetch
from maskkit.errors import MaskkitError
from maskkit.files import read_bytes
from maskkit.ranges import Count, Range
from maskkit.serve.limits import Limits
from maskkit.terminal import complain, say

TOKEN = "MASKKIT_TOKEN"
"""Environment variable of the token."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHORTEST = 16
"""Smallest number of characters of a token."""


def serve(
    model: str = "built-in",
    host: str = "127.0.0.1",
    port: Annotated[int, Range(0, 65_535)] = 8000,
    device: str | None = None,
    threads: Count | None = None,
    token_file: Path | None = None,
    cors: tuple[str, ...] = (),
    page: bool = True,
    log: bool = True,
    limits: Annotated[Limits, arg(name="")] = Limits(),  # noqa: B008 (frozen)
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """Serve a model: an API to predict over HTTP, and a page to try it in a browser.

    POST /v1/predict takes an image and returns COCO result rows or an overlay; /openapi.json describes the API. Needs
    maskkit[serve].

    Example: maskkit serve --model runs/pets/best.safetensors

    Example: curl -F image=@photo.jpg "http://127.0.0.1:8000/v1/predict?score=0.5"

    Args:
        model: Checkpoint, exported file (.onnx, .xml, .pt2), built-in for the model in the package, or a preset whose
            published weights are downloaded: maskkit models --weights.
        host: Address to listen on; by default only this machine can connect. 0.0.0.0 for all.
        port: Port; 0 takes a free one.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        threads: Processor cores of the network; by default all.
        token_file: File with a token that every request has to send; or set the environment variable MASKKIT_TOKEN.
        cors: Origins, such as https://example.org, whose pages may use the API.
        page: Serve the page at /.
        log: Print a line of JSON for each request.
        limits: Limits of requests.
        fetch: Downloads.
    """
    fetch.apply()
    token = _token(token_file)
    from maskkit.api import load
    from maskkit.infer.runtimes import require

    for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(module, "serve")
    from maskkit.serve.app import bound_socket, create_app, line, run

    app = create_app(
        partial(load, model, device, threads),
        Path(model).name,
        limits,
        token,
        cors,
        page,
        (lambda record: say(line(record), flush=True)) if log else None,
    )
    with bound_socket(host, port) as bound:
        found = app.state.service.queue.worker.start()
        if host not in _LOOPBACK and token is None:
            complain(
                f"--host {host}: anyone who reaches this machine can use the service; --token-file asks for a token"
            )
        shown = f"[{host}]" if ":" in host else host
        say(
            f"serving {Path(model).name} ({found.task}, {len(found.classes)} classes) at "
            f"http://{shown}:{bound.getsockname()[1]}; Ctrl-C stops it",
            flush=True,
        )
        run(app, bound)
    return 0


def _token(path: Path | None) -> str | None:
    """The token of the file or of the environment. Raises `MaskkitError` for one that is easily guessed."""
    given = os.environ.get(TOKEN) if path is None else read_bytes(path).decode("utf-8", "replace").strip()
    if given is None:
        return None
    if len(given) < _SHORTEST or not given.isascii() or not given.isprintable() or " " in given:
        raise MaskkitError(
            f"{TOKEN if path is None else path}: a token has at least {_SHORTEST} characters of ASCII, without spaces; "
            "make one with: openssl rand -hex 16"
        )
    return given
