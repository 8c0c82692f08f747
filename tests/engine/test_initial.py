"""Initial weights: a checkpoint, weights for the backbone, the best that there are."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from maskkit import zoo
from maskkit.checkpoints import find, hub
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.foreign import read_tensors
from maskkit.config import RunConfig, change
from maskkit.engine.initial import load_backbone, start_weights
from maskkit.errors import DataError
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.vgg import Vgg, VggShape
from maskkit.prediction import Categories

CLASSES = Categories(("cat", "dog", "cow"), (3, 17, 4))
FIVE = Categories.of(["a", "b", "c", "d", "e"])
TWO = Categories.of(["a", "b"])


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
    start = start_weights(fresh, more, FIVE, path)
    note = start.note
    assert note.startswith(f"9 of 11 tensors start from {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert start.facts() == {"source": str(path), "sha256": digest, "tensors": 9, "of": 11}
    assert "head.bias, head.weight" in note
    assert same(fresh.backbone.state_dict(), model.backbone.state_dict())
    assert torch.equal(fresh.head.weight, head)
    with pytest.raises(DataError, match="no tensor fits"):
        start_weights(torch.nn.Linear(1, 1), more, FIVE, path)  # type: ignore[arg-type]


def test_a_backbone_starts_from_timm_names(tmp_path):
    preset = zoo.preset("yolact-mobilenetv2-256")
    config = RunConfig(preset.name, replace(preset.model, num_classes=2), preset.input, preset.augment, preset.train)
    model: Any = zoo.model_class(preset.name)(config.model)
    wanted = {
        n: torch.rand_like(t) if t.is_floating_point() else t for n, t in model.backbone.body.state_dict().items()
    }
    save_file({**wanted, "classifier.weight": torch.zeros(2)}, tmp_path / "timm.safetensors")
    note = start_weights(model, config, TWO, tmp_path / "timm.safetensors").note
    assert all(torch.equal(t, wanted[n]) for n, t in model.backbone.body.state_dict().items())
    assert "not used: classifier.weight" in note
    other: Any = zoo.model_class(preset.name)(config.model)
    named = replace(config, model=change(config.model, backbone={"weights": str(tmp_path / "timm.safetensors")}))
    start_weights(other, named, TWO)
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


# the best start -------------------------------------------------------------------------------------------------------


def config_of(name: str, classes: Categories, **knobs: Any) -> RunConfig:
    preset = zoo.preset(name)
    config = change(preset.model, num_classes=len(classes), **knobs)
    return RunConfig(name, config, preset.input, preset.augment, preset.train)


def build(config: RunConfig) -> Any:
    torch.manual_seed(0)
    return zoo.model_class(config.preset)(config.model)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


PLAIN = Categories.of(["truck cab"])


@pytest.mark.parametrize(
    ("preset", "name", "file", "others"),
    [
        ("nanoinst-416", "built-in", find.BUILT_IN_WEIGHTS, 100),
        ("nanodet-plus-m-416", "built-in", find.BUILT_IN_WEIGHTS, 100),
        ("yolact-mobilenetv2-320", "built-in mobilenetv2", find.MOBILENET_WEIGHTS, 0),
        ("condinst-mobilenetv2-256", "built-in mobilenetv2", find.MOBILENET_WEIGHTS, 60),
        ("deeplabv3-mobilenetv2-320", "built-in mobilenetv2", find.MOBILENET_WEIGHTS, 0),
    ],
)
def test_a_small_model_starts_from_a_built_in_one_unless_told_otherwise(
    preset: str, name: str, file: Path, others: int
) -> None:
    config = config_of(preset, PLAIN)
    model = build(config)
    start = start_weights(model, config, PLAIN)
    built_in = read_tensors(file)
    own = model.state_dict()
    backbone = [n for n in own if n.startswith("backbone.")]
    assert all(torch.equal(own[n], built_in[n].to(own[n].dtype)) for n in backbone)
    assert start.taken >= len(backbone) + others
    assert start.source == name
    assert start.note.startswith(f"{start.taken} of {len(own)} tensors start from {name}; random values for ")
    assert start.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["condinst", "maskrcnn", "solov2", "yolact"])
def test_a_small_model_on_nanodet_has_the_backbone_and_pyramid_of_the_built_in_one(method: str) -> None:
    config = config_of(f"{method}-nanodet-320", PLAIN)
    model = build(config)
    start = start_weights(model, config, PLAIN)
    built_in, body = read_tensors(find.BUILT_IN_WEIGHTS), model.backbone.body.state_dict()
    assert any(name.startswith("fpn.") for name in body)
    assert all(torch.equal(tensor, built_in[name].to(tensor.dtype)) for name, tensor in body.items())
    assert start.source == "built-in"
    assert start.taken >= len(body)


def test_random_values_on_request_only(offline: None) -> None:
    config = config_of("yolact-mobilenetv2-320", PLAIN)
    model = build(config)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    start = start_weights(model, config, PLAIN, "random")
    assert same(before, model.state_dict())
    assert start.facts() == {"source": "random", "sha256": None, "tensors": 0, "of": len(before)}
    assert "WARNING" not in start.note


def test_another_backbone_starts_from_timm_or_says_loudly_why_not(
    offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("condinst-mobilenetv2-320", PLAIN, backbone={"name": "resnet18", "pad_same": False})
    model = build(config)
    start = start_weights(model, config, PLAIN)
    assert start.source == "random"
    assert start.note.startswith("WARNING: all weights start from random values: ")
    assert "--weights" in start.note
    assert "\n" not in start.note

    weights = {n: torch.rand_like(t.float()).to(t.dtype) for n, t in model.backbone.timm_part.state_dict().items()}
    monkeypatch.setattr(type(model.backbone), "download", lambda _: dict(weights))
    start = start_weights(model, config, PLAIN)
    assert start.source == "timm: resnet18"
    assert start.sha256 is not None
    learnt = model.backbone.timm_part.state_dict()
    assert torch.equal(learnt["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
    # the images of this preset are divided by 127.5, those of timm's weights by 255 times their own deviation
    ratio = torch.tensor(config.input.std) / 255 / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(learnt["conv1.weight"], weights["conv1.weight"] * ratio[:, None, None])


def test_published_weights_come_before_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = config_of("condinst-mobilenetv2-320", PLAIN, backbone={"name": "resnet18", "pad_same": False})
    path = tmp_path / "published.safetensors"
    save_model(path, build(config), config, PLAIN, {})
    monkeypatch.setattr(hub, "can_fetch", lambda preset: True)
    monkeypatch.setattr(hub, "fetch", lambda preset: path)
    monkeypatch.setattr(hub, "published_name", lambda preset: "torchvision: A")
    start = start_weights(build(config), config, PLAIN)
    assert start.source == "torchvision: A"
    assert start.taken == start.tensors


def class_rows(names: list[str], given: list[str], tmp_path: Path) -> tuple[Any, Any, Any]:
    """Class layers of a CondInst of ``given`` classes, of one of ``names`` before its start from it, and after."""
    there, here = Categories.of(given), Categories.of(names)
    config = config_of("condinst-mobilenetv2-256", there)
    source = build(config)
    with torch.no_grad():
        for tensor in source.parameters():
            tensor.uniform_()
    save_model(tmp_path / "source.safetensors", source, config, there, {})
    config = config_of("condinst-mobilenetv2-256", here)
    model = build(config)
    layer = next(n for n, t in source.state_dict().items() if n.endswith("logits.weight") and len(t) == len(given))
    before = model.state_dict()[layer].clone()
    start_weights(model, config, here, tmp_path / "source.safetensors")
    return source.state_dict()[layer], before, model.state_dict()[layer]


def test_a_class_takes_the_weights_of_its_own_name(tmp_path: Path) -> None:
    source, _, after = class_rows(["a", "b"], ["a", "b"], tmp_path)
    assert torch.equal(after, source)
    source, before, after = class_rows(["x", "y"], ["a", "b"], tmp_path)
    assert torch.equal(after, before), "as many classes, and none of them the same"
    source, _, after = class_rows(["b", "a"], ["a", "b"], tmp_path)
    assert torch.equal(after, source[[1, 0]])
    source, before, after = class_rows(["x", "b", "y"], ["a", "b"], tmp_path)
    assert torch.equal(after[1], source[1])
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_weights_that_cannot_fit_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("segnet-thin", PLAIN)
    model = build(config)
    monkeypatch.setattr(type(model.backbone), "download", None)
    start = start_weights(model, config, PLAIN)
    assert start.source == "random"
    assert "no published weights have the sizes of its vgg16_bn" in start.note
    assert build(config_of("segnet-vgg16", PLAIN)).backbone.is_of_timm
    assert build(config_of("condinst-resnet50-1x", PLAIN)).backbone.is_of_timm


@pytest.mark.slow
def test_every_small_preset_finds_a_start_or_says_why_not(offline: None) -> None:
    for preset in zoo.presets():
        if preset.small:
            config = config_of(preset.name, PLAIN)
            start = start_weights(build(config), config, PLAIN)
            assert start.source.startswith("built-in") or start.note.startswith("WARNING"), preset.name
