"""Pre-training from a folder of images: it learns, resumes bit for bit, and its result is a backbone."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskkit import zoo
from maskkit.cli import main
from maskkit.config import Pretraining, RunConfig, change
from maskkit.data.shapes import draw
from maskkit.engine.initial import start_weights
from maskkit.engine.pretrain import pretrain, random_crop
from maskkit.errors import DataError, MaskkitError

CONFIG = Pretraining(
    size=32,
    teacher="random:mobilenetv2_050",
    steps=6,
    batch=4,
    warmup=1,
    workers=0,
    save_every=3,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and nothing else, in a folder and one inside of it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for i in range(8):
        image, _ = draw(i, (48, 64), (2, 4))
        place = folder / "more" if i % 2 else folder
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i}.png")
    return folder


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def test_it_learns_and_leaves_a_backbone(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskkit.engine.log.LOG_EVERY", 1)
    out = tmp_path / "run"
    backbone = pretrain(images, replace(CONFIG, steps=40, lr=3e-3, crop=0.9, drop_path=0.0), out)
    found = losses(out)
    assert len(found) == 40
    assert np.mean(found[-5:]) < found[0] - 0.3
    assert all(-1 <= value <= 1 for value in found)
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "last.safetensors",
        "backbone.safetensors",
    }
    preset = zoo.preset("eva-tiny-256")
    model: Any = zoo.model_class(preset.name)(change(preset.model, backbone={"weights": str(backbone)}))  # type: ignore[call-arg]
    config = RunConfig(preset.name, model.config, preset.input, preset.augment, preset.train)
    start = start_weights(model, config, preset.classes)
    assert str(backbone) in start.note
    learnt = load_file(backbone)
    own = model.backbone.body.net.state_dict()
    assert all(torch.equal(own[n], t) for n, t in learnt.items() if n.startswith("blocks."))


def test_a_broken_run_goes_on_to_the_same_bits(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain(images, CONFIG, tmp_path / "whole")
    from maskkit.engine import pretrain as module

    seen = iter(range(100))

    def breaks(*given: torch.Tensor) -> torch.Tensor:
        if next(seen) == 4:
            raise KeyboardInterrupt
        return cosine(*given)

    cosine = module.cosine_loss
    monkeypatch.setattr(module, "cosine_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        pretrain(images, CONFIG, tmp_path / "broken")
    monkeypatch.setattr(module, "cosine_loss", cosine)
    again = pretrain(images, replace(CONFIG, save_every=2), tmp_path / "broken", resume=True)
    for name in ("last.safetensors", "backbone.safetensors"):
        a, b = load_file(whole.parent / name), load_file(again.parent / name)
        assert a.keys() == b.keys()
        assert [n for n in a if not torch.equal(a[n], b[n])] == []


@pytest.mark.parametrize(("name", "save"), [("backbone.safetensors", 2), ("last.safetensors", 3)])
def test_killed_between_its_two_files(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, name: str, save: int
) -> None:
    config = replace(CONFIG, steps=2, save_every=1)
    whole, out = pretrain(images, config, tmp_path / "whole"), tmp_path / "run"
    calls, replace_file = iter(range(1, 1000)), os.replace

    class Killed(BaseException):
        """Nothing handles it."""

    def dies(source: Path, target: Path) -> None:
        if Path(target) == out / name and next(calls) == save:
            raise Killed
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(Killed):
            pretrain(images, config, out)
    again = pretrain(images, config, out, resume=True)
    a, b = load_file(whole), load_file(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_finished_run_whose_backbone_is_lost_writes_it_again(tmp_path: Path, images: Path) -> None:
    config = replace(CONFIG, steps=1)
    backbone = pretrain(images, config, tmp_path / "run")
    before = backbone.read_bytes()
    backbone.unlink()
    assert pretrain(images, config, tmp_path / "run", resume=True).read_bytes() == before


def test_a_loss_that_is_not_finite_keeps_its_batch(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskkit.engine.pretrain.cosine_loss", lambda predicted, wanted: predicted.sum() * float("nan"))
    with pytest.raises(MaskkitError, match=r"step 1: the loss is not finite \(cosine is nan\).* lower --lr"):
        pretrain(images, CONFIG, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "bad_batch.safetensors")
    assert kept["pixels"].shape == (4, 3, 32, 32)
    assert kept["mask"].shape == (4, 4)


def test_a_run_does_not_go_on_as_another(tmp_path: Path, images: Path) -> None:
    config = replace(CONFIG, steps=1)
    pretrain(images, config, tmp_path / "run")
    with pytest.raises(MaskkitError, match="already holds a run"):
        pretrain(images, config, tmp_path / "run")
    with pytest.raises(MaskkitError, match=r"lr was 0\.001 and is 0\.1"):
        pretrain(images, replace(config, lr=0.1), tmp_path / "run", resume=True)


def test_no_label_is_read(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the images is opened for reading."""
    from maskkit.data import images as image_files

    opened: list[Path] = []
    read = image_files.read_image
    monkeypatch.setattr("maskkit.engine.pretrain.read_image", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr("maskkit.data.dataset.Dataset.load", None)
    pretrain(images, replace(CONFIG, steps=2), tmp_path / "run")
    assert len(opened) == 8
    assert {p.suffix for p in opened} == {".png"}


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        pretrain(tmp_path, CONFIG, tmp_path / "run")
    with pytest.raises(DataError, match="is no folder"):
        pretrain(tmp_path / "none", CONFIG, tmp_path / "run")


def test_a_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.png"):
        pretrain(tmp_path / "images", replace(CONFIG, batch=1, steps=1), tmp_path / "run")


def test_crops() -> None:
    rng = np.random.default_rng(0)
    image = torch.arange(48 * 64, dtype=torch.float32).view(1, 48, 64).expand(3, -1, -1)
    crops = [random_crop(image, 32, 0.2, rng) for _ in range(20)]
    assert all(c.shape == (3, 32, 32) for c in crops)
    assert len({float(c.mean()) for c in crops}) == 20


def test_the_verb(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "32", "--teacher", "random:mobilenetv2_050", "--steps", "1", "--batch", "2", "--workers", "0"]
    assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *options]) == 0
    assert "--model.backbone.weights" in capsys.readouterr().out
    assert (tmp_path / "run" / "backbone.safetensors").exists()
    assert main(["pretrain", str(images), "--out", str(tmp_path / "other"), "--teacher", "clip"]) == 1
    assert "neither timm:NAME nor random:NAME" in capsys.readouterr().err
