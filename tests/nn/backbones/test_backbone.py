import weakref

import pytest
import torch

from maskkit.errors import MaskkitError
from maskkit.nn.backbones.backbone import Backbone, fold_batch_norm


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "darknet53"])
def test_features_by_stride(name: str) -> None:
    net = Backbone(name).eval()
    with torch.no_grad():
        features = net(torch.randn(1, 3, 96, 64))
    assert list(features) == [8, 16, 32]
    for stride, feature in features.items():
        assert feature.shape == (1, net.channels[stride], 96 // stride, 64 // stride)


def test_frozen_batch_norm_neither_learns_nor_moves() -> None:
    net = Backbone("resnet18", norm="frozen").train()
    before = {n: b.clone() for n, b in net.named_buffers()}
    sum(f.sum() for f in net(torch.randn(2, 3, 64, 64)).values()).backward()  # type: ignore[union-attr]
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(p.grad is None for m in norms for p in m.parameters())
    trained = Backbone("resnet18", norm="train").train()
    trained(torch.randn(2, 3, 64, 64))
    assert int(trained.body.bn1.num_batches_tracked) == 1


def test_batch_norm_is_frozen_from_the_first_step_on() -> None:
    net = Backbone("resnet18", norm="frozen")  # nobody has called train() yet
    before = net.body.bn1.running_mean.clone()
    net(torch.randn(2, 3, 64, 64))
    assert torch.equal(net.body.bn1.running_mean, before)


def test_the_stem_alone_can_be_frozen() -> None:
    net = Backbone("resnet18", norm="train", frozen_stride=2)
    frozen = {n.split(".")[0] for n, p in net.body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1"}


@pytest.mark.parametrize(
    ("name", "knobs", "reason"),
    [
        ("no_such_net", {}, "no_such_net"),
        ("resnet18", {"frozen_stride": 1}, "frozen_stride is 1"),
        ("resnet18", {"strides": (8, 64)}, r"not at \[64\]"),
    ],
)
def test_what_a_backbone_cannot_be_is_said(name: str, knobs: dict, reason: str) -> None:
    with pytest.raises(MaskkitError, match=reason):
        Backbone(name, **knobs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "darknet53"])
def test_layers_up_to_a_stride_are_frozen(name: str) -> None:
    net = Backbone(name, norm="train", frozen_stride=4)
    learning = [n for n, p in net.body.named_parameters() if p.requires_grad]
    frozen = [n for n, p in net.body.named_parameters() if not p.requires_grad]
    first = {"resnet18": "layer2", "mobilenetv2_100": "blocks.2", "darknet53": "stages_2"}[name]
    assert frozen
    assert all(n.startswith(first) or n > first for n in learning)
    assert learning[0].startswith(first)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "darknet53"])
def test_folding_keeps_the_function_and_removes_every_norm(name: str) -> None:
    torch.manual_seed(0)
    net = Backbone(name, norm="train").train()
    for _ in range(2):
        net(torch.randn(4, 3, 64, 64))  # statistics that are not the identity
    net.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(images)
        fold_batch_norm(net, images)
        after = net(images)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in net.modules())
    for stride in before:
        scale = before[stride].abs().max()
        assert torch.allclose(before[stride], after[stride], atol=1e-4 * float(scale))


def test_folding_lets_the_features_of_a_large_image_go() -> None:
    net = torch.nn.Sequential(*(m for _ in range(2) for m in (torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))))
    made: list[weakref.ref] = []
    alive: list[bool] = []
    net[0].register_forward_hook(lambda _, __, output: made.append(weakref.ref(output)))
    net[3].register_forward_hook(lambda *_: alive.append(made[0]() is not None))
    fold_batch_norm(net, torch.zeros(1, 3, 8, 8))
    assert alive == [False]
    assert [type(m) for m in net] == [torch.nn.Conv2d, torch.nn.Identity] * 2


def test_a_network_without_batch_norm_is_not_run_for_it() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.GroupNorm(1, 3))
    runs: list[bool] = []
    net.register_forward_hook(lambda *_: runs.append(True))
    assert fold_batch_norm(net, torch.zeros(1, 3, 8, 8)) is net
    assert not runs


def test_stride_in_the_first_convolution_is_the_resnet_of_detectron2() -> None:
    net = Backbone("resnet50", stride_in_1x1=True).eval()
    with torch.no_grad():
        features = net(torch.randn(1, 3, 64, 96))
    assert [f.shape[2:] for f in features.values()] == [(8, 12), (4, 6), (2, 3)]
    strided = [b.conv1.stride[0] * 10 + b.conv2.stride[0] for b in (net.body.layer1[0], net.body.layer2[0])]
    assert strided == [11, 21]
    with pytest.raises(MaskkitError, match="bottleneck"):
        Backbone("resnet18", stride_in_1x1=True)
