import torch
import torch.nn.functional as F

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
