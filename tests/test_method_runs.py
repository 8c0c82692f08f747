"""Every small model from training to prediction, through the command line: that it runs, not how good it is."""

import json
from pathlib import Path

import pytest

from maskkit import zoo
from maskkit.cli import main
from maskkit.data import shapes

pytestmark = pytest.mark.usefixtures("without_figures")

SMALL = sorted(p.name for p in zoo.presets() if p.name.endswith("-mobilenetv2-256"))
OBJECTS = [name for name in SMALL if zoo.model_class(name).tasks[0] != "semantic"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set with masks."""
    return shapes.write(tmp_path_factory.mktemp("drawn"), train=4, val=2, size=(96, 128))


@pytest.mark.parametrize("name", OBJECTS)
def test_train_measure_predict(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = zoo.model_class(name)
    run, out = tmp_path / "run", tmp_path / "eval"
    labels = "masks" if "masks" in kind.supervision else "boxes"
    options = ["--input.size", "96", "128", "--data.labels", labels, "--train.steps", "1", "--train.batch", "2"]
    options += ["--train.workers", "0"]
    assert main(["train", "--model", name, "--data", str(folder), "--out", str(run), *options]) == 0
    weights = str(run / "best.safetensors")
    assert (run / "report.html").is_file()
    assert main(["eval", "--model", weights, "--data", str(folder), "--out", str(out)]) == 0
    measured = json.loads((out / "metrics.json").read_text())
    assert (measured.get("segm") is not None) == ("instance" in kind.tasks)
    assert "AP" in capsys.readouterr().out
    image = str(next(folder.rglob("*.jpg")))
    assert main(["predict", image, "--model", weights, "--out", str(tmp_path / "found"), "--score", "0"]) == 0
    assert (tmp_path / "found" / "predictions.json").is_file()
