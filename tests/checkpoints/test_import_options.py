"""Weights of other classes and other models than a preset's: what the command line takes, and what an error advises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maskkit import api, zoo
from maskkit.checkpoints.class_lists import read_classes
from maskkit.checkpoints.foreign import write_tensors
from maskkit.cli import main
from maskkit.errors import DataError
from maskkit.zoo.class_names import ADE20K, CITYSCAPES, COCO_PANOPTIC

TINY = "tinynet"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A function that writes weights of a tiny model, whose official names are ours."""
    method = replace(zoo.method(TINY), rename=dict)
    find = zoo.method
    monkeypatch.setattr(zoo, "method", lambda name: method if name == TINY else find(name))

    def write(**knobs) -> Path:
        torch.manual_seed(0)
        torch.save({"state_dict": api.create_model(TINY, **knobs).state_dict()}, tmp_path / "official.pth")
        return tmp_path / "official.pth"

    return write


def run(*args: object) -> int:
    return main([str(a) for a in args])


def test_classes_of_ones_own(tmp_path, official, capsys) -> None:
    out = tmp_path / "out.safetensors"
    source = official(num_classes=5)
    assert run("import", source, "--model", TINY, "--out", out) == 1
    said = capsys.readouterr().err
    assert f"{source}: this checkpoint has 5 classes, 'tinynet' has 3" in said
    assert "add --num-classes 5, or --classes with a file of their names" in said
    assert not out.exists()
    assert run("import", source, "--model", TINY, "--out", out, "--num-classes", 5) == 0
    assert "called class 1 and so on" in capsys.readouterr().out
    assert api.load(out).categories.names == tuple(f"class {i}" for i in range(1, 6))
    (tmp_path / "pets.txt").write_text("cat\ndog\n\nfish\nbird\n  cow")
    assert run("import", source, "--model", TINY, "--out", out, "--classes", tmp_path / "pets.txt") == 0
    assert api.load(out).categories.names == ("cat", "dog", "fish", "bird", "cow")
    (tmp_path / "pets.txt").write_text("cat\ndog\n")
    assert run("import", source, "--model", TINY, "--out", out, "--classes", tmp_path / "pets.txt") == 1
    assert "has 5 classes, 'tinynet' has 2" in capsys.readouterr().err


def test_knobs_of_the_model_and_of_the_input(tmp_path, official, capsys) -> None:
    out = tmp_path / "out.safetensors"
    source = official(width=24)
    assert run("import", source, "--model", TINY, "--out", out) == 1
    assert "another shape, the first is " in capsys.readouterr().err
    options = ("--model.width", 24, "--input.size", 96, 64)
    assert run("import", source, "--model", TINY, "--out", out, *options) == 0
    segmenter = api.load(out)
    assert segmenter.input.size == (96, 64)
    assert segmenter.config.model.width == 24  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["CLASSES", "dataset_meta"])
def test_names_in_a_file_of_mmdetection_are_taken(tmp_path, official, capsys, key) -> None:
    out, source = tmp_path / "out.safetensors", official(num_classes=4)
    names = ("cat", "dog", "fish", "bird")
    meta = {"CLASSES": names} if key == "CLASSES" else {"dataset_meta": {"classes": list(names), "palette": None}}
    torch.save({"meta": {"epoch": 12, **meta}, **torch.load(source, weights_only=True)}, source)
    assert run("import", source, "--model", TINY, "--out", out) == 0
    assert "with 4 classes, as the file names them" in capsys.readouterr().out
    assert api.load(out).categories.names == names
    assert run("import", source, "--model", TINY, "--out", out, "--classes", "coco") == 1
    assert "this checkpoint has 4 classes" in capsys.readouterr().err


def test_wrong_numbers_are_wrong_usage(tmp_path, official, capsys) -> None:
    source = official()
    (tmp_path / "pets.txt").write_text("cat\ndog\n")
    for options in (
        ("--num-classes", 0),
        ("--num-classes", 3, "--classes", tmp_path / "pets.txt"),
        ("--model.num-classes", 3),
    ):
        with pytest.raises(SystemExit) as error:
            run("import", source, "--model", TINY, "--out", tmp_path / "out", *options)
        assert error.value.code == 2


def test_every_form_of_a_class_list(tmp_path) -> None:
    coco = [{"id": 4, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
    forms = {
        "a.txt": "cat\nsky",
        "b.json": json.dumps(["cat", "sky"]),
        "c.json": json.dumps({"images": [], "categories": coco}),
        "d.json": json.dumps({"classes": [{"id": 4, "name": "cat"}, {"id": 9, "name": "sky"}]}),
        "e.json": json.dumps({"model_type": "mask2former", "id2label": {"1": "sky", "0": "cat"}}),
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        found = read_classes(str(tmp_path / name), "semantic")
        assert found.names == ("cat", "sky")
        assert found.ids == ((4, 9) if name in ("c.json", "d.json") else (1, 2))
        assert found.things == ((True, False) if name == "c.json" else (False, False))
        if name != "c.json":
            with pytest.raises(DataError, match="which classes are things"):
                read_classes(str(tmp_path / name), "panoptic")
            assert all(read_classes(str(tmp_path / name), "instance").things)
    assert read_classes("coco-panoptic", "panoptic") == COCO_PANOPTIC
    assert read_classes("ade20k", "semantic") == ADE20K
    assert sum(read_classes("cityscapes-panoptic", "panoptic").things) == 8
    for content in ("{}", "[1]", '[{"name": "x"}]', "[]"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(DataError, match=r"x\.json: has no list of classes"):
            read_classes(str(tmp_path / "x.json"), "instance")
    with pytest.raises(DataError, match=r"nowhere: there is no such file of class names.*known are coco,"):
        read_classes("nowhere", "instance")


def mask2former(classes: int) -> Any:
    """A small Mask2Former of transformers on its own ResNet, with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    resnet = transformers.ResNetConfig(
        layer_type="basic",
        depths=[2] * 4,
        hidden_sizes=[64, 128, 256, 512],
        out_features=[f"stage{i + 1}" for i in range(4)],
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 7, "decoder_layers": 2}
    inner = {"encoder_feedforward_dim": 48, "dim_feedforward": 40, "encoder_layers": 1}
    config = transformers.Mask2FormerConfig(backbone_config=resnet, num_labels=classes, **sizes, **inner)
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


KNOBS = ("--model.backbone.name", "resnet18", "--model.width", 32, "--model.query-decoder.queries", 7)
KNOBS += ("--model.query-decoder.layers", 1, "--model.query-decoder.feedforward", 40)
KNOBS += ("--model.pixel-decoder.layers", 1, "--model.pixel-decoder.feedforward", 48)


@pytest.mark.parametrize(
    ("task", "classes", "names"),
    [
        ("panoptic", "coco-panoptic", COCO_PANOPTIC),
        ("semantic", "ade20k", ADE20K),
        ("semantic", "cityscapes", CITYSCAPES),
    ],
)
def test_mask2former_of_transformers_on_other_data(tmp_path, task, classes, names, capsys) -> None:
    """The published ones have other sizes, which is what the options are for; the names are theirs."""
    preset, theirs = "mask2former-resnet50", mask2former(len(names))
    source, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, theirs.state_dict(), {})
    assert run("import", source, "--model", preset, "--out", out, *KNOBS) == 1
    assert f"this checkpoint has {len(names)} classes, {preset!r} has 80" in capsys.readouterr().err
    options = ("--model.task", task, "--classes", classes)
    assert run("import", source, "--model", preset, "--out", out, *KNOBS, *options) == 0
    segmenter = api.load(out, device="cpu")
    assert segmenter.categories == names
    assert segmenter.task_name == task
    if task == "panoptic":
        images = torch.randn(1, 3, 96, 128)
        with torch.no_grad():
            ours = segmenter.runtime.model(images).logits[:, -1]  # type: ignore[attr-defined]
            torch.testing.assert_close(ours, theirs(images).class_queries_logits, atol=1e-4, rtol=1e-4)
