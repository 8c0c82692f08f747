import re

import torch
import torch.nn.functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from maskkit.nn.blocks import DeformConv
from maskkit.nn.fpn import Fpn


def test_levels_for_sizes_that_do_not_halve() -> None:
    net = Fpn((8, 12, 16), width=4)
    features = [torch.randn(2, 8, 69, 51), torch.randn(2, 12, 35, 26), torch.randn(2, 16, 18, 13)]
    sizes = [tuple(level.shape) for level in net(features)]
    assert sizes == [(2, 4, 69, 51), (2, 4, 35, 26), (2, 4, 18, 13), (2, 4, 9, 7), (2, 4, 5, 4)]


def test_a_coarse_feature_reaches_the_finest_level() -> None:
    net = Fpn((4, 4, 4), width=4)
    features = [torch.randn(1, 4, s, s, requires_grad=True) for s in (16, 8, 4)]
    net(features)[0].sum().backward()
    assert features[2].grad is not None
    assert features[2].grad.abs().sum() > 0


def test_the_first_extra_level_may_be_made_of_the_last_feature() -> None:
    net = Fpn((8, 12, 16), 4, 2, relu=False, extra_from_input=True)
    features = [torch.randn(2, c, s, s) for c, s in ((8, 20), (12, 10), (16, 5))]
    levels = net(features)
    assert [conv.in_channels for conv in net.extra] == [16, 4]
    assert torch.equal(levels[3], net.extra[0](features[2]))
    assert torch.equal(levels[4], net.extra[1](levels[3]))


def test_deformable_convolution_starts_as_half_of_the_ordinary_one() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False)
    x = torch.randn(2, 6, 17, 13)
    expected = F.conv2d(x, conv.weight, stride=2, padding=1) / 2  # the weights of the taps start at sigmoid(0)
    assert torch.allclose(DeformConv(conv)(x), expected, atol=1e-5)


def test_deformable_convolution_follows_its_offsets() -> None:
    torch.manual_seed(0)
    layer = DeformConv(torch.nn.Conv2d(2, 3, 3, padding=1))
    assert layer.offset_mask.bias is not None
    with torch.no_grad():
        layer.offset_mask.bias[1:18:2] = 1.0  # one pixel to the right
        layer.offset_mask.bias[18:] = 30.0  # full weight
    x = torch.randn(1, 2, 9, 9)
    shifted = F.pad(x, [0, 1])[..., 1:]
    inner = F.conv2d(shifted, layer.weight, padding=1)[..., 1:-1]
    assert torch.allclose(layer(x)[..., 1:-1], inner, atol=1e-4)


def test_against_torchvision_in_the_styles_of_mask_rcnn_and_retinanet() -> None:
    torch.manual_seed(0)
    features = {"a": torch.randn(1, 8, 20, 26), "b": torch.randn(1, 16, 10, 13), "c": torch.randn(1, 24, 5, 7)}
    for kind, extra, last in (
        ("pool", 1, LastLevelMaxPool()),
        ("relu-conv", 2, LastLevelP6P7(32, 32)),
    ):
        theirs = FeaturePyramidNetwork([8, 16, 24], 32, last)
        ours = Fpn([8, 16, 24], 32, extra, interpolation="nearest", relu=False, extra_kind=kind)  # type: ignore[arg-type]
        rules = [
            (r"inner_blocks\.(\d)\.0", r"lateral.\1"),
            (r"layer_blocks\.(\d)\.0", r"output.\1"),
            (r"extra_blocks\.p(\d)", lambda m: f"extra.{int(m[1]) - 6}"),
        ]
        state = theirs.state_dict()
        for pattern, name in rules:
            state = {re.sub(pattern, name, n): t for n, t in state.items()}
        ours.load_state_dict(state)
        for a, b in zip(ours(list(features.values())), theirs(features).values(), strict=True):
            assert torch.equal(a, b)
