import json

import pytest

from maskkit.engine.log import RunLog, truncate


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_every_tenth_step_the_last_one_and_every_evaluation(tmp_path, capsys):
    with RunLog(tmp_path, 0, 25) as log:
        for step in range(1, 26):
            log.step(step, {"box": 1.0, "mask": 0.5}, rate=0.01, images=4)
        log.evaluation(25, {"AP": 0.25})
    steps = lines(tmp_path)
    assert [row["step"] for row in steps] == [10, 20, 25, 25]
    assert steps[0]["loss"] == 1.5
    assert steps[0]["loss/mask"] == 0.5
    assert steps[0]["lr"] == 0.01
    assert steps[0]["images/s"] > 0
    assert steps[3] == {"step": 25, "val/AP": 0.25}
    said = capsys.readouterr().err
    assert "step 25/25 loss 1.500 (box 1.000, mask 0.500) lr 0.01" in said
    assert "AP 0.2500" in said
    assert "\x1b" not in said, "no terminal, no escape codes"


def test_what_comes_again_after_a_resume_is_not_written_twice(tmp_path):
    for start in (0, 20):
        with RunLog(tmp_path, start, 40) as log:
            for step in range(start + 1, 41):
                log.step(step, {"a": float(start)}, 0.1, 1)
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == [(10, 0.0), (20, 0.0), (30, 20.0), (40, 20.0)]


def test_a_line_that_a_kill_cut_off_is_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 2')
    truncate(path, 20)
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'
    path.write_text('{"step": 10}\n{"step": 20}')
    truncate(path, 20)
    assert path.read_text() == '{"step": 10}\n'


def test_other_processes_say_and_write_nothing(tmp_path, capsys):
    with RunLog(tmp_path, 0, 10, tensorboard=True, main=False) as log:
        log.step(10, {"a": 1.0}, 0.1, 1)
        log.evaluation(10, {"AP": 0.5})
        log.note("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_tensorboard_curves_have_every_step_once_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start in (0, 10):
        with RunLog(tmp_path, start, 30, tensorboard=True) as log:
            for step in range(start + 1, 31):
                log.step(step, {"a": float(start)}, 0.1, 1)
    curves = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [(e.step, e.value) for e in curves.Scalars("loss")] == [(10, 0.0), (20, 10.0), (30, 10.0)]


def test_track_gives_everything_back(tmp_path):
    with RunLog(tmp_path, 0, 1) as log:
        assert list(log.track(iter("abc"), 3, "evaluating")) == ["a", "b", "c"]
