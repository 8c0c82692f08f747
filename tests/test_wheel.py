"""The wheel, installed alone in an environment of its own: what a user gets who has nothing but it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskkit

ROOT = Path(__file__).parents[1]
BIN = "Scripts" if os.name == "nt" else "bin"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """One command that sees neither this environment nor the source tree; its output in UTF-8."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"PYTHONIOENCODING": "utf-8", "COLUMNS": "120"}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8"
    )


def done(*command: str | Path, cwd: Path) -> str:
    """What a command that must end well printed."""
    ended = run(*command, cwd=cwd)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    """The installer, beside this Python or on the path."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("uv", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    assert found, "uv is missing; it comes with the dev extra"
    return found


@pytest.fixture(scope="module")
def place(uv: str) -> Iterator[Path]:
    """A folder that goes at once: an environment with torch in it holds gigabytes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        # the build backend has no dependency that could fail to be found, so this fails for want of a registry only
        asked = [uv, "pip", "install", "--dry-run", "--refresh", "--no-deps", "--target", place / "none", "hatchling"]
        answer = run(*asked, "--python", sys.executable, cwd=place)
        if answer.returncode:
            pytest.skip(f"no package registry can be reached: {' '.join(answer.stderr.split())}")
        yield place


@pytest.fixture(scope="module")
def wheel(uv: str, place: Path) -> Path:
    """The package as it is published."""
    done(uv, "build", "--wheel", "--python", sys.executable, "--out-dir", place / "dist", ROOT, cwd=place)
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(uv: str, place: Path, wheel: Path) -> Path:
    """Commands of an environment that holds the wheel and what it asks for."""
    done(uv, "venv", "--python", sys.executable, place / "env", cwd=place)
    folder = place / "env" / BIN
    done(uv, "pip", "install", "--python", folder / "python", wheel, cwd=place)
    return folder


def test_the_wheel_holds_the_package_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"maskkit-{maskkit.__version__}.dist-info/METADATA").decode()
    assert "maskkit/py.typed" in names
    assert {"maskkit/weights/builtin.safetensors", "maskkit/weights/mobilenetv2.safetensors"} <= set(names)
    for photo in (ROOT / "src" / "maskkit" / "demo_images").iterdir():
        assert f"maskkit/demo_images/{photo.name}" in names
    assert {f"maskkit-{maskkit.__version__}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= set(names)
    assert {name.split("/")[0] for name in names} == {"maskkit", f"maskkit-{maskkit.__version__}.dist-info"}
    parts = {part for name in names for part in name.split("/")}
    assert not [part for part in parts if part in ("tests", "__pycache__") or part.startswith("test_")]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Project-URL: Source, " in metadata


def test_the_command_works_with_nothing_but_the_wheel(bin_folder: Path, tmp_path: Path) -> None:
    package = Path(
        done(bin_folder / "python", "-c", "import maskkit; print(maskkit.__path__[0])", cwd=tmp_path).strip()
    )
    assert package.is_relative_to(bin_folder.parent.resolve())

    command = bin_folder / "maskkit"
    assert "maskkit predict" in done(command, "--help", cwd=tmp_path)
    presets = done(command, "models", cwd=tmp_path)
    assert re.search(r"\byolact-resnet50\b", presets)
    assert "built-in" in presets

    done(command, "predict", package / "demo_images" / "astronaut.jpg", "--out", "found", cwd=tmp_path)
    (overlay,) = (tmp_path / "found" / "overlays").iterdir()
    assert overlay.stat().st_size > 0
    rows = json.loads((tmp_path / "found" / "predictions.json").read_text(encoding="utf-8"))
    assert rows, "the built-in model finds the astronaut"
    assert all({"image_id", "category_id", "segmentation", "score"} <= set(row) for row in rows)
