"""Names of AdelaiDet's FCOS, CondInst and BoxInst; the numbers behind them are checked in tests/parity."""

import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.errors import DataError


def official(preset: str) -> dict[str, Tensor]:
    """A state dict under the official names: ours, renamed back by an independent table."""
    with torch.device("meta"):
        ours = zoo.model_class(preset)(zoo.preset(preset).model).state_dict()  # type: ignore[call-arg]
    head = {"class_tower": "cls_tower", "box_tower": "bbox_tower", "logits": "cls_logits", "sides": "bbox_pred"}
    head["quality"] = "ctrness"
    back = {}
    for name, tensor in ours.items():
        parts = name.split(".")
        if name.endswith("num_batches_tracked") and parts[0] == "backbone":
            continue  # detectron2's frozen batch norm counts nothing
        if parts[0] == "backbone" and parts[2].startswith("layer"):
            kind, rest = parts[4], parts[-1]
            layer = {"bn": f"conv{kind[-1]}.norm", "co": kind, "do": "shortcut" + ".norm" * int(parts[5] == "1")}[
                kind[:2]
            ]
            name = f"backbone.bottom_up.res{int(parts[2][-1]) + 1}.{parts[3]}.{layer}.{rest}"
        elif parts[0] == "backbone":
            name = "backbone.bottom_up.stem.conv1." + {"conv1": "", "bn1": "norm."}[parts[2]] + parts[3]
        elif parts[0] == "fpn" and parts[1] == "extra":
            name = f"backbone.top_block.p{int(parts[2]) + 6}.{parts[3]}"
        elif parts[0] == "fpn":
            name = f"backbone.fpn_{parts[1]}{int(parts[2]) + 3}.{parts[3]}"
        elif parts[:2] == ["head", "scales"]:
            name = f"proposal_generator.fcos_head.scales.{parts[2]}.scale"
        elif parts[:2] == ["head", "extra"]:
            name = f"controller.{parts[2]}"
        elif parts[0] == "head":
            name = ".".join(["proposal_generator.fcos_head", head[parts[1]], *parts[2:]])
        elif parts[:3] == ["mask_branch", "semantic", "2"]:
            name = f"mask_branch.logits.{parts[3]}"
        elif parts[:2] == ["mask_branch", "semantic"]:
            name = ".".join(["mask_branch.seg_head", *parts[2:]])
        back[name] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return back


@pytest.mark.parametrize("preset", ["fcos-iou-resnet50-1x", "condinst-semantic-resnet50-3x", "boxinst-resnet101-1x"])
def test_every_tensor_finds_its_place_and_the_stem_sees_rgb(preset: str) -> None:
    state = official(preset)
    state["backbone.bottom_up.stem.conv1.weight"] = torch.arange(3.0)[:, None, None].expand(64, 3, 7, 7)
    if not preset.startswith("fcos"):
        state |= {"mask_head.sizes_of_interest": torch.zeros(5), "mask_head._iter": torch.zeros(1)}
    ours = published.convert(state, preset)
    assert ours["backbone.body.conv1.weight"][0, :, 0, 0].tolist() == [2, 1, 0]


def test_what_does_not_fit_is_refused_by_name() -> None:
    state = official("condinst-resnet50-1x")
    with pytest.raises(DataError, match=r"top_layer.* is not a tensor in checkpoints of CondInst"):
        published.convert({**state, "top_layer.weight": torch.zeros(1)}, "condinst-resnet50-1x")
    with pytest.raises(DataError, match="get none"):
        published.convert({n: t for n, t in state.items() if "refine.2" not in n}, "condinst-resnet50-1x")
    with pytest.raises(DataError, match="needs"):
        published.convert(state, "boxinst-resnet50-1x")
    with pytest.raises(DataError, match="is not a tensor in checkpoints of FCOS"):
        published.convert(state, "fcos-resnet50-1x")
