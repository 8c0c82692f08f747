"""mmsegmentation's names of FCN, PSPNet and DeepLab, and the order in which its DeepLab concatenates."""

import pytest
import torch
import torch.nn.functional as F

from maskkit import zoo
from maskkit.errors import DataError

_UNIT = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
_SEPARABLE = tuple(f"{part}_conv.{name}" for part in ("depthwise", "pointwise") for name in _UNIT)
_HEADS = {
    "fcn-resnet50-voc-mmseg": {"convs.0": _UNIT, "convs.1": _UNIT, "conv_cat": _UNIT},
    "pspnet-resnet50-cityscapes-mmseg": {f"psp_modules.{i}.1": _UNIT for i in range(4)} | {"bottleneck": _UNIT},
    "deeplabv3-resnet50-ade20k-mmseg": {"image_pool.1": _UNIT, "bottleneck": _UNIT}
    | {f"aspp_modules.{i}": _UNIT for i in range(4)},
    "deeplabv3plus-resnet50-cityscapes-mmseg-769": {"image_pool.1": _UNIT, "bottleneck": _UNIT, "c1_bottleneck": _UNIT}
    | {"aspp_modules.0": _UNIT}
    | {f"aspp_modules.{i}": _SEPARABLE for i in range(1, 4)}
    | {f"sep_bottleneck.{i}": _SEPARABLE for i in range(2)},
}


@pytest.mark.parametrize("preset", _HEADS)
def test_names_of_heads_and_of_the_deep_stem(preset: str) -> None:
    """Every tensor of our heads and stem gets a name of theirs, and no other does."""
    official = [f"decode_head.{part}.{name}" for part, names in _HEADS[preset].items() for name in names]
    official += [f"auxiliary_head.convs.0.{name}" for name in _UNIT]
    official += [f"{head}.conv_seg.{name}" for head in ("decode_head", "auxiliary_head") for name in ("weight", "bias")]
    official += [f"backbone.stem.{i}.weight" for i in (0, 3, 6)]
    official += [f"backbone.stem.{i}.{name.partition('.')[2]}" for i in (1, 4, 7) for name in _UNIT[1:]]
    rename = zoo.method(preset).rename
    assert rename is not None
    with torch.device("meta"):
        ours = zoo.model_class(preset)(zoo.preset(preset).model).state_dict()
    found = rename({name: torch.zeros(4, 4, 1, 1) for name in official})
    assert set(found) == {n for n in ours if not n.startswith("backbone.body.layer")}
    with pytest.raises(DataError, match="not a tensor in checkpoints of"):
        rename({"decode_head.unheard_of": torch.zeros(1)})


def test_deeplab_reads_what_it_concatenates_in_another_order() -> None:
    """The image's mean comes first there, and the features of stride 4 last."""
    width, low = 4, 2
    mean, branch, fine = torch.randn(1, width, 5, 5), torch.randn(1, width, 5, 5), torch.randn(1, low, 5, 5)
    joined, refined = torch.randn(width, 2 * width, 3, 3), torch.randn(3, width + low, 1, 1)
    depth = torch.randn(width + low, 1, 3, 3)
    names = {
        "decode_head.bottleneck.conv.weight": joined,
        "decode_head.c1_bottleneck.conv.weight": torch.randn(low, 8, 1, 1),
        "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight": depth,
        "decode_head.sep_bottleneck.0.pointwise_conv.conv.weight": refined,
    }
    rename = zoo.method("deeplabv3plus-resnet50-ade20k-mmseg").rename
    assert rename is not None
    ours = rename(names)
    theirs = F.conv2d(torch.cat([mean, branch], 1), joined)
    assert torch.allclose(F.conv2d(torch.cat([branch, mean], 1), ours["aspp.project.0.weight"]), theirs, atol=1e-5)
    y = F.conv2d(torch.cat([theirs, fine[..., 1:4, 1:4]], 1), depth, groups=width + low)
    z = F.conv2d(torch.cat([fine[..., 1:4, 1:4], theirs], 1), ours["refine.0.0.weight"], groups=width + low)
    assert torch.allclose(F.conv2d(z, ours["refine.0.3.weight"]), F.conv2d(y, refined), atol=1e-4)
