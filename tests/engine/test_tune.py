"""A search does each of its trials once, whatever happens to it, and its best settings train again."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskkit.checkpoints.checkpoint import run_config
from maskkit.config import RunConfig, to_dict
from maskkit.engine import tune as engine
from maskkit.engine.tune import SPACE, Span, applied, tune
from maskkit.errors import MaskkitError, NotFinite
from tests.engine import runner

optuna = pytest.importorskip("optuna")


def study(out: Path) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))
    return optuna.load_study(study_name="maskkit", storage=optuna.storages.JournalStorage(backend))


def states(out: Path) -> list[str]:
    return [trial.state.name for trial in study(out).trials]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands in for trainings, which evaluate at steps 2, 4, 6, 8 and get better with a smaller learning rate; the
    learning rates that were tried."""
    tried: list[float] = []

    def fake(config: RunConfig, out: Path, resume: bool, weights: object, device: object, watch: Any) -> Any:
        rate = config.train.lr
        if not resume:
            tried.append(rate)
            out.mkdir(parents=True)
            (out / "last.safetensors").touch()
        if rate > 0.06:
            raise NotFinite("step 1: the loss is not finite")
        values = {step: step / 8 * (1 - rate) for step in (2, 4, 6, 8)}
        for step, value in values.items():
            if watch(step, 8, value):
                break
        return SimpleNamespace(metrics={"AP": value})

    monkeypatch.setattr(engine, "train", fake)
    return tried


def test_the_best_settings_are_written_and_train_again(
    tmp_path: Path, run: RunConfig, trainings: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    found = tune(run, tmp_path / "tune", 12, ["train.lr", "augment.expand"], say=lines.append)
    assert trainings[0] == run.train.lr, "the first trial has the settings as they are given"
    assert len(trainings) == len(set(trainings)) == 12
    assert all(0.25 * run.train.lr <= rate <= 4 * run.train.lr for rate in trainings)
    ended = study(tmp_path / "tune").trials
    assert {trial.state.name for trial in ended} == {"COMPLETE", "PRUNED", "FAIL"}
    assert all(t.last_step >= 2 for t in ended if t.state.name == "PRUNED")
    best = min(rate for rate, trial in zip(trainings, ended, strict=True) if trial.state.name == "COMPLETE")
    assert found.config.train.lr == best
    assert found.value == pytest.approx(1 - best)
    assert found.run.name == f"{found.trial:02}"
    assert run_config(json.loads(found.file.read_text())) == found.config
    assert found.config.train.weight_decay == run.train.weight_decay, "what is not searched stays"
    assert len(lines) == 12
    assert all(f"trial {i} of 12: " in line for i, line in enumerate(lines, 1))

    from maskkit.cli.train import parse

    options = parse(["--config", str(found.file), "--train.steps", "7"])
    assert (options.preset, options.model, options.data) == ("tinynet", run.model, run.data)
    assert options.train == replace(found.config.train, steps=7)
    assert options.augment == found.config.augment
    with pytest.raises(MaskkitError, match=r"best.json: holds settings of tinynet; leave --model yolact-\w+-256 out"):
        parse(["--config", str(found.file), "--model", "yolact-mobilenetv2-256"])
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(MaskkitError, match=r"list.json: holds no settings of a training"):
        parse(["--config", str(tmp_path / "list.json")])


def test_a_search_goes_on_and_is_made_longer(tmp_path: Path, run: RunConfig, trainings: list[float]) -> None:
    space, out = ["train.lr"], tmp_path / "tune"
    tune(run, out, 5, space)
    with pytest.raises(MaskkitError, match=r"already holds a search; continue it with --resume"):
        tune(run, out, 5, space)
    tune(run, out, 5, space, resume=True)
    assert len(trainings) == 5
    (out / "best.json").unlink()
    with open(out / "journal.log", "a") as journal:
        journal.write('{"op_code": 5, "wor')  # as a full disk leaves it
    (out / "journal.log.lock").symlink_to(out / "journal.log")  # as kill -9 leaves it
    tune(run, out, 7, space, resume=True)
    assert len(trainings) == 7
    assert (out / "best.json").exists()
    whole: list[float] = list(trainings)
    trainings.clear()
    tune(run, tmp_path / "whole", 7, space)
    assert trainings == whole, "what is drawn depends on the seed and the earlier trials alone"
    other = replace(run, train=replace(run.train, lr=0.5))
    with pytest.raises(MaskkitError, match=r"cannot continue this run with other settings: train.lr was 0.02 and is"):
        tune(other, out, 7, space, resume=True)


def test_settings_that_cannot_be_searched(tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MaskkitError, match=r"--space train.seed: is not searched; choose among train.lr, train.weight"):
        tune(run, tmp_path / "tune", space=["train.seed"])
    nothing = replace(run, data=replace(run.data, labels="boxes"))
    with pytest.raises(MaskkitError, match=r"nothing is left to search"):
        tune(nothing, tmp_path / "tune", space=["augment.copy_paste"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MaskkitError, match=r"a search runs in one process"):
        tune(run, tmp_path / "tune")
    assert not (tmp_path / "tune").exists()


def test_a_search_without_a_result_says_so(tmp_path: Path, run: RunConfig, trainings: list[float]) -> None:
    diverging = replace(run, train=replace(run.train, lr=1.0))
    with pytest.raises(MaskkitError, match=r"none of 3 trials has a result"):
        tune(diverging, tmp_path / "tune", 3, ["train.lr"])
    assert states(tmp_path / "tune") == ["FAIL"] * 3


def test_every_part_of_the_space_is_a_setting_and_keeps_the_given_value(run: RunConfig) -> None:
    for name, among in SPACE.items():
        drawn = engine._distribution(name, run)
        given = 1.0 if isinstance(among, Span) and among.times else engine._value(run, name)
        assert drawn._contains(drawn.to_internal_repr(given)), name
        assert applied(run, {name: given}) == run, name


def test_values_that_are_given_or_listed_are_not_rounded(run: RunConfig) -> None:
    exact = replace(run, train=replace(run.train, lr=0.0123456, ema=0.9998))
    assert applied(exact, {"train.lr": 1.0, "train.ema": 0.9998}) == exact
    drawn = applied(exact, {"train.lr": 2.0, "train.ema": 0.998, "augment.expand": 1.23456})
    assert (drawn.train.lr, drawn.train.ema, drawn.augment.expand) == (0.0247, 0.998, 1.23)


def search(config: dict[str, Any], out: Path, trials: int) -> None:
    import sys

    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, runner.PLUGIN)
    from maskkit.engine import train

    train.write_report = lambda *_: None
    tune(run_config(config), out, trials, ["train.lr", "augment.expand"], resume=True)


def test_a_search_that_is_killed_twice_has_every_trial_once(tmp_path: Path, run: RunConfig) -> None:
    config = replace(run, train=replace(run.train, steps=8, eval_every=1.0, save_every=1))
    trials, out, whole = 3, tmp_path / "tune", tmp_path / "whole"
    for file in ("trials/02/samples/0000004", "trials/03/last.safetensors"):
        process = runner.fork(search, to_dict(config), out, trials)
        assert runner.kill_when(process, (out / file).exists)
        assert states(out)[-1] == "RUNNING"
    for folder in (out, whole):
        process = runner.fork(search, to_dict(config), folder, trials)
        process.join()
        assert process.exitcode == 0
    ours, theirs = ([(t.number, t.state, t.params, t.value) for t in study(f).trials] for f in (out, whole))
    assert ours == theirs
    assert len(ours) == trials
    assert sorted(p.name for p in (out / "trials").iterdir()) == ["01", "02", "03"]
    assert (out / "best.json").read_bytes() == (whole / "best.json").read_bytes()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskkit.engine import train as training

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(training, "take_step", lambda *_: os.kill(os.getpid(), signal.SIGINT) or {"mask": 1.0})
    try:
        with pytest.raises(KeyboardInterrupt, match=r"01/last.safetensors holds step 1 of 8; go on with .* --resume"):
            tune(replace(run, train=replace(run.train, steps=8)), tmp_path / "tune", 2, ["train.lr"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert states(tmp_path / "tune") == ["RUNNING"]
    assert not (tmp_path / "tune" / "run.lock").exists()
