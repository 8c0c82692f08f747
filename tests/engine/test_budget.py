"""Trainings of so many minutes: their steps are fitted to the time once, and then fixed."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from maskkit.checkpoints.header import read_header
from maskkit.config import RunConfig
from maskkit.engine import budget
from maskkit.engine import train as train_module
from maskkit.engine.budget import MARGIN, steps_in, stored_steps, undone
from maskkit.engine.optim import learning_rate
from maskkit.engine.train import train
from maskkit.errors import MaskkitError


@given(st.floats(0, 10_000), st.floats(0.001, 10), st.floats(0, 100), st.sampled_from([0.0, 0.5, 7.5, 400.0]))
def test_steps_and_their_evaluations_fit(seconds: float, step: float, evaluation: float, period: float) -> None:
    total = steps_in(seconds, step, evaluation, period)
    evaluations = 1 + (total / period if period and total > period else 0)
    assert total == 1 or total * step + evaluations * evaluation <= seconds * (1 - MARGIN) + 1e-6 + evaluation
    if not evaluation and seconds > 2 * step:
        assert (total + 1) * step > seconds * (1 - MARGIN) - 1e-6, "and no time is left over"


def timed(run: RunConfig, **settings: object) -> RunConfig:
    changes = {"steps": None, "minutes": 1.0, "eval_every": 0.0, **settings}
    return replace(run, train=replace(run.train, **changes))


def same(a: Path, b: Path) -> None:
    one, other = load_file(a / "last.safetensors"), load_file(b / "last.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_run_of_minutes_is_a_run_of_the_steps_that_fit(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, also where it is stopped and continued while the machine is faster."""
    monkeypatch.setattr(budget, "MOST", 4)
    monkeypatch.setattr(train_module, "write_report", lambda *_: None)
    asked = []
    monkeypatch.setattr(budget, "steps_in", lambda *given: asked.append(given) or 7)
    minutes = timed(run)
    assert train(minutes, tmp_path / "run").steps == 7
    assert "7 steps, 1.8 epochs, will fit" in capsys.readouterr().err
    (seconds, step, evaluation, period) = asked[0]
    assert 50 < seconds < 60
    assert step > 0
    assert evaluation > 0
    assert period == 0
    plain = replace(run, train=replace(run.train, steps=7, eval_every=0.0))
    train(plain, tmp_path / "plain")
    same(tmp_path / "run", tmp_path / "plain")
    assert read_header(tmp_path / "run" / "last.safetensors")["info"]["total"] == 7
    assert "total" not in read_header(tmp_path / "plain" / "last.safetensors")["info"]

    measure = train_module.measure

    def stopped(run, learner, *rest):
        if learner.info["step"] == 3:
            signal.raise_signal(signal.SIGTERM)
        return measure(run, learner, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(minutes, tmp_path / "stopped")
    monkeypatch.setattr(budget, "steps_in", lambda *given: 99)
    assert train(minutes, tmp_path / "stopped", resume=True).steps == 7
    same(tmp_path / "stopped", tmp_path / "plain")
    rows = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert next(row["lr"] for row in rows if "lr" in row) == learning_rate(6, 7, run.train)


def test_the_timed_steps_end_with_the_time(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take_step = train_module.take_step
    monkeypatch.setattr(train_module, "write_report", lambda *_: None)
    monkeypatch.setattr(train_module, "take_step", lambda *given: taken.append(given[-1]) or take_step(*given))
    monkeypatch.setattr(budget, "SHARE", 0.0)
    monkeypatch.setattr(budget, "steps_in", lambda *given: 1)
    train(timed(run), tmp_path / "run")
    assert taken == [0, 1, 2, 3, 4, 0], "two that warm up, three that count, and the run"


def test_two_lengths_are_refused(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(MaskkitError, match=r"--train.minutes and --train.steps both say how long the run is"):
        train(timed(run, steps=4), tmp_path / "run")


def test_a_state_without_its_steps_is_refused() -> None:
    assert stored_steps({"total": 4}, "last") == 4
    for info in ({}, {"total": 0}, {"total": "4"}, None):
        with pytest.raises(MaskkitError, match="last: does not say how many steps"):
            stored_steps(info, "last")


def test_weights_and_buffers_come_back() -> None:
    model = torch.nn.BatchNorm2d(2)
    apart = torch.ones(2)
    model.register_buffer("apart", apart, persistent=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with undone(model, None), torch.no_grad():
        model(torch.rand(2, 2, 3, 3))
        model.weight.fill_(4)
        apart.fill_(4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert apart.tolist() == [1, 1]
