"""Names of mmdetection's one-stage methods; the numbers behind them are checked in tests/parity."""

import pytest
import torch

from maskkit import zoo
from maskkit.errors import DataError
from maskkit.zoo import boxinst, condinst, fcos, solo, solov2

STEM = {"backbone.conv1.weight": torch.arange(3.0).view(1, 3, 1, 1)}


def test_heads_of_fcos_have_other_names_in_version_1_and_scales_are_numbers() -> None:
    for first in ("conv", "fcos"):
        state = {f"bbox_head.{first}_{kind}.bias": torch.zeros(1) for kind in ("cls", "reg", "centerness")}
        found = fcos.rename({**state, "bbox_head.scales.2.scale": torch.tensor(1.5)})
        assert set(found) == {"head.logits.bias", "head.sides.bias", "head.quality.bias", "head.scales.2"}
        assert found["head.scales.2"].tolist() == [1.5]
    layers = [f"bbox_head.{kind}_convs.3.{part}.weight" for kind in ("cls", "reg") for part in ("conv", "gn")]
    assert list(fcos.rename(dict.fromkeys(layers, torch.zeros(1)))) == [
        f"head.{kind}_tower.{i}.weight" for kind in ("class", "box") for i in (9, 10)
    ]


def test_resnets_of_fcos_read_bgr_and_those_of_condinst_rgb() -> None:
    assert fcos.rename(STEM)["backbone.body.conv1.weight"].flatten().tolist() == [2, 1, 0]
    for method in (condinst, boxinst):
        assert method.rename(STEM)["backbone.body.conv1.weight"].flatten().tolist() == [0, 1, 2]
    counter = {"mask_head._iter": torch.zeros(1)}
    assert boxinst.rename({**STEM, **counter}).keys() == {"backbone.body.conv1.weight"}


def test_deformable_fcos_has_a_place_for_every_offset() -> None:
    preset = zoo.preset("fcos-dcn-resnet50-mmdet-1x")
    with torch.device("meta"):
        model = zoo.model_class(preset.name)(preset.model)  # type: ignore[call-arg]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {
        "bbox_head.cls_convs.3.conv.weight": (256, 256, 3, 3),
        "bbox_head.cls_convs.3.conv.bias": (256,),
        "bbox_head.reg_convs.3.conv.conv_offset.weight": (27, 256, 3, 3),
        "bbox_head.reg_convs.3.conv.conv_offset.bias": (27,),
        "backbone.layer2.0.conv2.conv_offset.weight": (27, 128, 3, 3),
        "backbone.layer4.2.conv2.conv_offset.bias": (27,),
    }
    found = fcos.rename({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert {name: tuple(t.shape) for name, t in found.items()}.items() <= wanted.items()
    assert len([name for name in wanted if name.endswith("offset_mask.weight")]) == 4 + 6 + 3 + 2


@pytest.mark.parametrize(
    ("theirs", "mine", "ours"),
    [
        ("bbox_head.ins_convs.6.conv.weight", "mask_head.mask_convs.6.conv.weight", "towers.0.6.0.weight"),
        ("bbox_head.ins_convs_y.6.gn.bias", "mask_head.mask_convs_y.6.gn.bias", "towers.1.6.1.bias"),
        ("bbox_head.solo_ins_list.4.bias", "mask_head.conv_mask_list.4.bias", "outputs.0.4.bias"),
        ("bbox_head.dsolo_ins_list_x.4.bias", "mask_head.conv_mask_list_x.4.bias", "outputs.0.4.bias"),
        ("bbox_head.dsolo_ins_list_y.4.bias", "mask_head.conv_mask_list_y.4.bias", "outputs.1.4.bias"),
        ("bbox_head.dsolo_cate.bias", "mask_head.conv_cls.bias", "category.bias"),
    ],
)
def test_solo_of_both_zoos(theirs: str, mine: str, ours: str) -> None:
    assert list(solo.rename({theirs: torch.zeros(1)})) == list(solo.rename({mine: torch.zeros(1)})) == [ours]


@pytest.mark.parametrize(
    ("theirs", "mine", "ours"),
    [
        ("bbox_head.cate_convs.3.conv.weight", "mask_head.cls_convs.3.conv.weight", "category_tower.3.0.weight"),
        (
            "bbox_head.kernel_convs.2.conv.conv_offset.bias",
            "mask_head.kernel_convs.2.conv.conv_offset.bias",
            "kernel_tower.2.0.offset_mask.bias",
        ),
        ("bbox_head.solo_kernel.bias", "mask_head.conv_kernel.bias", "kernel.bias"),
        (
            "mask_feat_head.convs_all_levels.3.conv2.gn.bias",
            "mask_head.mask_feature_head.convs_all_levels.3.conv2.gn.bias",
            "mask_branch.levels.3.2.1.bias",
        ),
        (
            "mask_feat_head.conv_pred.0.conv.conv_offset.bias",
            "mask_head.mask_feature_head.conv_pred.conv.conv_offset.bias",
            "mask_branch.mix.0.offset_mask.bias",
        ),
        (
            "backbone.layer3.5.conv2_offset.weight",
            "backbone.layer3.5.conv2.conv_offset.weight",
            "backbone.body.layer3.5.conv2.offset_mask.weight",
        ),
    ],
)
def test_solov2_of_both_zoos(theirs: str, mine: str, ours: str) -> None:
    assert list(solov2.rename({theirs: torch.zeros(1)})) == list(solov2.rename({mine: torch.zeros(1)})) == [ours]


@pytest.mark.parametrize("method", [boxinst, condinst, fcos, solo, solov2])
def test_an_unknown_name_is_refused(method) -> None:
    with pytest.raises(DataError, match=r"roi_head\.bbox_head"):
        method.rename({"roi_head.bbox_head.fc_cls.weight": torch.zeros(1)})
