"""Trackers get every row once, whatever happens to the training, and nothing happens to the training."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskkit.config import RunConfig
from maskkit.engine.log import RunLog
from maskkit.engine.trackers import require
from maskkit.engine.train import train
from maskkit.errors import DataError, MaskkitError
from tests.engine import runner

FAKE = """
import json, os, pathlib
from types import SimpleNamespace

FAILS = {fails!r}
FILE = pathlib.Path({file!r})


def note(*what):
    if what[0] in FAILS:
        raise RuntimeError("no\\nserver")
    with open(FILE, "a") as file:
        file.write(json.dumps(what) + "\\n")


note("import")
"""
"""What all stand-ins have: they write what they are asked to do to a file."""

STAND_INS = {
    "wandb": """
def init(project, id, name, dir, resume):
    note("init", project, id, name, resume)
    return SimpleNamespace(log=lambda values, step: note("log", step, values), finish=lambda: note("finish"))

config = SimpleNamespace(update=lambda values, allow_val_change: note("config", values))
""",
    "trackio": """
def init(project, name, resume):
    note("init", project, name, resume)
    return SimpleNamespace(log=lambda values, step=None: note("log", step, values), finish=lambda: note("finish"))

config = SimpleNamespace(update=lambda values, allow_val_change: note("config", values))
""",
    "mlflow": """
utils = SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100))
search_experiments = lambda filter_string: []
create_experiment = lambda **_: "7"
log_metrics = lambda values, step: note("log", step, values)
log_params = lambda values: note("config", values)
end_run = lambda: note("finish")

def start_run(run_id, experiment_id, run_name, **_):
    note("init", experiment_id, run_id, run_name)
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made-by-the-server"))
""",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a tracker that only takes notes in place of the real one; returns what reads the notes."""
    (tmp_path / "packages").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "packages")

    def make(name: str, fails: tuple[str, ...] = ()) -> Any:
        sys.modules.pop(name, None)
        file = tmp_path / f"{name}.jsonl"
        (tmp_path / "packages" / f"{name}.py").write_text(
            FAKE.format(fails=fails, file=str(file)) + STAND_INS[name], encoding="utf-8"
        )
        importlib.invalidate_caches()
        return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    yield make
    for name in STAND_INS:
        sys.modules.pop(name, None)


def rows(notes: list[Any]) -> list[tuple[int, str]]:
    return [
        (step, "val" if "val/AP" in values else "loss") for kind, step, values in (n for n in notes if n[0] == "log")
    ]


def write(log: RunLog, start: int, stop: int, evaluated: tuple[int, ...] = ()) -> None:
    for step in range(start + 1, stop + 1):
        log.step(step, {"mask": float(step)}, 0.1, 1)
        if step in evaluated:
            log.evaluation(step, {"AP": 0.5, "AP_large": None})


@pytest.mark.parametrize("name", list(STAND_INS))
def test_a_run_that_is_stopped_is_one_run_with_each_row_once(tmp_path: Path, stand_in: Any, name: str) -> None:
    notes = stand_in(name)
    config = {"train": {"lr": 0.1, "milestones": [0.5]}}
    (tmp_path / "run").mkdir()
    with RunLog(tmp_path / "run", 0, 40, [name], config=config) as log:
        write(log, 0, 30, evaluated=(20,))
    for start in (10, 20):  # from states before and at the evaluation
        with RunLog(tmp_path / "run", start, 40, [name], config=config) as log:
            write(log, start, 40, evaluated=(20, 40))
    found = notes()
    assert rows(found) == [(10, "loss"), (20, "loss"), (20, "val"), (30, "loss"), (40, "loss"), (40, "val")]
    assert [n[1] for n in found if n[0] == "config"] == [{"train.lr": 0.1, "train.milestones": "[0.5]"}]
    names = found[[n[0] for n in found].index("log")][2].keys()
    assert names == {"loss/sum" if name == "mlflow" else "loss", "loss/mask", "lr", "images/s"}
    assert not [n for n in names if name == "mlflow" and any(other.startswith(f"{n}/") for other in names)]
    assert [n[0] for n in found].count("finish") == 3
    inits = [n[1:] for n in found if n[0] == "init"]
    if name == "mlflow":
        assert inits == [["7", None, "run"], *[["7", "made-by-the-server", "run"]] * 2]
    else:
        assert len({json.dumps(init) for init in inits}) == 1, "always the same run"
        assert inits[0][-1] == "allow"


def test_one_that_is_added_later_gets_the_earlier_rows(tmp_path: Path, stand_in: Any) -> None:
    notes = stand_in("wandb")
    with RunLog(tmp_path, 0, 20) as log:
        write(log, 0, 20, evaluated=(10,))
    assert notes() == [], "not imported unless asked for"
    with RunLog(tmp_path, 20, 30, ["wandb"]) as log:
        write(log, 20, 30)
    assert rows(notes()) == [(10, "loss"), (10, "val"), (20, "loss"), (30, "loss")]


@pytest.mark.parametrize("moment", ["import", "init", "config", "log", "finish"])
def test_one_that_fails_costs_a_line(
    tmp_path: Path, stand_in: Any, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    notes, other = stand_in("wandb", fails=(moment,)), stand_in("trackio")
    with RunLog(tmp_path, 0, 20, ["wandb", "trackio"]) as log:
        write(log, 0, 20)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert "--log wandb failed (RuntimeError: no server); the training goes on without it" in line
    assert rows(other()) == [(10, "loss"), (20, "loss")]
    stand_in("wandb")
    with RunLog(tmp_path, 20, 30, ["wandb", "trackio"]) as log:
        write(log, 20, 30)
    assert rows(notes()) == [(10, "loss"), (20, "loss"), (30, "loss")], "it gets what it lacks when it works again"


def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    for start in (0, 10):
        with RunLog(tmp_path, start, 30, ["tensorboard"], config={"train": {"lr": 0.1}}) as log:
            write(log, start, 30, evaluated=(10, 30) if start else (10,))
    assert events(tmp_path, "loss") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert events(tmp_path, "val/AP") == [(10, 0.5), (30, 0.5)]
    assert not list((tmp_path / "tensorboard").glob("*/")), "one run"


def events(out: Path, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curves = accumulator.EventAccumulator(str(out / "tensorboard"))
    curves.Reload()
    return [(event.step, event.value) for event in curves.Scalars(name)]


def test_a_training_that_is_killed_and_resumed(tmp_path: Path, run: RunConfig) -> None:
    config = replace(run, train=replace(run.train, log=("tensorboard",)))
    out = tmp_path / "run"
    kills = 0
    for moment in (0.2, 0.4):
        kills += runner.kill_when(runner.start(config, out, resume=True), runner.into(out, moment))
    runner.run_to_end(config, out, resume=True)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kills
    assert events(out, "loss") == [(row["step"], pytest.approx(row["loss"])) for row in steps if "loss" in row]
    assert [s for s, _ in events(out, "val/AP")] == [row["step"] for row in steps if "val/AP" in row]


def test_one_that_is_not_installed_is_named_before_anything_else(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MaskkitError, match=r"--log tensorboard: it is not installed; pip install 'maskkit\[log\]'"):
        require(("tensorboard",))
    with pytest.raises(MaskkitError, match=r"--log wandb: it is not installed; pip install wandb"):
        train(replace(run, train=replace(run.train, log=("wandb",))), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MaskkitError, match=r"--log wandb: it is not installed"):
        require(("wandb",))


def test_damaged_notes_about_trackers_are_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"wandb": {"run": 3, "sent": 0}}', '{"wandb": {}}'):
        (tmp_path / "trackers.json").write_text(text)
        with pytest.raises(DataError, match=r"trackers.json: is damaged .*; remove it"):
            RunLog(tmp_path, 0, 1, ["wandb"])
        with RunLog(tmp_path, 0, 1):
            pass
