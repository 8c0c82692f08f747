"""A semantic model from training to prediction, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.cli import main
from maskkit.data.shapes import shapes_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images beside label images."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count, seed in (("train", 4, 1), ("val", 2, 2)):
        data = shapes_dataset(count, seed, (48, 64)).as_semantic()
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, target, _ = data.load(i)
            assert target.semantic is not None
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / split / f"{i}.png")
            Image.fromarray(target.semantic.numpy()).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(data.categories.names))
    return root


def test_train_evaluate_and_predict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ["--input.size", "48", "64", "--model.widths", "8", "8", "8", "8"]
    options += ["--train.steps", "3", "--train.batch", "2", "--train.workers", "0"]
    arguments = ["train", "--model", "refinenet-mobilenetv2-320", "--data", str(folder), "--out", str(run), *options]
    assert main(arguments) == 0
    assert "mIoU" in capsys.readouterr().out
    for name in ("best.safetensors", "last.safetensors", "report.html", "predictions.json"):
        assert (run / name).is_file(), name
    assert list((run / "samples").rglob("*.jpg"))

    weights = str(run / "best.safetensors")
    out = tmp_path / "eval"
    assert main(["eval", "--model", weights, "--data", str(folder), "--out", str(out)]) == 0
    measured = json.loads((out / "metrics.json").read_text())
    best = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert measured["semantic"]["mIoU"] == pytest.approx(best["val/mIoU"], abs=1e-3)  # batch norm is folded now

    again = tmp_path / "again"
    rows = ["eval", "--task", "semantic", "--predictions", str(out / "predictions.json"), "--data", str(folder)]
    assert main([*rows, "--out", str(again)]) == 0
    assert json.loads((again / "metrics.json").read_text()) == measured

    tta = ["--tta.scales", "1", "1.5", "--tta.flip", "--tta.window", "32", "48"]
    assert main(["eval", "--model", weights, "--data", str(folder), "--out", str(tmp_path / "tta"), *tta]) == 0

    found = tmp_path / "found"
    assert main(["predict", str(folder / "images" / "val"), "--model", weights, "--out", str(found)]) == 0
    with Image.open(found / "labels" / "0.png") as image:
        assert image.size == (64, 48)
        assert np.asarray(image).max() < 6
    assert len(list((found / "overlays").iterdir())) == 2


def test_check_finds_a_value_that_is_no_class(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    values = np.full((48, 64), 77, np.uint8)
    Image.fromarray(values).save(broken / "masks" / "val" / "1.png")
    assert main(["check", str(broken)]) == 1
    assert "77 is no class" in capsys.readouterr().out.replace("\n", " ")


def test_tta_is_refused_for_a_model_of_objects(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--tta.flip"]) == 1
    assert "semantic" in capsys.readouterr().err


def test_a_published_checkpoint_becomes_a_model_with_class_names(tmp_path: Path) -> None:
    """TensorFlow's DeepLab, whose 21 classes are VOC's and the background."""
    import torch
    from safetensors.torch import save_file

    from maskkit.api import create_model, load

    ours = create_model("deeplabv3-mobilenetv2-voc").state_dict()
    official = {n.removeprefix("backbone.body."): t for n, t in ours.items() if n.startswith("backbone.body.")}
    units = (("aspp0", "aspp.branches.0"), ("image_pooling", "aspp.pool"), ("concat_projection", "aspp.project"))
    for theirs, name in units:
        official |= {f"{theirs}.weight": ours[f"{name}.0.weight"], f"{theirs}.bias": torch.zeros(256)}
    official |= {"logits.weight": ours["score.weight"], "logits.bias": ours["score.bias"]}
    save_file({n: t.contiguous() for n, t in official.items()}, tmp_path / "tf.safetensors")
    out = tmp_path / "ours.safetensors"
    preset = ["--model", "deeplabv3-mobilenetv2-voc"]
    assert main(["import", str(tmp_path / "tf.safetensors"), *preset, "--out", str(out)]) == 0
    segmenter = load(out)
    assert segmenter.categories.names[:3] == ("background", "aeroplane", "bicycle")
    prediction = segmenter.predict(np.zeros((60, 80, 3), np.uint8))
    assert prediction.semantic is not None
    assert prediction.semantic.shape == (60, 80)
