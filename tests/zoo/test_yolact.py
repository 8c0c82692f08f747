"""Names of official checkpoints; the numbers behind them are checked in tests/parity."""

import pytest
import torch

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.errors import DataError
from maskkit.models.yolact import Yolact
from maskkit.zoo.yolact import rename


def official(preset: str) -> dict[str, torch.Tensor]:
    """A state dict under the official names: ours, renamed back by an independent table."""
    with torch.device("meta"):
        ours = Yolact(zoo.preset(preset).model).state_dict()  # type: ignore[arg-type]
    back = {}
    for name, tensor in ours.items():
        parts = name.split(".")
        if name.startswith("backbone.body.layer"):
            stage = int(parts[2].removeprefix("layer")) - 1
            rest = ".".join(parts[3:]).replace("offset_mask", "conv_offset_mask")
            name = f"backbone.layers.{stage}.{rest}"
        elif name.startswith("backbone.body."):
            name = "backbone." + ".".join(parts[2:])
        elif name.startswith(("fpn.lateral", "fpn.output")):
            kind = {"lateral": "lat_layers", "output": "pred_layers"}[parts[1]]
            name = f"fpn.{kind}.{2 - int(parts[2])}.{parts[3]}"
        elif name.startswith("fpn.extra"):
            name = f"fpn.downsample_layers.{parts[2]}.{parts[3]}"
        elif name.startswith("protonet"):
            name = f"proto_net.{parts[1]}.{parts[2]}"
        elif name.startswith("head"):
            kind = {"shared": "upfeature.0", "box": "bbox_layer", "conf": "conf_layer", "mask": "mask_layer"}[parts[1]]
            name = f"prediction_layers.0.{kind}.{parts[2]}"
        elif name.startswith("semantic"):
            name = f"semantic_seg_conv.{parts[1]}"
        elif name.startswith("maskiou"):
            name = f"maskiou_net.{name}".replace("maskiou_net.maskiou.", "maskiou_net.maskiou_net.")
        back[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return back


@pytest.mark.parametrize("preset", ["yolact-resnet50", "yolact-plus-resnet50"])
def test_every_tensor_finds_its_place(preset: str) -> None:
    state = official(preset)
    converted = published.convert(state, preset)
    assert len(converted) == len(state)


def test_old_releases_lack_counters_and_carry_extra_layers() -> None:
    state = {n: t for n, t in official("yolact-resnet50").items() if not n.endswith("num_batches_tracked")}
    state["fpn.downsample_layers.2.weight"] = torch.zeros(1)
    state["backbone.layer1.0.conv1.weight"] = torch.zeros(1)
    converted = published.convert(state, "yolact-resnet50")
    with torch.device("meta"):
        model = Yolact(zoo.preset("yolact-resnet50").model)  # type: ignore[arg-type]
    assert set(converted) == set(model.state_dict())


def test_what_does_not_fit_is_refused_by_name() -> None:
    state = official("yolact-resnet50")
    with pytest.raises(DataError, match="get none"):
        published.convert({n: t for n, t in state.items() if "proto_net.0" not in n}, "yolact-resnet50")
    with pytest.raises(DataError, match=r"roi_heads\.x"):
        published.convert({**state, "roi_heads.x": torch.zeros(1)}, "yolact-resnet50")
    with pytest.raises(DataError, match="this checkpoint has 80 classes"):
        published.convert(state, "yolact-resnet50", num_classes=3)
    with pytest.raises(DataError, match="does not fit"):
        published.convert(state, "yolact-resnet101")


def test_mmdetection_has_the_background_last_and_two_names_for_the_semantic_branch() -> None:
    classes, anchors = 3, 2
    rows = torch.arange(anchors * (classes + 1)).float()
    state = {
        "bbox_head.conv_reg.bias": torch.zeros(anchors * 4),
        "bbox_head.conv_cls.bias": rows,
        "bbox_head.conv_cls.weight": rows[:, None, None, None].expand(-1, 2, 3, 3),
        "segm_head.segm_conv.bias": torch.ones(3),
        "neck.fpn_convs.3.conv.weight": torch.zeros(1),
    }
    found = rename(state)
    assert found["head.conf.bias"].tolist() == [3, 0, 1, 2, 7, 4, 5, 6]
    assert torch.equal(found["head.conf.weight"][:, 0, 0, 0], found["head.conf.bias"])
    assert set(found) == {"head.box.bias", "head.conf.bias", "head.conf.weight", "semantic.bias", "fpn.extra.0.weight"}
    with pytest.raises(DataError, match="new_layer"):
        rename({**state, "bbox_head.new_layer.weight": rows})
    assert "semantic.bias" in rename({"mask_head.segm_branch.segm_conv.bias": rows, "bbox_head.conv_reg.bias": rows})
