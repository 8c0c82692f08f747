"""Trainings in processes of their own, which can be killed. A server that has torch loaded forks them, to save time."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from maskkit.config import RunConfig, to_dict
from maskkit.engine.log import LOG_EVERY

PLUGIN = str(Path(__file__).parents[1] / "plugin")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["maskkit.engine.train", "maskkit.models.yolact", "matplotlib.backends.backend_svg", "torch._dynamo"]
)


def start(
    config: RunConfig,
    out: Path,
    resume: bool = False,
    environment: dict[str, str] | None = None,
    log_every: int = LOG_EVERY,
    dies_before: str | None = None,
    dies_at: int | None = None,
    says: Path | None = None,
) -> BaseProcess:
    """Begin a training in a new process, which writes its losses every ``log_every`` steps, and stderr to ``says``.

    It is killed when a file is written to the end and about to get the name ``dies_before``, or its name at all, for
    the ``dies_at``-th time (1 is the first).
    """
    return fork(_train, to_dict(config), out, resume, environment or {}, log_every, dies_before, dies_at, says)


def fork(work: Callable[..., None], *args: object) -> BaseProcess:
    """Begin ``work`` in a new process."""
    process = _server.Process(target=work, args=args)
    process.start()
    return process


def run_to_end(config: RunConfig, out: Path, resume: bool = False) -> None:
    """A training in a new process, to its end."""
    process = start(config, out, resume)
    process.join()
    assert process.exitcode == 0


def kill_when(process: BaseProcess, moment: Callable[[], bool]) -> bool:
    """Kill ``process`` as soon as ``moment`` is true; False when it ended, as it should, before."""
    while process.is_alive():
        if moment():
            process.kill()
            process.join()
            break
    assert process.exitcode in (0, -9), "it failed by itself"
    return process.exitcode == -9


def into(out: Path, seconds: float) -> Callable[[], bool]:
    """The moment that many seconds after a process started from now on has begun its loop."""
    launched = time.time_ns()
    began: list[float] = []

    def moment() -> bool:
        config = out / "config.json"  # written just before the loop, by every process
        if not began and config.exists() and config.stat().st_mtime_ns > launched:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() > began[0] + seconds

    return moment


def _train(
    config: dict,
    out: Path,
    resume: bool,
    environment: dict[str, str],
    log_every: int,
    dies_before: str | None,
    dies_at: int | None,
    says: Path | None,
) -> None:
    import torch

    from maskkit.checkpoints.checkpoint import run_config
    from maskkit.engine import log
    from maskkit.engine.train import train
    from maskkit.eval import page

    if says is not None:
        os.dup2(os.open(says, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    os.environ.update(environment)
    sys.path.insert(0, PLUGIN)
    log.LOG_EVERY = log_every
    page.svg = lambda figure: "data:image/svg+xml;base64,"  # to draw figures takes longer than these trainings
    replace, count = os.replace, iter(range(1, 1_000_000))

    def die_or_replace(source: Path, target: Path) -> None:
        if target.name == dies_before or next(count) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die_or_replace
    train(run_config(config), out, resume)
