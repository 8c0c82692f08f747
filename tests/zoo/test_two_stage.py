"""Faster and Mask R-CNN: names of checkpoints, and weights that torchvision would fetch."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from maskkit import cli, zoo
from maskkit.checkpoints import convert as published
from maskkit.checkpoints import hub
from maskkit.checkpoints.checkpoint import load_model
from maskkit.errors import DataError

OLD_NAMES = {
    "rpn.head.conv.0.0.": "rpn.head.conv.",
    **{f"roi_heads.mask_head.{i}.0.": f"roi_heads.mask_head.mask_fcn{i + 1}." for i in range(4)},
    **{
        f"backbone.fpn.{b}_blocks.{i}.0.": f"backbone.fpn.{b}_blocks.{i}." for b in ("inner", "layer") for i in range(4)
    },
}


def torchvision_state(build=maskrcnn_resnet50_fpn, old: bool = False, **options) -> dict[str, Tensor]:
    """A state of torchvision's model; with ``old`` under the names that its published file has."""
    with torch.device("meta"):
        state = build(weights=None, weights_backbone=None, **options).state_dict()
    generator = torch.Generator().manual_seed(0)
    filled = {
        n: torch.rand(t.shape, generator=generator) if t.ndim < 2 else torch.zeros(t.shape) for n, t in state.items()
    }
    if not old:
        return filled
    renamed = {}
    for name, tensor in filled.items():
        if name.endswith("num_batches_tracked"):
            continue
        prefix = next((p for p in OLD_NAMES if name.startswith(p)), "")
        renamed[OLD_NAMES.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


@pytest.mark.parametrize(
    ("build", "preset"),
    [(fasterrcnn_resnet50_fpn, "fasterrcnn-resnet50"), (maskrcnn_resnet50_fpn, "maskrcnn-resnet50")],
)
@pytest.mark.parametrize("old", [False, True])
def test_every_tensor_of_torchvision_finds_its_place(build, preset, old):
    state = torchvision_state(build, old)
    converted = published.convert(state, preset)
    label = state["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(converted["box_head.label.bias"], torch.cat([label[1:], label[:1]])), "background goes last"
    # the published files come from a batch norm without epsilon
    gone = 1e-5 if old else 0.0
    variance = state["backbone.body.bn1.running_var"]
    assert torch.allclose(converted["backbone.body.bn1.running_var"] + gone, variance, atol=1e-7)


def test_settings_among_detectron2_weights_are_left_out():
    with torch.device("meta"):
        names = zoo.model_class("fasterrcnn-resnet50-d2-1x")(zoo.preset("fasterrcnn-resnet50-d2-1x").model).state_dict()
    state = {"pixel_mean": torch.zeros(3), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    with pytest.raises(DataError, match=f"{sum('num_batches' not in n for n in names)} of the model's get none"):
        published.convert(state, "fasterrcnn-resnet50-d2-1x")


def test_what_does_not_fit_is_refused_by_name():
    state = torchvision_state()
    with pytest.raises(DataError, match=r"roi_heads\.keypoint_head\.0"):
        published.convert({**state, "roi_heads.keypoint_head.0.weight": torch.zeros(1)}, "maskrcnn-resnet50")
    with pytest.raises(DataError, match="get none"):
        published.convert({n: t for n, t in state.items() if "conv5_mask" not in n}, "maskrcnn-resnet50")
    with pytest.raises(DataError, match="this checkpoint has 90 classes"):
        published.convert(state, "maskrcnn-resnet50", num_classes=3)
    with pytest.raises(DataError, match="does not fit"):
        published.convert(state, "maskrcnn-resnet101-d2-3x")


def test_published_weights_of_torchvision_are_converted(tmp_path, monkeypatch):
    """A file that was downloaded before stands for the network."""
    monkeypatch.setenv("MASKKIT_HOME", str(tmp_path))
    state = torchvision_state(old=True)
    weights = zoo.preset("maskrcnn-resnet50").weights
    assert weights is not None
    url = hub.address(weights).url
    file = hub.download_folder(url) / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    path = hub.fetch("maskrcnn-resnet50")
    assert path.is_relative_to(tmp_path)
    assert not file.exists()
    loaded = load_model(path)
    bias = loaded.model.state_dict()["mask_head.predictor.bias"]
    assert torch.equal(bias, state["roi_heads.mask_predictor.mask_fcn_logits.bias"][1:])
    assert loaded.categories.names[17] == "dog"
    assert loaded.categories.ids[17] == 18
    assert loaded.categories.names[11] == "unused 12"


def test_without_a_network_the_error_tells_what_to_do(tmp_path, monkeypatch, capsys):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("MASKKIT_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    image = Path(hub.__file__).parents[1] / "demo_images" / "coffee.jpg"
    assert cli.main(["predict", str(image), "--model", "fasterrcnn-resnet50", "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "no route to host" in message
    assert "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth: cannot be reached" in message
    assert "then: maskkit import FILE --model fasterrcnn-resnet50" in message


def test_presets_that_nobody_publishes_say_so():
    assert not hub.can_fetch("maskrcnn-mobilenetv2-256")
    with pytest.raises(DataError, match="no published weights"):
        hub.fetch("maskrcnn-mobilenetv2-256")
    with pytest.raises(DataError, match="cannot be fetched: download them from"):
        hub.fetch("yolact-darknet53")
