"""A method of another package (tests/plugin): found by its entry point, and good for everything that ours are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskkit import cli, zoo
from maskkit.data import shapes
from maskkit.errors import MaskkitError
from tests.models.conformance import Conformance

PLUGIN = Path(__file__).parent / "plugin"


class TestTinyNet(Conformance):
    preset = "tinynet"
    size = (64, 64)
    knobs = {"width": 16}  # noqa: RUF012
    floor = 0.1  # two thousand weights: one object per class, and no context


def maskkit(*args: object) -> None:
    """A command in a process of its own, where the plug-in is on the path and nothing is patched."""
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "maskkit", *map(str, args)]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, encoding="utf-8"
    )
    assert ended.returncode == 0, ended.stderr


def test_it_is_trained_and_predicts_from_the_command_line(tmp_path: Path) -> None:
    drawn = shapes.write(tmp_path / "drawn", train=4, val=2, size=(64, 64), objects=(1, 3))
    run, found = tmp_path / "run", tmp_path / "found"
    maskkit("train", "--model", "tinynet", "--data", drawn, "--out", run, "--train.steps", 5)
    image = next(drawn.rglob("*.png"), None) or next(drawn.rglob("*.jpg"))
    assert cli.main(["predict", str(image), "--model", str(run / "best.safetensors"), "--out", str(found)]) == 0
    assert isinstance(json.loads((found / "predictions.json").read_text(encoding="utf-8")), list)


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["preset"] == "tinynet"]
    assert row["method"] == "TinyNet"
    assert row["supervision"] == ["masks"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package called ``other``, or by another name, whose entry points are the given lines."""

    def install(points: str, name: str = "other") -> None:
        info = tmp_path / name / f"{name}-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[{zoo.ENTRY_POINTS}]\n{points}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path / name)

    return install


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `maskkit models` fails with."""
    assert cli.main(["models"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_name_of_a_method_of_ours_is_refused(package, capsys: pytest.CaptureFixture[str]) -> None:
    package("yolact = tinynet:METHOD")
    with pytest.raises(MaskkitError, match="other adds a method 'yolact', but maskkit already has one"):
        zoo.preset("yolact-resnet50")
    assert "the package other adds a method 'yolact'" in error_of(capsys)


def test_one_name_of_two_packages_is_refused(package) -> None:
    package("another = tinynet:METHOD")
    package("another = tinynet:METHOD", "third")
    with pytest.raises(MaskkitError, match=r"the package (other|third) adds a method 'another', but (third|other) "):
        zoo.list_models()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere:METHOD", "cannot be loaded from nowhere:METHOD: ModuleNotFoundError: No module named 'nowhere'"),
        ("tinynet:NOTHING", "cannot be loaded from tinynet:NOTHING: AttributeError"),
        ("tinynet:TinyNet", "not a maskkit.zoo.card.Method"),
    ],
)
def test_a_broken_package_is_named(package, target: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    package(f"broken = {target}")
    line = error_of(capsys)
    assert "the method 'broken' of the package other" in line
    assert reason in line
    with pytest.raises(MaskkitError, match="package other"):
        zoo.preset("broken-small")
    assert zoo.preset("yolact-resnet50").name == "yolact-resnet50", "the others work"
