import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.dilation import AtrousDepthwise, dilate


@given(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13), st.integers(2, 5), st.booleans())
def test_interleaved_images_are_the_dilated_convolution(b: int, h: int, w: int, rate: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=rate, dilation=rate, groups=4, bias=bias).double()
    ours = AtrousDepthwise.of(conv)
    x = torch.randn(b, 4, h, w, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(b, 4, h, w, dtype=torch.float64)
    found, wanted = ours.interleaved(x), conv(x)
    torch.testing.assert_close(found, wanted)
    inputs = [x, *conv.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(wanted, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("training", [False, True])
def test_interleaved_where_it_is_faster(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = AtrousDepthwise(4, 4, 3, padding=2, dilation=2, groups=4).train(training)
    called = []
    monkeypatch.setattr(conv, "interleaved", lambda x: called.append(x) or x)
    conv(torch.randn(1, 4, 9, 7))
    assert len(called) == training
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.randn(1, 4, 9, 7))
    assert len(called) == 2 * training
    with torch.no_grad():
        conv(torch.randn(1, 4, 9, 7))
    assert len(called) == 2 * training, "nothing is learnt from it"


def test_depthwise_convolutions_of_a_dilated_backbone_are_of_this_kind() -> None:
    plain = Backbone("mobilenetv2_100", (32,), pad_same=True)
    keys = list(plain.state_dict())
    net = dilate(plain, 8)
    assert list(net.state_dict()) == keys
    dilated = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
    assert len(dilated) == 10, "all behind the two strides that were taken out"
    assert all(isinstance(m, AtrousDepthwise) and m.stride == (1, 1) for m in dilated)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18"])
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("training", [False, True])
def test_dilation_agrees_with_timm(name: str, stride: int, training: bool) -> None:
    torch.manual_seed(0)
    ours = dilate(Backbone(name, (32,)), stride).train(training)  # its batch norm is frozen
    theirs = timm.create_model(name, features_only=True, out_indices=(4,), output_stride=stride).eval()
    theirs.load_state_dict(ours.body.state_dict())
    images = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(ours(images)[32], theirs(images)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18"])
def test_features_above_the_deepest_are_dilated_alike(name: str) -> None:
    whole, shorter = dilate(Backbone(name, (16, 32)), 8).eval(), dilate(Backbone(name, (16,)), 8).eval()
    shorter.load_state_dict({n: t for n, t in whole.state_dict().items() if n in shorter.state_dict()})
    images = torch.randn(1, 3, 64, 96)
    assert shorter(images)[16].shape[2:] == (8, 12)
    torch.testing.assert_close(shorter(images)[16], whole(images)[16])
