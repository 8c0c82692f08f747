"""Trainings on boxes with a teacher that draws masks in them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.config import DataConfig, RunConfig, change
from maskkit.data import open_dataset, shapes
from maskkit.data.dataset import Dataset
from maskkit.engine import drawn_masks
from maskkit.engine.drawn_masks import FILE, accepted, draw, read, with_drawn
from maskkit.engine.train import train
from maskkit.errors import DataError, MaskkitError
from maskkit.geometry import rle as mask_math
from maskkit.infer.in_boxes import Drawn
from tests.models.test_nanodet import SMALL
from tests.small import save_small

KNOBS: dict[str, Any] = {"num_classes": 5, "detector": SMALL, "masks": {"branch_width": 32}}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write(tmp_path_factory.mktemp("drawn"), train=3, val=1, size=(64, 96), objects=(1, 3))


@pytest.fixture(scope="module")
def run(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two steps of a small NanoInst on boxes; its teacher is another one with random weights."""
    preset = zoo.preset("nanoinst-416")
    model, input = change(preset.model, **KNOBS), replace(preset.input, size=(64, 64))
    settings = replace(preset.train, steps=2, batch=2, workers=0, eval_every=0.0)
    config = RunConfig(preset.name, model, input, preset.augment, settings)
    torch.manual_seed(0)
    teacher = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(teacher, zoo.model_class(preset.name)(model), config, shapes.CATEGORIES, {})
    return replace(config, data=DataConfig(str(drawn), labels="boxes", teacher=str(teacher)))


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are used however unsure the teacher is."""
    monkeypatch.setattr(drawn_masks, "accepted", lambda mask: True)


def objects(dataset: Dataset) -> list[Any]:
    return [a for record in dataset.records for a in record.annotations]


def test_only_masks_that_are_sure_and_fit_are_used() -> None:
    mask = mask_math.empty((4, 4))
    assert [accepted(Drawn(mask, *sides)) for sides in ((0.9, 0.9), (0.9, 0.3), (0.3, 0.9))] == [True, False, False]


@pytest.mark.usefixtures("trusted")
def test_a_teacher_draws_the_masks_that_are_unknown(run: RunConfig, drawn: Path) -> None:
    data = open_dataset(drawn, "train")
    known = [a for a in objects(data) if a.segmentation is not None and not a.crowd]
    assert known
    of_boxes = draw(data, run.data, torch.device("cpu"))
    assert sum(mask is not None for row in of_boxes for mask in row) == sum(not a.crowd for a in objects(data))
    of_masks = draw(data, replace(run.data, labels="masks"), torch.device("cpu"))
    assert sum(mask is not None for row in of_masks for mask in row) == len(objects(data)) - len(known)
    for a in objects(with_drawn(data, of_boxes)):
        assert a.drawn is None or a.drawn["size"] == [64, 96]


@pytest.mark.usefixtures("trusted")
def test_a_run_keeps_what_was_drawn(
    run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    result = train(run, out)
    losses = [row for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert all(np.isfinite(row["loss/mask"]) for row in losses)
    train_set = open_dataset(run.data.train, "train")
    masks = read(out / FILE, train_set)
    found = sum(mask is not None for row in masks for mask in row)
    assert f"draws the masks of {found} of {len(objects(train_set))} objects" in capsys.readouterr().err
    assert json.loads((out / "config.json").read_text())["data"]["teacher"] == run.data.teacher
    assert result.steps == 2

    monkeypatch.setattr(drawn_masks, "draw", lambda *_: pytest.fail("they are in the folder"))
    longer = replace(run, train=replace(run.train, steps=3))
    assert train(longer, out, resume=True).steps == 3
    (out / FILE).write_text("[[]]")
    with pytest.raises(DataError, match=r"drawn_masks\.json: is damaged"):
        train(replace(run, train=replace(run.train, steps=4)), out, resume=True)


def test_a_teacher_that_cannot_be_used_is_refused(run: RunConfig, tmp_path: Path) -> None:
    preset = zoo.preset("boxinst-mobilenetv2-320")
    boxes_alone = replace(run, preset=preset.name, model=preset.model)
    with pytest.raises(DataError, match=r"boxinst-mobilenetv2-320 does not learn from masks and boxes together"):
        train(boxes_alone, tmp_path / "a")
    with pytest.raises(DataError, match=r"nothing\.safetensors: there is no such weight file"):
        train(replace(run, data=replace(run.data, teacher="nothing.safetensors")), tmp_path / "b")
    small = save_small(tmp_path / "small.safetensors")
    with pytest.raises(MaskkitError, match="draws no masks in given boxes"):
        train(replace(run, data=replace(run.data, teacher=str(small))), tmp_path / "c")
