"""What a training says about its data before its first step."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskkit import zoo
from maskkit.config import DataConfig, RunConfig
from maskkit.data.shapes import shapes_dataset, write
from maskkit.engine.data import open_data
from maskkit.engine.train import train
from maskkit.errors import DataError


def run_of(preset: str, data: Path, val: Path | None = None) -> RunConfig:
    found = zoo.preset(preset)
    given = DataConfig(str(data), None if val is None else str(val))
    return RunConfig(preset, found.model, found.input, found.augment, replace(found.train, steps=1, workers=0), given)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("drawn"), train=3, val=2, size=(32, 48))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images beside label images."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count in (("train", 3), ("val", 2)):
        data = shapes_dataset(count, count, (32, 48)).as_semantic()
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, target, _ = data.load(i)
            assert target.semantic is not None
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / split / f"{i}.png")
            Image.fromarray(target.semantic.numpy()).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(data.categories.names))
    return root


def changed(source: Path, folder: Path, **fields: Any) -> Path:
    """A copy of the validation file of ``source`` whose annotations have other ``fields``; None removes one."""
    folder.mkdir()
    truth = json.loads((source / "val.json").read_text())
    for image in truth["images"]:
        name = Path(image["file_name"]).name
        (folder / name).write_bytes((source / "images" / name).read_bytes())
        image["file_name"] = name
    for name, value in fields.items():
        for annotation in truth["annotations"]:
            annotation[name] = value
            if value is None:
                del annotation[name]
    if not fields:
        truth["annotations"] = []
    (folder / "val.json").write_text(json.dumps(truth))
    return folder / "val.json"


@pytest.mark.parametrize("preset", ["yolact-mobilenetv2-256", "fasterrcnn-mobilenetv2-256", "psenet-mobilenetv2-256"])
def test_label_maps_teach_no_objects(labelled: Path, preset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"do not separate objects.*maskkit models --task semantic"):
        train(run_of(preset, labelled), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_label_maps_teach_a_semantic_model(labelled: Path) -> None:
    open_data(run_of("deeplabv3-mobilenetv2-320", labelled))


@pytest.mark.parametrize("preset", ["yolact-mobilenetv2-256", "mask2former-mobilenetv2-320-panoptic"])
@pytest.mark.parametrize("fields", [{}, {"iscrowd": 1}], ids=["no objects", "crowds only"])
def test_images_with_nothing_to_measure(drawn: Path, tmp_path: Path, preset: str, fields: dict[str, Any]) -> None:
    val = changed(drawn, tmp_path / "val", **fields)
    with pytest.raises(DataError, match=r"val\.json: the validation images have no .*--data\.val"):
        open_data(run_of(preset, drawn, val))


def test_panoptic_quality_requires_masks_before_the_first_step(drawn: Path, tmp_path: Path) -> None:
    val = changed(drawn, tmp_path / "val", segmentation=None)
    with pytest.raises(DataError, match=r"cannot be measured.*without a mask.*--data\.val"):
        train(run_of("mask2former-mobilenetv2-320-panoptic", drawn, val), tmp_path / "run")
    open_data(run_of("yolact-mobilenetv2-256", drawn, val))  # boxes are enough there


def test_label_maps_of_unknown_pixels_alone(labelled: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(labelled, tmp_path / "data")
    for file in (tmp_path / "data" / "masks" / "val").iterdir():
        Image.fromarray(np.full((32, 48), 255, np.uint8)).save(file)
    with pytest.raises(DataError):
        open_data(run_of("deeplabv3-mobilenetv2-320", tmp_path / "data"))
