"""`maskkit-runtime`, the distribution without PyTorch, in an environment of its own: `make runtime-test`."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import maskkit
from maskkit.cli import main
from maskkit.export.check import rows_agree
from tests.test_wheel import BIN, ROOT, done

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is known on Linux alone"),
]

LOADED = """
import json, sys, time
began = time.perf_counter()
import maskkit
segmenter = maskkit.load(sys.argv[1])
segmenter.predict(sys.argv[2])
took = time.perf_counter() - began
peak = next((int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line), 0) / 1024
print(json.dumps({"seconds": round(took, 2), "MiB": round(peak), "torch": "torch" in sys.modules}))
"""


def test_it_predicts_and_evaluates_without_torch(tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    done(uv, "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT / "runtime", cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("maskkit_runtime-*.whl")
    done(uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / BIN / "python"
    done(uv, "pip", "install", "--quiet", "--python", python, wheel, cwd=tmp_path)
    installed = json.loads(done(uv, "pip", "list", "--format", "json", "--python", python, cwd=tmp_path))
    assert not {"torch", "torchvision", "timm"} & {package["name"] for package in installed}
    megabytes = sum(f.stat().st_size for f in (tmp_path / "env").rglob("*") if f.is_file()) / 1e6

    model = tmp_path / "built-in.onnx"
    assert main(["export", "--model", "built-in", "--out", str(model)]) == 0
    image = sorted((ROOT / "src" / "maskkit" / "demo_images").glob("*.jpg"))[0]
    command = tmp_path / "env" / BIN / "maskkit"
    done(command, "predict", image, "--model", model, "--out", tmp_path / "there", "--score", "0.5", cwd=tmp_path)
    assert main(["predict", str(image), "--out", str(tmp_path / "here"), "--score", "0.5"]) == 0
    here, there = (json.loads((tmp_path / side / "predictions.json").read_text()) for side in ("here", "there"))
    assert here
    assert rows_agree(here, there).share == 1

    # what PyTorch found is the truth of a data set: AP 1, since nothing below that score has a surer mask
    built_in = maskkit.load()
    names = [{"id": i, "name": n} for i, n in zip(built_in.categories.ids, built_in.categories.names, strict=True)]
    size = built_in.predict(image).meta.size
    truth = [{**row, "id": i, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]} for i, row in enumerate(here, 1)]
    record = {"id": here[0]["image_id"], "file_name": str(image.name), "height": size[0], "width": size[1]}
    shutil.copy(image, tmp_path / image.name)
    content = {"images": [record], "annotations": truth, "categories": names}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    done(command, "eval", "--data", tmp_path / "annotations.json", "--model", model, "--out", "eval", cwd=tmp_path)
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["segm"]["AP"] == pytest.approx(1)

    first = json.loads(done(python, "-c", LOADED, model, image, cwd=tmp_path))
    ours = json.loads(done(sys.executable, "-c", LOADED, "built-in", image, cwd=tmp_path))
    assert not first["torch"]
    print(f"environment {megabytes:.0f} MB; load and first prediction: {first}; with PyTorch: {ours}")
