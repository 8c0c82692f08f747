import io
import json

from maskkit.engine.log import RunLog, truncate
from maskkit.terminal import Console


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
    assert {n: v for n, v in steps[3].items() if n != "seconds"} == {"step": 25, "val/AP": 0.25}
    assert [row["seconds"] for row in steps] == sorted(row["seconds"] for row in steps)
    said = capsys.readouterr().err
    assert "step 25/25  loss 1.500" in said
    assert "AP 0.250" in said
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
    with RunLog(tmp_path, 0, 10, ["tensorboard"], main=False) as log:
        log.step(10, {"a": 1.0}, 0.1, 1)
        log.evaluation(10, {"AP": 0.5})
        log.note("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_track_gives_everything_back(tmp_path):
    with RunLog(tmp_path, 0, 1) as log:
        assert list(log.track(iter("abc"), 3, "evaluating")) == ["a", "b", "c"]


def test_a_line_says_where_the_run_is_and_fits(tmp_path, monkeypatch):
    with RunLog(tmp_path, 0, 20000, epoch=500.0) as log:
        log.step(1, {"mask": 2.0, "box": 0.5, "quality": 0.0}, 0.1, 8)
        assert log.line(1).startswith("epoch 1/40  step 1/20000  loss 2.500  ")
        assert "AP" not in log.line(1)
        log.evaluation(500, {"AP": 0.36, "AP50": 0.5})
        log.evaluation(1000, {"AP": 0.353, "AP50": 0.6})
        log.step(12345, {"mask": 2.0}, 0.1, 8)
        line = log.line(12345, 200)
        assert "epoch 25/40  step 12345/20000  loss 2.000  AP 0.353 (best 0.360)  " in line
        assert line.endswith(" left")
        assert "images/s" in line
        for width in range(20, 130):
            assert len(log.line(12345, width)) < width
        assert "AP 0.353" in log.line(12345, 80)


def test_a_continued_run_remembers_its_best_and_its_time(tmp_path):
    with RunLog(tmp_path, 0, 40) as log:
        log._began -= 100
        log.evaluation(10, {"AP": 0.5})
        log.evaluation(20, {"AP": 0.4})
    with RunLog(tmp_path, 20, 40) as log:
        assert "AP 0.400 (best 0.500)" in log.line(21, 200)
        assert 100 <= log.seconds < 110


def test_on_a_terminal_of_80_columns_nothing_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    said = io.StringIO()
    terminal = Console(file=said, force_terminal=True, width=80)
    monkeypatch.setattr("maskkit.engine.log.Console", lambda **_: terminal)
    with RunLog(tmp_path, 0, 20000, epoch=500.0) as log:
        log.evaluation(500, {"mask_AP": 0.36})
        for step in range(12000, 12003):
            log.step(step, {"mask": 12.0}, 0.1, 800000)
        assert list(log.track(iter("abc"), 3, "evaluating")) == ["a", "b", "c"]
        log._bars.refresh()
    text = said.getvalue()
    assert "step 12002/20000" in text
    assert " left" in text
    assert "\u2026" not in text, "rich's sign for what is cut off"
