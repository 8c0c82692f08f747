"""``kill -9`` at random moments of a conversion and a prediction; tests/engine/test_resume.py kills trainings."""

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskkit import cli
from maskkit.data import shapes
from tests.small import save_small
from tests.test_faults import is_whole

KILLS = 20
IMAGES = 24
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["maskkit.cli", "maskkit.data.convert", "maskkit.api", "maskkit.models.yolact"])


def _work(arguments: list[str]) -> None:
    raise SystemExit(cli.main(arguments))


def run(arguments: list[object], seconds: float | None = None) -> int | None:
    """The exit code of a command in a process of its own, which is killed after so many seconds."""
    process = _server.Process(target=_work, args=([*map(str, arguments)],))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write(tmp_path_factory.mktemp("drawn"), train=IMAGES, val=2, size=(96, 96), objects=(1, 3))


def killed(arguments: list[object], check: Callable[[bool], None]) -> None:
    """Kills `KILLS` processes before they have ended; ``check`` is called after each with whether it had ended."""
    for name in ("warm", "first"):
        begin = time.monotonic()
        assert run([*arguments[:-1], f"{arguments[-1]}_{name}"]) == 0
    whole = time.monotonic() - begin
    rng, count = np.random.default_rng(0), 0
    while count < KILLS:
        code = run(arguments, rng.uniform(0.02, whole))
        assert code in (0, -9)
        count += code == -9
        check(code == 0)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["yolo", "coco", "labelme"])
def test_a_conversion_that_is_killed(form: str, data: Path, tmp_path: Path) -> None:
    """There is the whole of the new data set or nothing; the next try succeeds and leaves nothing else behind."""
    out = tmp_path / "out"

    def check(ended: bool) -> None:
        assert out.exists() or not ended
        if out.exists():
            count = len(list(out.rglob("*.jpg"))) + len(list(out.rglob("*.png")))
            assert count == IMAGES + 2
            assert all(is_whole(p) for p in out.rglob("*") if p.is_file())
            out.rename(tmp_path / f"done{time.monotonic_ns()}")

    killed(["convert", data, "--to", form, out], check)
    assert run(["convert", data, "--to", form, out]) == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_a_prediction_that_is_killed(data: Path, tmp_path: Path) -> None:
    """Files are whole, and ``--resume`` ends with the results of a run that was not killed."""
    model, out, first = save_small(tmp_path / "model.safetensors"), tmp_path / "out", tmp_path / "out_first"
    ends = 0

    def check(ended: bool) -> None:
        nonlocal ends
        for path in out.rglob("*"):
            if path.is_file() and ".tmp" not in path.name and path.suffix != ".jsonl":
                assert is_whole(path), path
        if ended:
            ends += 1
            same_as_first()
            shutil.rmtree(out)

    def same_as_first() -> None:
        for name in ("predictions.json", "images.json"):
            assert json.loads((out / name).read_text()) == json.loads((first / name).read_text()), name
        files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in (out, first)]
        assert files[0] == files[1]

    arguments: list[object] = ["predict", data / "images", "--model", model, "--resume", "--out", out]
    killed(arguments, check)
    assert run(arguments) == 0
    same_as_first()
