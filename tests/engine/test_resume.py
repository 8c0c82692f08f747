"""A run that is killed by SIGKILL, at whatever moment, ends with the very files of a run that was left alone."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskkit import zoo
from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.header import read_header
from maskkit.config import DataConfig, RunConfig
from maskkit.engine.optim import learning_rate
from maskkit.engine.train import train
from maskkit.errors import MaskkitError
from tests.engine import runner


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Finishes a run of a configuration once and keeps it for the tests of this file."""
    kept = {}

    def run(config):
        if config not in kept:
            kept[config] = tmp_path_factory.mktemp("undisturbed") / "run"
            runner.run_to_end(config, kept[config])
        return kept[config]

    return run


def assert_same_run(ours, theirs):
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert [n for n in a if not torch.equal(a[n], b[n])] == []
        assert read_header(ours / name)["info"] == read_header(theirs / name)["info"]
    for name in ("predictions.json", "config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert metrics(ours) == metrics(theirs)
    assert (ours / "report.html").exists()


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("images/s", "seconds")} for row in rows]


def test_killed_at_random_moments(tmp_path, run, undisturbed):
    out = tmp_path / "run"
    rng = np.random.default_rng(0)
    kills = 0
    for workers in (0, 1, 0, 0):  # loader processes change nothing
        config = replace(run, train=replace(run.train, workers=workers))
        moment = runner.into(out, rng.uniform(0.1, 0.5))
        kills += runner.kill_when(runner.start(config, out, resume=True), moment)
    assert kills >= 1
    runner.run_to_end(run, out, resume=True)
    assert_same_run(out, undisturbed(run))


def test_killed_while_a_checkpoint_is_written(tmp_path, run, undisturbed):
    config = replace(run, model=replace(run.model, width=96), train=replace(run.train, save_every=1, eval_every=0.0))
    out = tmp_path / "run"

    def halves() -> set[Path]:
        return set(out.glob(".last.safetensors.*.tmp"))

    caught = 0
    while caught < 3:
        before = halves()
        if not runner.kill_when(runner.start(config, out, resume=True), lambda b=before: bool(halves() - b)):
            break
        if halves() - before:
            caught += 1
            if (out / "last.safetensors").exists():
                load_model(out / "last.safetensors")
    runner.run_to_end(config, out, resume=True)
    assert caught >= 2, "no kill met a half-written checkpoint"
    assert_same_run(out, undisturbed(config))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "samples/0000016"])
def test_killed_when_a_file_appears(tmp_path, run, undisturbed, name):
    out = tmp_path / "run"
    runner.kill_when(runner.start(run, out), (out / name).exists)
    assert not (out / "report.html").exists(), "killed too late to be a test"
    runner.run_to_end(run, out, resume=True)
    assert_same_run(out, undisturbed(run))


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "predictions.json", "report.html"])
def test_killed_before_a_file_gets_its_name(tmp_path, run, undisturbed, name):
    out = tmp_path / "run"
    process = runner.start(run, out, dies_before=name)
    process.join()
    assert process.exitcode == -9
    assert list(out.glob(f".{name}.*.tmp"))
    assert not (out / name).exists()
    runner.run_to_end(run, out, resume=True)
    assert_same_run(out, undisturbed(run))


@pytest.mark.slow
def test_killed_at_every_renaming(tmp_path, run, undisturbed):
    config = replace(run, train=replace(run.train, steps=4, eval_every=0.0, save_every=2))
    kills = 0
    while True:
        out = tmp_path / str(kills)
        process = runner.start(config, out, dies_at=kills + 1)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        kills += 1
        runner.run_to_end(config, out, resume=True)
        assert_same_run(out, undisturbed(config))
        assert not list(out.rglob(".*")), "nothing is left behind"
    assert kills > 12


def test_a_real_method_killed_in_the_middle(tmp_path, drawn, undisturbed):
    preset = zoo.preset("yolact-mobilenetv2-256")
    config = RunConfig(
        preset.name,
        preset.model,
        replace(preset.input, size=(96, 96)),
        preset.augment,
        replace(preset.train, steps=9, batch=2, workers=0, save_every=2, eval_every=0.0),
        DataConfig(str(drawn)),
    )
    out = tmp_path / "run"

    def in_the_middle():  # after step 2, 4 or 6: on a busy machine one of them may pass unseen
        last = out / "last.safetensors"
        return last.exists() and read_header(last)["info"]["step"] in (2, 4, 6)

    assert runner.kill_when(runner.start(config, out), in_the_middle)
    runner.run_to_end(config, out, resume=True)
    assert_same_run(out, undisturbed(config))


def test_a_finished_run_stays_as_it_is(run, undisturbed):
    out = undisturbed(run)
    before = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    result = train(run, out, resume=True)
    assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == before
    assert result.metrics == read_header(result.best)["info"]["metrics"]


def test_a_folder_with_a_run_is_not_overwritten(run, undisturbed):
    with pytest.raises(MaskkitError, match="already holds a run; continue it with --resume"):
        train(run, undisturbed(run))


def test_a_run_does_not_go_on_with_another_configuration(run, undisturbed):
    other = replace(run, train=replace(run.train, lr=0.5, seed=3))
    with pytest.raises(MaskkitError, match=r"train.lr was 0.02 and is 0.5; train.seed was 0 and is 3"):
        train(other, undisturbed(run), resume=True)


def test_resume_without_a_checkpoint_begins_and_says_so(tmp_path, run, undisturbed, capsys):
    train(run, tmp_path / "run", resume=True)
    assert "holds no checkpoint to resume from: the run starts at step 1" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", undisturbed(run))


def test_a_run_that_has_ended_is_made_longer(tmp_path, run, monkeypatch, capsys):
    """From its last step the learning rate is that of a run of the new length; a stop in between changes nothing."""
    ended, longer = (replace(run, train=replace(run.train, steps=s, eval_every=1.0)) for s in (8, 14))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("maskkit.engine.train.write_report", lambda *_: None)
        train(ended, whole)
        train(ended, stopped)
        patch.setattr("maskkit.engine.run.Run.save_due", lambda run, done: done == 10 and signal.raise_signal(15))
        with pytest.raises(KeyboardInterrupt):
            train(longer, stopped, resume=True)
    assert "had ended after step 8 and goes on to step 14" in capsys.readouterr().err
    assert read_header(stopped / "last.safetensors")["info"]["step"] == 10
    train(longer, stopped, resume=True)
    train(longer, whole, resume=True)
    assert_same_run(stopped, whole)
    assert [row["step"] for row in metrics(whole) if "val/AP" in row] == [4, 8, 12, 14]
    rates = {row["step"]: row["lr"] for row in metrics(whole) if "lr" in row}
    assert rates == {step: learning_rate(step - 1, total, run.train) for step, total in ((8, 8), (10, 14), (14, 14))}
