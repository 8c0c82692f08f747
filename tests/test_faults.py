"""Disks that fail at any operation of a command: one clear line, code 1, whole files, and a resume that goes on."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from maskkit import cli
from tests.faults import FAULTS, failing, recorded
from tests.small import save_small
from tests.thorough import THOROUGH

pytestmark = pytest.mark.usefixtures("without_figures")

STEPS = ["--train.steps", "4", "--train.save-every", "2", "--train.batch", "2", "--train.workers", "0"]
FAST = {"train": 31, "predict": 13, "eval --model": 13}
"""In the fast tests one operation in so many fails, in 7 by default; in the slow ones one in 5, all where thorough."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a checkpoint."""
    root = tmp_path_factory.mktemp("world")
    data = root / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    images, rows = [], []
    for i in range(1, 5):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(data / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 32})
        box = {"bbox": [4, 4, 16, 16], "area": 256, "iscrowd": 0}
        rows.append(
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]]} | box
        )
    classes = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    for name in ("train", "val"):
        content = {"images": images, "annotations": rows, "categories": classes}
        (data / f"{name}.json").write_text(json.dumps(content))
    results = [{"image_id": r["image_id"], "category_id": 1, "score": 0.5} | {"bbox": r["bbox"]} for r in rows]
    (root / "results.json").write_text(json.dumps(results))
    save_small(root / "model.safetensors", ("red", "green"))
    return root


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "train": lambda world, out: ["train", "--model", "tinynet", "--data", world / "data", "--out", out, *STEPS],
    "convert": lambda world, out: ["convert", world / "data", out, "--to", "yolo"],
    "predict": lambda world, out: ["predict", world / "data", "--model", world / "model.safetensors", "--out", out],
    "eval": lambda world, out: [
        *("eval", "--predictions", world / "results.json", "--data", world / "data" / "val.json", "--out", out)
    ],
    "eval --model": lambda world, out: [
        *("eval", "--model", world / "model.safetensors", "--data", world / "data", "--out", out)
    ],
}


def command(name: str, world: Path, out: Path, *more: str) -> int:
    return cli.main([*map(str, COMMANDS[name](world, out)), *more])


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines(keepends=True)  # a last line without an end is cut by a resume
        return all(json.loads(line) for line in lines if line.endswith("\n"))
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".safetensors":
        return bool(load_file(path))
    elif path.suffix == ".html":
        return "</html>" in path.read_text()
    return path.suffix != ".tmp" and ".tmp" not in path.name


def faults(name: str, world: Path, root: Path, every: int) -> Iterator[tuple[int, int]]:
    """Place and error of the faults of a command, of which it is recorded what it does."""
    with recorded(root) as done:
        assert command(name, world, root / "recorded") == 0
    _whole[name, world] = contents(root / "recorded")
    shutil.rmtree(root / "recorded")
    both = [(place, number) for place, operation in enumerate(done) for number in FAULTS[operation.kind]]
    yield from both[::every]


def fault_of(
    name: str, world: Path, out: Path, place: int, number: int, capsys: pytest.CaptureFixture[str]
) -> str | None:
    """What is wrong after one fault, None where all is as promised."""
    capsys.readouterr()
    root = out.parent
    with failing(root, place, number) as failed:
        try:
            code = command(name, world, out)
        except (Exception, SystemExit) as error:
            return f"{failed}: {type(error).__name__}: {error}"
    said = capsys.readouterr()
    if not failed:
        return None
    what = f"{failed[0].kind} of {failed[0].path.relative_to(root)} with {number}: code {code}, {said.err[-300:]!r}"
    lines = said.err.splitlines()
    told = f"{said.out} {said.err}"
    if code == 0:  # it did without the file, or asked again
        file = re.sub(r"^\.(.+)\.[0-9a-f]{12}\.tmp$", r"\1", failed[0].path.name)
        named = file in told or ("problem" in told and "0 problems" not in told)
        if not named and file != "run.lock" and contents(out) != _whole.get((name, world), {}):
            return f"silent: {what}"
    elif code != 1 or not lines or "Traceback" in said.err:
        return f"unclear: {what}"
    elif name in ("train", "convert", "eval") and sum(line.startswith("maskkit: ") for line in lines) != 1:
        return f"not one line: {what}"
    elif not any(str(root) in line or str(world) in line for line in lines if line.startswith("maskkit: ")):
        return f"no file named: {what}"
    for path in (p for p in out.parent.rglob("*") if p.is_file()):
        if not is_whole(path) and not path.is_relative_to(world):
            return f"{path.name} is not whole: {what}"
    return None


def run_faults(name: str, world: Path, root: Path, every: int, capsys: pytest.CaptureFixture[str]) -> int:
    """Number of faults that a command was put through; fails with those that did not end as promised."""
    data = root / "world"
    shutil.copytree(world, data)
    wrong, count = [], 0
    for place, number in faults(name, data, root, every):
        out = root / "out"
        found = fault_of(name, data, out, place, number, capsys)
        if found is None and name == "train":
            found = resumed(data, out, capsys)
        if found:
            wrong.append(f"{place}, {number}: {found}")
        shutil.rmtree(out, ignore_errors=True)
        count += 1
    assert not wrong, "\n".join([f"{len(wrong)} of {count}", *wrong[:40]])
    return count


_whole: dict[tuple[str, Path], dict[str, bytes]] = {}


def contents(out: Path) -> dict[str, bytes]:
    """The files of a command by name, without those that have times in them."""
    files = (p for p in out.rglob("*") if p.is_file() and p.suffix in (".json", ".jpg", ".png", ".txt", ".yaml"))
    return {str(p.relative_to(out)): p.read_bytes().replace(str(out).encode(), b"OUT") for p in files}


_weights: dict[Path, dict[str, np.ndarray]] = {}


def resumed(world: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str | None:
    """The same command with ``--resume`` ends as a run without a fault."""
    if world not in _weights:
        assert command("train", world, world.parent / "whole") == 0
        _weights[world] = load_file(world.parent / "whole" / "last.safetensors")
        shutil.rmtree(world.parent / "whole")
    (out / "run.lock").unlink(missing_ok=True)  # that of a process that has ended, as in life
    if (code := command("train", world, out, "--resume")) != 0:
        return f"the resumed run ends with {code}: {capsys.readouterr().err[-300:]!r}"
    state = load_file(out / "last.safetensors")
    for key, value in _weights[world].items():
        if not np.array_equal(state[key], value):
            return f"{key} differs after the resume"
    return None if (out / "report.html").is_file() else "no report after the resume"


@pytest.mark.parametrize("name", COMMANDS)
def test_some_faults(name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_faults(name, world, tmp_path, FAST.get(name, 7), capsys) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_more_faults(name: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = run_faults(name, world, tmp_path, 1 if THOROUGH else 5, capsys)
    with capsys.disabled():
        print(f"\n{name}: {count} faults")
