"""The log of a run: a progress bar or plain lines, `metrics.jsonl`, TensorBoard curves."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from maskkit.errors import MaskkitError
from maskkit.files import replacing
from maskkit.terminal import Console

LOG_EVERY = 10
"""Steps between lines of `metrics.jsonl`."""

_PRINT_EVERY = 10.0
"""Seconds between plain lines where there is no terminal for a progress bar."""

T = TypeVar("T")


class RunLog:
    """The log of one run, from step ``start`` to ``total``; use it as a context manager.

    ``main`` is False in all but the first of several processes; the others print and write nothing. Lines that an
    earlier, killed process wrote about steps after ``start`` are removed, because these steps are repeated.
    """

    def __init__(self, out: Path, start: int, total: int, tensorboard: bool = False, main: bool = True) -> None:
        self.start, self.total, self.main = start, total, main
        self._console = Console(stderr=True, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            expand=True,
            console=self._console,
            disable=not main or not self._console.is_terminal or "CI" in os.environ,
        )
        self._bar = self._bars.add_task("training", total=total, completed=start, text="")
        self._began = self._counted_from = self._printed = time.monotonic()
        self._images = 0
        self._file = None
        self._curves = None
        if main:
            path = out / "metrics.jsonl"
            truncate(path, start)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
            self._curves = _open_curves(out / "tensorboard", start) if tensorboard else None

    def __enter__(self) -> "RunLog":
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()
        for sink in (self._file, self._curves):
            if sink is not None:
                sink.close()

    def step(self, step: int, terms: Mapping[str, float], rate: float, images: int) -> None:
        """Log step ``step`` (1 is the first): its losses, learning rate and number of images."""
        now = time.monotonic()
        self._images += images
        speed = self._images / max(now - self._counted_from, 1e-9)
        loss = sum(terms.values())
        parts = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
        text = f"loss {loss:.3f} ({parts}) lr {rate:.2g} {speed:.1f} images/s"
        self._bars.update(self._bar, completed=step, text=text)
        if self._bars.disable and (now - self._printed > _PRINT_EVERY or step == self.total):
            left = (now - self._began) / (step - self.start) * (self.total - step)
            self.note(f"step {step}/{self.total} {text}, {_clock(left)} left")
            self._printed = now
        if step % LOG_EVERY == 0 or step == self.total:
            self._write(
                step, {"lr": rate, "loss": loss, **{f"loss/{n}": v for n, v in terms.items()}, "images/s": speed}
            )
            self._counted_from, self._images = now, 0

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an evaluation after step ``step``."""
        self._write(step, {f"val/{name}": value for name, value in metrics.items()})
        self.note(f"step {step}/{self.total} " + ", ".join(f"{n} {v:.4f}" for n, v in metrics.items()))
        self._counted_from = time.monotonic()

    def note(self, text: str) -> None:
        """Print a line for the user."""
        if self.main:
            self._console.print(text, markup=False, highlight=False)

    def track(self, things: Iterable[T], total: int, description: str) -> Iterator[T]:
        """Yield ``things`` with a progress bar of their own."""
        bar = self._bars.add_task(description, total=total, text="")
        for thing in things:
            yield thing
            self._bars.advance(bar)
        self._bars.remove_task(bar)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._curves is not None:
            for name, value in values.items():
                self._curves.add_scalar(name, value, step)


def truncate(path: Path, step: int, evaluated: int | None = None) -> None:
    """Remove the lines of ``path`` about steps after ``step``, and a line that a killed process left incomplete.

    Lines of evaluations after the step ``evaluated`` are removed too: these are repeated.
    """
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(line for line in text.splitlines(keepends=True) if _is_of_past(line, step, evaluated))
    if kept != text:
        with replacing(path) as temporary:
            temporary.write_text(kept, encoding="utf-8")


def _is_of_past(line: str, step: int, evaluated: int | None) -> bool:
    try:
        row = json.loads(line) if line.endswith("\n") else {}
    except json.JSONDecodeError:
        return False
    last = step if evaluated is None or not any(name.startswith("val/") for name in row) else evaluated
    return isinstance(row, dict) and row.get("step", math.inf) <= last


def _open_curves(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MaskkitError(f"TensorBoard is not installed ({error}); pip install 'maskkit[log]'") from None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
