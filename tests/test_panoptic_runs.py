"""A panoptic model from training to prediction, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.cli import main
from maskkit.data import open_dataset
from maskkit.eval.panoptic.files import read_results
from tests.data.written import write_panoptic

COLOURS = {1: (200, 60, 40), 2: (200, 60, 40), 3: (60, 90, 220), 4: (40, 180, 60)}
"""Of a cat, another cat, the sky and the grass."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of one or two cats between sky and grass; the tiny panoptic method is registered."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, count in (("train", 6), ("val", 2)):
        images = {}
        for number in range(1, count + 1):
            ids = np.full((64, 64), 3)
            ids[int(rng.integers(24, 40)) :] = 4
            for cat in range(1, int(rng.integers(2, 4))):
                y, x = rng.integers(4, 36), rng.integers(0, 12) + 32 * (cat - 1)
                ids[y : y + 20, x : x + 18] = cat
            classes = {1: 3, 2: 3, 3: 187, 4: 193}
            images[number] = ids, [{"id": i, "category_id": classes[i]} for i in np.unique(ids).tolist()]
        file = write_panoptic(root / split / "panoptic.json", images)
        for number, (ids, _) in images.items():
            pixels = np.array([(0, 0, 0), *COLOURS.values()], np.uint8)[ids]
            Image.fromarray(pixels).save(file.parent / "images" / f"{number}.png")
    return root


def test_train_evaluate_and_predict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, val = tmp_path / "run", str(folder / "val" / "panoptic.json")
    arguments = ["train", "--model", "tinysegments", "--data", str(folder / "train" / "panoptic.json")]
    arguments += ["--data.val", val, "--out", str(run), "--train.steps", "60", "--train.eval-every", "0"]
    assert main(arguments) == 0
    assert "PQ" in capsys.readouterr().out
    best = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert best["val/PQ_stuff"] > 0.5, "sky and grass are learnt in a moment"

    weights, out = str(run / "best.safetensors"), tmp_path / "eval"
    assert main(["eval", "--model", weights, "--data", val, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("PQ", "things", "stuff", "grass"))
    measured = json.loads((out / "metrics.json").read_text())
    assert measured["panoptic"]["PQ_stuff"] > 0.5
    assert (out / "report.html").is_file()

    for file in ("predictions.json", "panoptic.json"):
        again = tmp_path / file
        arguments = ["eval", "--task", "panoptic", "--predictions", str(out / file), "--data", val]
        assert main([*arguments, "--out", str(again)]) == 0
        assert json.loads((again / "metrics.json").read_text()) == measured, file

    found = tmp_path / "found"
    assert main(["predict", str(folder / "val" / "images"), "--model", weights, "--out", str(found)]) == 0
    assert "segments in 2 images" in capsys.readouterr().out
    assert len(list((found / "overlays").iterdir())) == 2
    rows = read_results(found / "panoptic.json", open_dataset(val).as_panoptic())
    kept = {(row["image_id"], row["category_id"]) for row in rows}
    assert kept == {(r["image_id"], r["category_id"]) for r in json.loads((found / "predictions.json").read_text())}
    with Image.open(found / "panoptic" / "1.png") as image:
        assert (image.mode, image.size) == ("RGB", (64, 64))
