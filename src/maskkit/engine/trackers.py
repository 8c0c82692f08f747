"""Experiment trackers by name, through the interface that accelerate has for them.

The rows of ``metrics.jsonl`` are sent to each tracker in order, once. ``trackers.json`` in the folder of the run holds
the name of the run in each tracker and the last row that was sent. So a training that is killed and resumed is one run
there too, with every step once, and a tracker that is added later gets the earlier rows.
"""

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState, tracking

from maskkit.errors import DataError, MaskkitError
from maskkit.files import write_json
from maskkit.plain_types import flat

PROJECT = "maskkit"
"""Name of the project or experiment, unless WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or TRACKIO_PROJECT names another."""

_INSTALL = {"tensorboard": "'maskkit[log]'"}
"""What to install for a tracker whose package has another name."""


def require(names: Sequence[str]) -> None:
    """Raise `MaskkitError` for a tracker that is not installed. Nothing is imported."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # without origin: a folder with this name, such as a tracker's data
            raise MaskkitError(f"--log {name}: it is not installed; pip install {_INSTALL.get(name, name)}")


class Trackers:
    """The trackers ``names`` of the run in ``out``, which has the configuration ``config``.

    A tracker that fails gets no more rows from this process, and ``note`` is called with a line about it.
    """

    def __init__(self, names: Sequence[str], out: Path, config: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self._path, self._note = out / "trackers.json", note
        self._runs = _read(self._path) if names else {}
        self._open: dict[str, tracking.GeneralTracker] = {}
        if names:
            PartialState()  # accelerate's trackers need it to know whether this is the main process
        for name in dict.fromkeys(names):
            self._try(name, lambda n=name: self._start(n, out.resolve(), config))

    def send(self, row: Mapping[str, Any]) -> None:
        """Send a row of ``metrics.jsonl`` to the trackers that do not have it yet."""
        numbers = {n: v for n, v in row.items() if n not in ("step", "seconds") and isinstance(v, int | float)}
        for name, tracker in list(self._open.items()):
            before, place = self._runs[name]["sent"], _place(row)
            if place > before and numbers:
                self._set(name, sent=place)  # before `log`: after a kill a row may be missing, but is never there twice
                named = _files(numbers) if name == "mlflow" else numbers
                if not self._try(name, lambda t=tracker, n=named: t.log(n, step=row["step"])):
                    self._set(name, sent=before)

    def close(self) -> None:
        """End the session of each tracker."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)
        self._open.clear()

    def _start(self, name: str, out: Path, config: Mapping[str, Any]) -> None:
        known = self._runs.get(name, {}).get("run")
        run = known or secrets.token_hex(4)
        tracker = _make(name, out, run, known is not None)
        tracker.start()
        if isinstance(tracker, tracking.MLflowTracker):  # MLflow chooses the id of a run
            run = tracker.tracker.info.run_id
        self._open[name] = tracker
        if known is None:
            self._set(name, run=run, sent=0)
            tracker.store_init_configuration(_settings(config))

    def _set(self, name: str, **values: Any) -> None:
        self._runs[name] = self._runs.get(name, {}) | values
        write_json(self._path, self._runs)

    def _try(self, name: str, work: Callable[[], object]) -> bool:
        """Whether ``work`` succeeded; a tracker that fails is given up."""
        try:
            work()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            self._note(
                f"--log {name} failed ({type(error).__name__}{reason and ': '}{reason}); the training goes on without "
                "it, and --resume tries it again"
            )
            if (tracker := self._open.pop(name, None)) is not None:
                with suppress(Exception):
                    tracker.finish()
            return False
        return True


def _make(name: str, out: Path, run: str, resumed: bool) -> tracking.GeneralTracker:
    """accelerate's tracker for the run ``run`` in the folder ``out``, not started yet."""
    if name == "tensorboard":
        return _TensorBoard("tensorboard", out)
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return tracking.WandBTracker(project, id=run, name=out.name, dir=str(out), resume="allow")
    if name == "mlflow":
        return tracking.MLflowTracker(PROJECT, run_id=run if resumed else None, run_name=out.name)
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    return tracking.TrackioTracker(project, name=f"{out.name}-{run}", resume="allow")


class _TensorBoard(tracking.TensorBoardTracker):
    """accelerate's tracker, without its settings as hyperparameters, which TensorBoard shows as another run."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Write the settings as a text."""
        self.writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in values.items()), 0)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with dotted names and values that trackers take."""
    plain = (bool, int, float, str, type(None))
    return {n: v if isinstance(v, plain) else json.dumps(v) for n, v in flat(dict(config)).items()}


def _files(numbers: Mapping[str, float]) -> dict[str, float]:
    """``loss`` as ``loss/sum``: MLflow may store each metric in a file, and ``loss`` is the folder of the others."""
    return {"loss/sum" if name == "loss" else name: value for name, value in numbers.items()}


def _place(row: Mapping[str, Any]) -> int:
    """The position of a row in ``metrics.jsonl``: the losses of a step come before the evaluation after it."""
    return 2 * row["step"] + any(name.startswith("val/") for name in row)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The content of ``trackers.json``; raises `DataError` where it is damaged."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(known["run"], str) and type(known["sent"]) is int for known in runs.values()):
            raise ValueError("a run without its name and last row")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it, and the trackers begin new runs") from None
    return runs
