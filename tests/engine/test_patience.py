"""Trainings that end early, after some evaluations without a better result."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskkit.checkpoints.header import read_header
from maskkit.config import RunConfig
from maskkit.engine import validate
from maskkit.engine.train import train
from maskkit.engine.validate import since_best
from maskkit.errors import MaskkitError

VALUES = {2: 0.2, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.3, 12: 0.9}
"""What is measured, by step: after step 4 nothing is better until step 12."""


@pytest.fixture
def patient(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run of 12 steps with an evaluation after every second one, whose results are known."""
    evaluate = validate.evaluate

    def known(run, model, info, *rest):
        monkeypatch.setattr(validate, "_decisive", lambda metrics: VALUES[info["step"]])
        return evaluate(run, model, info, *rest)

    monkeypatch.setattr("maskkit.engine.train.evaluate", known)
    monkeypatch.setattr("maskkit.engine.train.write_report", lambda *_: None)
    monkeypatch.setattr("maskkit.engine.train.keep_best", lambda *_: None)
    return replace(run, train=replace(run.train, steps=12, eval_every=0.5, patience=3))


def test_how_many_evaluations_followed_the_best_one() -> None:
    assert since_best({}) == (0, 0)
    assert since_best({"2": 0.0}) == (0, 2)
    assert since_best({"10": 0.5, "2": 0.1, "4": 0.5, "6": 0.2}) == (2, 4), "an equal one is not better"


def test_a_run_ends_early_and_stays_ended(
    patient: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(patient, out).steps == 10
    line = "ends early, after step 10 of 12: in 3 evaluations none was better than that of step 4; --train.patience 3"
    assert line in capsys.readouterr().err
    info = read_header(out / "last.safetensors")["info"]
    assert (info["step"], info["evaluated"], info["best"]) == (10, 10, 0.5)
    before = (out / "last.safetensors").read_bytes()
    assert train(patient, out, resume=True).steps == 10
    assert line in capsys.readouterr().err
    assert (out / "last.safetensors").read_bytes() == before
    longer = replace(patient, train=replace(patient.train, patience=4))
    assert train(longer, out, resume=True).steps == 12, "a better result comes in time"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val/AP" in row] == [2, 4, 6, 8, 10, 12]


def test_a_run_that_is_stopped_counts_on(patient: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after every step and in every evaluation, it ends after the same step with the same bits."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(patient, whole)
    save = validate.save_model
    stops = iter(range(100))

    def stopped(*args):
        save(*args)
        if next(stops) % 2 == 0:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(validate, "save_model", stopped)
    for _ in range(20):
        try:
            train(patient, out, resume=True)
            break
        except KeyboardInterrupt:
            pass
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_file(out / name), load_file(whole / name)
        assert all(torch.equal(a[n], b[n]) for n in b), name
    assert read_header(out / "last.safetensors")["info"] == read_header(whole / "last.safetensors")["info"]
    assert next(stops) >= 3


def test_patience_without_evaluations_is_refused(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(MaskkitError, match=r"--train.patience 2 waits for evaluations.*set --train.eval-every 1"):
        train(replace(run, train=replace(run.train, patience=2, eval_every=0.0)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_state_of_a_run_without_patience_has_no_more_in_it(run: RunConfig, tmp_path: Path) -> None:
    train(replace(run, train=replace(run.train, steps=2)), tmp_path / "run")
    assert "evaluations" not in read_header(tmp_path / "run" / "last.safetensors")["info"]
