"""The preset of a training that names none follows from the labels and the number of images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskkit import zoo
from maskkit.config import DataConfig
from maskkit.data import shapes
from maskkit.engine import choose as module
from maskkit.engine.choose import choose
from maskkit.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write(tmp_path_factory.mktemp("drawn"), train=3, val=1, size=(64, 64), objects=(1, 3))


def changed(data: Path, folder: Path, **changes: object) -> DataConfig:
    """The drawn images with other annotations."""
    truth = json.loads((data / "train.json").read_text()) | changes
    folder.mkdir()
    (folder / "images").symlink_to(data / "images")
    (folder / "train.json").write_text(json.dumps(truth))
    return DataConfig(str(folder), allow_outside=True)


def test_masks_boxes_and_known_classes(data: Path, tmp_path: Path) -> None:
    given = DataConfig(str(data))
    name, why = choose(given, "cpu")
    assert name == "maskrcnn-mobilenetv2-320"
    assert why.startswith("3 images with masks of objects, 5 classes: --model maskrcnn-mobilenetv2-320, ")
    assert choose(replace(given, labels="boxes"), "cpu")[0] == "condinst-mobilenetv2-320"
    truth = json.loads((data / "train.json").read_text())
    unmasked = [{k: v for k, v in a.items() if k != "segmentation"} for a in truth["annotations"]]
    assert choose(changed(data, tmp_path / "boxes", annotations=unmasked), "cpu")[0] == "condinst-mobilenetv2-320"
    named = [c | {"name": name} for c, name in zip(truth["categories"], ("cat", "dog", "cow", "x", "y"), strict=True)]
    name, why = choose(changed(data, tmp_path / "coco", categories=named), "cpu")
    assert name == "nanoinst-416"
    assert "knows 3 of them" in why


def test_large_sets_are_for_an_accelerator(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 3)
    assert choose(DataConfig(str(data)), "cpu")[0] == "maskrcnn-mobilenetv2-320"
    monkeypatch.setattr(module, "find_device", lambda name: torch.device("meta"))
    assert choose(DataConfig(str(data)))[0] == "maskrcnn-resnet50"


def test_label_maps(tmp_path: Path) -> None:
    for part, value in (("images", 90), ("labels", 1)):
        (tmp_path / part).mkdir()
        for i in range(2):
            Image.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / part / f"{i}.png")
    classes = [{"id": 0, "name": "sky"}, {"id": 1, "name": "tree"}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes}))
    name, why = choose(DataConfig(str(tmp_path)), "cpu")
    assert name == "fcn8s-mobilenetv2-320"
    assert "2 images with label maps, 2 classes" in why


def test_nothing_to_learn(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="maskkit pseudo-masks"):
        choose(DataConfig(str(data), labels="tags"), "cpu")
    with pytest.raises(DataError, match="nothing to learn"):
        choose(changed(data, tmp_path / "empty", annotations=[]), "cpu")
    with pytest.raises(DataError, match="no such file or folder"):
        choose(DataConfig(str(tmp_path / "nowhere")), "cpu")


def test_every_choice_is_a_preset() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    names = [word.strip('",') for word in source.split() if word.startswith('"') and "-" in word]
    named = [name for name in names if name.partition("-")[0] in zoo.METHODS]
    assert len(named) == 7
    assert all(zoo.preset(name) for name in named)
