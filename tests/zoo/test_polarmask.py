"""Names of official PolarMask checkpoints; the numbers behind them are checked in tests/parity."""

import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.errors import DataError
from maskkit.models.polarmask import PolarMask

PRESET = "polarmask-resnet50-1x"


def official() -> dict[str, Tensor]:
    """A state dict under the official names: ours, renamed back by an independent table."""
    with torch.device("meta"):
        ours = PolarMask(zoo.preset(PRESET).model).state_dict()  # type: ignore[arg-type]
    towers = {"class_tower": "cls_convs", "box_tower": "reg_convs", "ray_tower": "mask_convs"}
    outputs = {"logits": "cls", "sides": "reg", "rays": "mask", "centerness": "centerness"}
    scales = {"side_scales": "scales_bbox", "ray_scales": "scales_mask"}
    back = {}
    for name, tensor in ours.items():
        parts = name.split(".")
        if parts[0] == "backbone":
            name = "backbone." + ".".join(parts[2:])
        elif parts[1] == "lateral":
            name = f"neck.lateral_convs.{parts[2]}.conv.{parts[3]}"
        elif parts[0] == "fpn":
            name = f"neck.fpn_convs.{int(parts[2]) + 3 * (parts[1] == 'extra')}.conv.{parts[3]}"
        elif parts[1] in towers:
            unit, layer = divmod(int(parts[2]), 3)
            name = f"bbox_head.{towers[parts[1]]}.{unit}.{('conv', 'gn')[layer]}.{parts[3]}"
        elif parts[1] in scales:
            name = f"bbox_head.{scales[parts[1]]}.{parts[2]}.scale"
        else:
            name = f"bbox_head.polar_{outputs[parts[1]]}.{parts[2]}"
        back[name] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return back


def test_every_name_has_a_place_and_the_stem_sees_rgb() -> None:
    state = official()
    state["backbone.conv1.weight"] = torch.arange(3.0)[:, None, None].expand(64, 3, 7, 7)
    ours = published.convert(state, PRESET)
    assert ours["backbone.body.conv1.weight"][0, :, 0, 0].tolist() == [2, 1, 0]
    assert set(state) >= {
        "bbox_head.scales_mask.4.scale",
        "neck.fpn_convs.4.conv.bias",
        "bbox_head.mask_convs.3.gn.bias",
    }


def test_a_name_too_many_or_too_few_is_refused() -> None:
    state = official()
    with pytest.raises(DataError, match="not a tensor in checkpoints of PolarMask"):
        published.convert({**state, "bbox_head.fcos_cls.weight": torch.zeros(1)}, PRESET)
    del state["bbox_head.polar_mask.bias"]
    with pytest.raises(DataError, match=r"head\.rays\.bias"):
        published.convert(state, PRESET)
