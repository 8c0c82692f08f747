"""What a run's report says about its training."""

import html
import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from maskkit.config import RunConfig
from maskkit.engine.report import commands, curves, samples
from maskkit.engine.train import train


@pytest.fixture
def without_figures() -> None:
    """Here they are drawn."""


def test_a_report_tells_of_its_run(tmp_path: Path, run: RunConfig) -> None:
    out = tmp_path / "run"
    train(run, out)
    page = html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert page.index("<h2>Training</h2>") < page.index("Average precision")
    for text in ("random values", "30 of 4 images", "duration", "torch ", "maskkit predict", "--resume", "threads"):
        assert text in page, text
    assert "images/s while training" in page
    over_time = page[page.index("Validation images over time") : page.index("Commands")]
    assert [f"step {step}" in over_time for step in (8, 16, 24, 30)] == [True] * 4
    assert over_time.count('src="data:image/jpeg;base64,') == 4 * 4
    assert 'alt="Loss and metrics by step" src="data:image/svg+xml;base64,' in page
    written = json.loads((out / "config.json").read_text())
    assert f'"lr": {written["train"]["lr"]}' in page
    assert page.count("<details>") == page.count("</details>") == 2


def test_some_evaluations_show_their_samples(tmp_path: Path) -> None:
    assert samples(tmp_path / "samples") == []
    for step in range(0, 101, 10):
        (tmp_path / "samples" / f"{step:07}").mkdir(parents=True)
        Image.new("RGB", (600, 300)).save(tmp_path / "samples" / f"{step:07}" / "1.jpg")
    found = samples(tmp_path / "samples")
    assert [step for step, _ in found] == [0, 20, 40, 60, 80, 100]
    assert all(len(sources) == 1 for _, sources in found)


def test_commands_can_be_copied(tmp_path: Path, run: RunConfig) -> None:
    given = dict(commands(run, tmp_path / "a b"))
    best = shlex.quote(str(tmp_path / "a b" / "best.safetensors"))
    assert best.startswith("'")
    assert sum(best in command for command in given.values()) == 3


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1}], [{"step": 1, "val/AP": -1.0}], [{"step": 5, "loss": float("nan")}]]
)
def test_curves_of_next_to_nothing(rows: list[dict]) -> None:
    assert isinstance(curves(rows), str)


def test_curves_leave_out_terms_that_are_always_zero() -> None:
    import base64

    rows = [{"step": s, "loss": 2.0, "loss/mask": 2.0, "loss/box": 0.0} for s in (10, 20)]
    drawing = base64.b64decode(curves([*rows, {"step": 20, "val/AP": 0.5}]).partition(",")[2])
    assert drawing.startswith(b"<?xml")
    assert b"<!-- mask -->" in drawing
    assert b"<!-- box -->" not in drawing
