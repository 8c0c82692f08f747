"""Which files of a data set a training opens, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maskkit import zoo
from maskkit.cli import main
from maskkit.config import DataConfig, RunConfig
from maskkit.data.dataset import Dataset
from maskkit.engine.data import open_data
from maskkit.errors import DataError, MaskkitError
from maskkit.eval.task import TASKS

SIZE = (24, 32)


def run_of(preset: str, data: Path) -> RunConfig:
    found = zoo.preset(preset)
    return RunConfig(preset, found.model, found.input, found.augment, found.train, DataConfig(str(data)))


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder like that of COCO: files of objects and of segments for the same images."""
    ids = np.zeros(SIZE, np.uint8)
    ids[:8], ids[8:] = 1, 2
    rows = [{"id": 1, "category_id": 1, "bbox": [0, 0, 32, 8], "area": 256, "iscrowd": 0}, {"id": 2, "category_id": 2}]
    classes = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    for n, split in enumerate(("train2017", "val2017"), 1):
        (tmp_path / split).mkdir()
        (tmp_path / "annotations" / f"panoptic_{split}").mkdir(parents=True)
        pixels = np.random.default_rng(n).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / split / f"{n}.jpg")
        pixels = np.stack([ids, 0 * ids, 0 * ids], -1)
        Image.fromarray(pixels).save(tmp_path / "annotations" / f"panoptic_{split}" / f"{n}.png")
        images = [{"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]}]
        panoptic = [{"image_id": n, "file_name": f"{n}.png", "segments_info": rows}]
        contents = {
            "instances": {"images": images, "annotations": [rows[0] | {"image_id": n}], "categories": classes[:1]},
            "panoptic": {"images": images, "annotations": panoptic, "categories": classes},
        }
        for kind, content in contents.items():
            (tmp_path / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_each_task_opens_its_own_file(both: Path) -> None:
    panoptic = next(p.name for p in zoo.presets() if zoo.model_class(p.name).task_of(p.model) == "panoptic")
    for preset, format, classes in (
        (panoptic, "panoptic", ("cat", "sky")),
        ("yolact-mobilenetv2-256", "coco", ("cat",)),
    ):
        for part, split in zip(open_data(run_of(preset, both))[:2], ("train", "val"), strict=True):
            assert (part.format, part.categories.names) == (format, classes)
            assert split in part.source.name


def test_an_export_is_measured_on_the_file_of_its_task(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def write(*_: object, data: Dataset, calibration: Dataset, **__: object) -> None:
        measured.extend([data, calibration])
        raise MaskkitError("no export in this test")

    model = SimpleNamespace(model=SimpleNamespace(task="panoptic"), categories=None)
    monkeypatch.setattr("maskkit.checkpoints.checkpoint.load_model", lambda _: model)
    monkeypatch.setattr("maskkit.export.write.export", write)
    assert main(["export", "--model", "built-in", "--out", str(both / "x.xml"), "--int8", str(both)]) == 1
    assert [part.source.name for part in measured] == ["panoptic_val2017.json", "panoptic_train2017.json"]
    assert measured[0].categories.names == ("cat", "sky")


def test_the_file_of_segments_need_not_be_there_for_both_splits(both: Path) -> None:
    find = TASKS["panoptic"].data_file
    assert find(both, "train").name == "panoptic_train2017.json"
    (both / "annotations" / "panoptic_val2017.json").unlink()
    assert find(both, "val") == both
    assert find(both / "annotations" / "instances_val2017.json", "val").name == "instances_val2017.json"
    assert TASKS["instance"].data_file(both, "train") == both


@pytest.mark.parametrize("preset", ["yolact-mobilenetv2-256", "fcos-resnet50-1x"])
def test_label_maps_alone_teach_no_objects(tmp_path: Path, preset: str) -> None:
    if preset not in zoo.list_models():
        pytest.skip("no such preset")
    for split, count in (("train", 2), ("val", 1)):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i + 10 * count).integers(0, 255, (*SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{i}.png")
            Image.fromarray(pixels[..., 0] // 128).save(tmp_path / "masks" / split / f"{i}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    config = run_of(preset, tmp_path)
    with pytest.raises(DataError, match="label maps or tags, which do not separate objects"):
        open_data(replace(config, data=DataConfig(str(tmp_path))))
