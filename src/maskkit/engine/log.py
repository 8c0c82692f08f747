"""The log of a run: a progress bar or plain lines, `metrics.jsonl`, trackers."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.progress import Progress, TextColumn
from rich.table import Column

from maskkit.engine.trackers import Trackers
from maskkit.errors import FileError, explain
from maskkit.eval.numbers import Metric, shown
from maskkit.files import replacing
from maskkit.terminal import Console

LOG_EVERY = 10
"""Steps between lines of `metrics.jsonl`."""

_PRINT_EVERY = 10.0
"""Seconds between plain lines where there is no terminal for a progress bar."""

T = TypeVar("T")


class RunLog:
    """The log of one run, from step ``start`` to ``total``; use it as a context manager.

    ``main`` is False in all but the first of several processes; the others print and write nothing. ``epoch`` is the
    number of steps that go through the training images once, ``config`` what the ``trackers`` show as the settings.
    """

    def __init__(
        self,
        out: Path,
        start: int,
        total: int,
        trackers: Sequence[str] = (),
        main: bool = True,
        epoch: float = 0.0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.start, self.total, self.main, self.epoch = start, total, main, epoch
        self._console = Console(stderr=True, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            disable=not main or not self._console.is_terminal or "CI" in os.environ,
        )
        self._bar = self._bars.add_task("training", total=total, completed=start, text="")
        self._began = self._counted_from = self._printed = time.monotonic()
        self._images = 0
        self._speed = 0.0
        self._loss = math.nan
        self._metric = ""
        self._value = self._best = math.nan
        self._file = None
        self._trackers = None
        self._earlier = 0.0
        if main:
            path = out / "metrics.jsonl"
            truncate(path, start)
            rows = read_rows(path)
            for row in rows:
                self._earlier = float(row.get("seconds", self._earlier))
                self._keep(row)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
            self._trackers = Trackers(trackers, out, config or {}, self.note)
            for row in rows:
                self._trackers.send(row)

    def __enter__(self) -> "RunLog":
        self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()
        for sink in (self._file, self._trackers):
            if sink is not None:
                sink.close()

    @property
    def seconds(self) -> float:
        """How long the run has taken, in all processes that continued it."""
        return self._earlier + time.monotonic() - self._began

    def step(self, step: int, terms: Mapping[str, float], rate: float, images: int) -> None:
        """Log step ``step`` (1 is the first): its losses, learning rate and number of images."""
        now = time.monotonic()
        self._images += images
        self._speed = self._images / max(now - self._counted_from, 1e-9)
        self._loss = sum(terms.values())
        if self._bars.disable and (now - self._printed > _PRINT_EVERY or step == self.total):
            self.note(self.line(step))
            self._printed = now
        else:
            self._bars.update(self._bar, completed=step, text=self.line(step, self._console.width))
        if step % LOG_EVERY == 0 or step == self.total:
            losses = {f"loss/{n}": v for n, v in terms.items()}
            self._write(step, {"lr": rate, "loss": self._loss, **losses, "images/s": self._speed})
            self._counted_from, self._images = now, 0

    def line(self, step: int, width: int = 80) -> str:
        """The progress of the run after ``step``, in at most ``width`` columns; the least important parts go first."""
        left = (time.monotonic() - self._began) / max(step - self.start, 1) * (self.total - step)
        metric = f"{self._metric} {shown(self._value)}" if self._metric else ""
        if self._metric and self._best > self._value:
            metric += f" (best {shown(self._best)})"
        epochs = math.ceil(self.total / self.epoch) if self.epoch else 0
        parts = [  # each with its importance
            (f"epoch {math.ceil(step / self.epoch)}/{epochs}" if epochs else "", 2),
            (f"step {step}/{self.total}", 5),
            (f"loss {self._loss:.3f}", 3),
            (metric, 4),
            (f"{self._speed:.1f} images/s", 1),
            (f"{clock(left)} left" if step < self.total else f"in {clock(self.seconds)}", 4),
        ]
        parts = [(text, weight) for text, weight in parts if text]
        while len(parts) > 1 and len("  ".join(text for text, _ in parts)) >= width:
            parts.remove(min(parts, key=lambda part: part[1]))
        return "  ".join(text for text, _ in parts)

    def evaluation(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Log the metrics of an evaluation after step ``step``, shares from 0 to 1; the first one is the decisive."""
        row = {f"val/{name}": value for name, value in metrics.items()}
        self._keep(row)
        self._write(step, row)
        best = f"; best {self._metric} {shown(self._best)}" if self._best > self._value else ""
        self.note(f"step {step}/{self.total} " + ", ".join(f"{n} {shown(v)}" for n, v in metrics.items()) + best)
        self._counted_from, self._images = time.monotonic(), 0

    def _keep(self, row: Mapping[str, Any]) -> None:
        """Note the decisive metric of an evaluation."""
        name = next((n for n in row if n.startswith("val/")), None)
        if name is not None:
            self._metric = name.removeprefix("val/")
            self._value = math.nan if row[name] is None else row[name]
            self._best = self._value if math.isnan(self._best) else max(self._best, self._value)

    def note(self, text: str) -> None:
        """Print a line for the user."""
        if self.main:
            self._console.print(text, markup=False, highlight=False)

    def track(self, things: Iterable[T], total: int, description: str) -> Iterator[T]:
        """Yield ``things`` and show their count in a separate line."""
        bar = self._bars.add_task(description, total=total, text=f"{description} 0/{total}")
        for i, thing in enumerate(things, 1):
            yield thing
            self._bars.update(bar, completed=i, text=f"{description} {i}/{total}")
        self._bars.remove_task(bar)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._file is not None:
            row = {"step": step, **values, "seconds": round(self.seconds, 2)}
            try:
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
            except OSError as error:
                raise FileError(explain(error, self._file.name)) from None
        if self._trackers is not None:
            self._trackers.send({"step": step, **values})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none where there is no such file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


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


def clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
