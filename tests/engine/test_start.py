"""What a training starts from: a checkpoint, weights for the backbone, the run that it continues."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.config import RunConfig, change
from maskkit.engine.start import check_same, load_backbone, start_weights
from maskkit.errors import DataError, MaskkitError
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.vgg import Vgg, VggShape
from maskkit.prediction import Categories

CLASSES = Categories(("cat", "dog", "cow"), (3, 17, 4))


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return zoo.model_class("tinynet")(tiny.model)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_start_takes_what_fits_and_says_what_does_not(tmp_path, model, tiny):
    path = tmp_path / "m.safetensors"
    save_model(path, model, tiny, CLASSES, {})
    more = replace(tiny, model=replace(tiny.model, num_classes=5))
    fresh: Any = zoo.model_class("tinynet")(more.model)
    head = fresh.head.weight.detach().clone()
    (note,) = start_weights(fresh, more, path)
    assert note.startswith(f"9 of 11 tensors start from {path}")
    assert "head.bias, head.weight" in note
    assert same(fresh.backbone.state_dict(), model.backbone.state_dict())
    assert torch.equal(fresh.head.weight, head)
    with pytest.raises(DataError, match="no tensor fits"):
        start_weights(torch.nn.Linear(1, 1), more, path)  # type: ignore[arg-type]


def test_another_run_is_not_gone_on_with_and_every_difference_is_named(tmp_path, model, tiny):
    path = tmp_path / "last.safetensors"
    save_model(path, model, tiny, CLASSES, {"step": 3, "images": 12})
    check_same(tiny, CLASSES, 12, path)
    check_same(replace(tiny, train=replace(tiny.train, workers=7, save_every=9)), CLASSES, 12, path)
    other = replace(tiny, train=replace(tiny.train, lr=0.5), input=replace(tiny.input, size=(32, 64)))
    with pytest.raises(MaskkitError) as caught:
        check_same(other, Categories.of(["cat"]), 13, path)
    message = str(caught.value)
    assert "train.lr was 0.02 and is 0.5" in message
    assert "input.size was [64, 64] and is [32, 64]" in message
    assert "classes was ['cat', 'dog', 'cow'] and is ['cat']" in message
    assert "training images was 12 and is 13" in message
    assert "train.workers" not in message


def test_a_backbone_starts_from_timm_names(tmp_path):
    preset = zoo.preset("yolact-mobilenetv2-256")
    config = RunConfig(preset.name, replace(preset.model, num_classes=2), preset.input, preset.augment, preset.train)
    model: Any = zoo.model_class(preset.name)(config.model)
    wanted = {
        n: torch.rand_like(t) if t.is_floating_point() else t for n, t in model.backbone.body.state_dict().items()
    }
    save_file({**wanted, "classifier.weight": torch.zeros(2)}, tmp_path / "timm.safetensors")
    (note,) = start_weights(model, config, tmp_path / "timm.safetensors")
    assert all(torch.equal(t, wanted[n]) for n, t in model.backbone.body.state_dict().items())
    assert "not used: classifier.weight" in note
    other: Any = zoo.model_class(preset.name)(config.model)
    named = replace(config, model=change(config.model, backbone={"weights": str(tmp_path / "timm.safetensors")}))
    start_weights(other, named, None)
    assert all(torch.equal(t, wanted[n]) for n, t in other.backbone.body.state_dict().items())


def test_local_weights_with_a_classifier_load_and_say_what_is_left(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = timm.create_model("resnet18", num_classes=7)
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    net = Backbone("resnet18")
    assert load_backbone(net, tmp_path / "weights.safetensors") == ["fc.bias", "fc.weight"]
    assert torch.equal(net.body.conv1.weight, whole.state_dict()["conv1.weight"])


def test_vgg_takes_the_layers_of_torchvision_under_their_names(tmp_path: Path) -> None:
    layers = make_layers(cfgs["D"])
    save_file({f"features.{n}": t for n, t in layers.state_dict().items()}, tmp_path / "vgg16.safetensors")
    net, image = Vgg(VggShape()), torch.rand(1, 3, 32, 64)
    assert load_backbone(net, tmp_path / "vgg16.safetensors") == []
    assert torch.equal(net(image)[32], layers(image))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"a\.safetensors.*no weights for"):
        load_backbone(Backbone("mobilenetv2_100"), tmp_path / "a.safetensors")
    state = timm.create_model("resnet18").state_dict() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(DataError, match=r"conv1\.weight"):
        load_backbone(Backbone("resnet18"), tmp_path / "b.safetensors")


def test_hub_weights_without_a_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    net = Backbone("resnet18")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DataError, match="local file"):
        load_backbone(net, "hub")
