"""A signal ends a training after its step, the state is saved, and the run goes on to the bits of one left alone."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskkit.checkpoints.checkpoint import load_model, save_model
from maskkit.checkpoints.header import read_header
from maskkit.config import RunConfig
from maskkit.engine import run as run_module
from maskkit.engine import train as train_module
from maskkit.engine import validate
from maskkit.engine.interrupts import Interrupts, Stopped
from maskkit.engine.log import truncate
from maskkit.engine.train import train
from maskkit.errors import Interrupted, MaskkitError


@pytest.fixture(autouse=True)
def as_at_a_terminal() -> Iterator[None]:
    """Python's own handlers, also where the suite runs in the background of a shell or under nohup, which ignore
    SIGINT and SIGHUP."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the training."""
    monkeypatch.setattr(train_module, "write_report", lambda *_: None)


@pytest.fixture
def short(run: RunConfig) -> RunConfig:
    """Evaluations after steps 4, 8 and 10; regular saves never."""
    return replace(run, train=replace(run.train, steps=10, eval_every=1.0, save_every=1000))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def undisturbed(short: RunConfig, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "run" not in whole:
        whole["run"] = train(short, tmp_path_factory.mktemp("undisturbed") / "run").out
    return whole["run"]


def at_call(number: int, work: Callable[..., Any], *signals: int) -> Callable[..., Any]:
    """``work``, which gets signals in the middle of one of its calls."""
    calls = iter(range(1, 1000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            for each in signals:
                signal.raise_signal(each)
        return work(*args, **kwargs)

    return call


def log_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("images/s", "seconds")} for row in rows]


def assert_same_run(ours: Path, theirs: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert [n for n in a if not torch.equal(a[n], b[n])] == []
        assert read_header(ours / name)["info"] == read_header(theirs / name)["info"]
    assert log_of(ours) == log_of(theirs)
    assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}


@pytest.mark.parametrize(
    ("place", "call", "signals", "saved", "code"),
    [
        ((train_module, "update_average"), 6, [signal.SIGINT], 6, signal.SIGINT),
        ((train_module, "update_average"), 3, [signal.SIGTERM], 3, signal.SIGTERM),
        ((train_module, "update_average"), 4, [signal.SIGINT], 4, signal.SIGINT),
        ((train_module, "update_average"), 6, [signal.SIGINT, signal.SIGINT], 4, signal.SIGINT),
        ((train_module, "update_average"), 7, [signal.SIGHUP], 7, signal.SIGHUP),
        ((validate, "detect"), 2, [signal.SIGINT], 8, signal.SIGINT),
        ((validate, "save_model"), 1, [signal.SIGTERM], 4, signal.SIGTERM),
        ((validate, "write_json"), 1, [signal.SIGINT], 4, signal.SIGINT),
        (("maskkit.data.loader", "collate"), 6, [signal.SIGINT], 5, signal.SIGINT),
    ],
    ids=["step", "term", "before-an-evaluation", "twice", "hangup", "evaluation", "best", "predictions", "loader"],
)
def test_a_signal_saves_and_the_run_goes_on(
    tmp_path: Path,
    short: RunConfig,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    call: int,
    signals: list[int],
    saved: int,
    code: int,
) -> None:
    module = sys.modules[place[0]] if isinstance(place[0], str) else place[0]
    out, handlers = tmp_path / "run", (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with monkeypatch.context() as patch:
        patch.setattr(module, place[1], at_call(call, getattr(module, place[1]), *signals))
        with pytest.raises(Interrupted) as caught:
            train(short, out)
    assert caught.value.number == code
    wanted = (
        f"interrupted; {out / 'last.safetensors'} holds step {saved} of 10; go on with the same command and --resume"
    )
    assert str(caught.value) == wanted
    assert read_header(out / "last.safetensors")["info"]["step"] == saved
    assert not (out / "run.lock").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    train(short, out, resume=True)
    assert_same_run(out, undisturbed)


def test_a_signal_before_the_first_step(tmp_path: Path, short: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "make_optimizer", at_call(1, train_module.make_optimizer, signal.SIGINT))
    with pytest.raises(Interrupted, match="interrupted before the first step"):
        train(short, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was written"


def test_the_state_is_saved_about_once_a_minute(
    tmp_path: Path, short: RunConfig, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = train_module.save_state

    def noted(*args: Any) -> None:
        saved.append(args[-1]["step"])
        save(*args)

    monkeypatch.setattr(train_module, "save_state", noted)
    monkeypatch.setattr(run_module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(run_module, "_SAVE_SHARE", float("inf"))
    train(short, tmp_path / "run")
    assert saved == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 10], "before every evaluation too"
    assert_same_run(tmp_path / "run", undisturbed)


def test_better_weights_in_the_folder_stay(tmp_path: Path, short: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "update_average", at_call(6, train_module.update_average, signal.SIGINT))
        with pytest.raises(Interrupted):
            train(short, out)
    known = load_model(out / "best.safetensors")
    info = {"step": 5, "metrics": {"AP": 0.99}}  # newer than the state, as another machine may have computed it
    save_model(out / "best.safetensors", known.model, known.config, known.categories, info)
    before = (out / "best.safetensors").read_bytes()
    assert train(short, out, resume=True).metrics == {"AP": 0.99}
    assert (out / "best.safetensors").read_bytes() == before


def test_weights_without_a_state_are_not_overwritten(tmp_path: Path, short: RunConfig, undisturbed: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "best.safetensors").write_bytes((undisturbed / "best.safetensors").read_bytes())
    with pytest.raises(MaskkitError, match="already holds a run"):
        train(short, out)
    with pytest.raises(MaskkitError, match=r"no last.safetensors to resume from; choose another folder"):
        train(short, out, resume=True)


def test_lost_best_weights_are_made_again(tmp_path: Path, short: RunConfig, undisturbed: Path) -> None:
    out = tmp_path / "run"
    train(short, out)
    (out / "best.safetensors").unlink()
    train(short, out, resume=True)
    assert read_header(out / "best.safetensors")["info"]["step"] == 10


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert not interrupts.pending


def test_in_another_thread_nothing_changes() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_several_processes_stop_after_the_same_step() -> None:
    with Interrupts(alone=False) as first, Interrupts(alone=False) as second:
        second._handle(signal.SIGINT, None)
        assert not first.pending
        for process in (first, second):
            process.begin_step()
            process.agree(first.pending or second.pending)
            with pytest.raises(Stopped):
                process.end_step()


def test_evaluations_that_are_repeated_leave_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 4, "loss": 1}, {"step": 4, "val/AP": 0}, {"step": 8, "loss": 1}, {"step": 8, "val/AP": 0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 9, "loss": 1}]) + '{"step": 10, "lo')
    truncate(path, 8, evaluated=4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:3]


MODULE = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass\n"


@pytest.mark.parametrize("wrapped", [False, True])
def test_ctrl_c_while_modules_are_loaded_is_one_line(tmp_path: Path, wrapped: bool) -> None:
    text = (
        MODULE
        if not wrapped
        else f"try:\n    exec({MODULE!r})\nexcept BaseException as e:\n    raise ImportError from e\n"
    )
    (tmp_path / "tyro.py").write_text(text)  # in place of the library that the command line loads first
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import runpy; "
    code += "runpy.run_module('maskkit', run_name='__main__', alter_sys=True)"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "maskkit: interrupted\n")
