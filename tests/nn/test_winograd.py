from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskkit.nn import winograd
from maskkit.nn.winograd import WinogradConv, convolve, profits, transform, use_winograd


@given(
    count=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(3, 21), st.integers(3, 21)),
    pad=st.integers(0, 1),
    bias=st.booleans(),
    at_once=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_it_is_the_convolution(
    count: int, channels: tuple[int, int], size: tuple[int, int], pad: int, bias: bool, at_once: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels[0], *size, generator=random)
    weight = torch.randn(channels[1], channels[0], 3, 3, generator=random)
    added = torch.randn(channels[1], generator=random) if bias else None
    expected = F.conv2d(images.double(), weight.double(), None if added is None else added.double(), padding=pad)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd, "TILES", at_once)
        found = convolve(images, transform(weight), added, pad)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max().clamp(min=1))


@given(
    count=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(3, 21), st.integers(3, 21)),
    pad=st.integers(0, 1),
    learns=st.tuples(*[st.booleans()] * 3),
    bias=st.booleans(),
    at_once=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_its_gradients_are_those_of_the_convolution(
    count: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    pad: int,
    learns: tuple[bool, bool, bool],
    bias: bool,
    at_once: int,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    shapes = [(count, channels[0], *size), (channels[1], channels[0], 3, 3), (channels[1],)][: 2 + bias]
    given_values = [torch.randn(shape, generator=random) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"IS_FASTER": True, "LEAST_IN": 1, "LEAST_OUT": 1, "LEAST_LEARNED": 1}.items():
            patch.setattr(winograd, name, value)
        patch.setattr(winograd, "TILES", at_once)
        module = use_winograd(nn.Conv2d(*channels, 3, padding=pad, bias=bias), learns=True)
        assert isinstance(module, WinogradConv)
        images = given_values[0].requires_grad_(learns[0])
        module.weight = nn.Parameter(given_values[1], learns[1])
        module.bias = nn.Parameter(given_values[2], learns[2]) if bias else None
        found = module(images)
        exact = [v.detach().double().requires_grad_(v.requires_grad) for v in (images, *module.parameters())]
        expected = F.conv2d(exact[0], exact[1], exact[2] if bias else None, padding=pad)
        assert found.requires_grad == expected.requires_grad
        if found.requires_grad:
            weights = torch.randn(expected.shape, generator=random)
            (F.relu(found * weights, inplace=True) ** 2).sum().backward()
            (F.relu(expected * weights.double()) ** 2).sum().backward()
    assert float((found - expected).detach().abs().max()) < 2e-5 * float(expected.detach().abs().max().clamp(min=1))
    for value, right in zip((images, *module.parameters()), exact, strict=True):
        if right.grad is None:
            assert value.grad is None
        else:
            assert value.grad is not None
            assert value.grad.shape == right.shape
            assert float((value.grad - right.grad).abs().max()) < 1e-4 * float(right.grad.abs().max().clamp(min=1))


def conv(**options: Any) -> nn.Conv2d:
    given: dict[str, Any] = {"in_channels": 96, "out_channels": 64, "kernel_size": 3, "padding": 1}
    return nn.Conv2d(**given | options)


@pytest.mark.parametrize(
    "module",
    [
        conv(kernel_size=1, padding=0),
        conv(stride=2),
        conv(dilation=2, padding=2),
        conv(groups=2),
        conv(padding_mode="reflect"),
        conv(padding=2),
        conv(padding="same"),
        conv(in_channels=64),
        conv(out_channels=32),
        conv().double(),
        nn.Linear(96, 64),
    ],
    ids=str,
)
def test_other_layers_stay_as_they_are(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "IS_FASTER", True)
    assert profits(conv())
    assert not profits(module)
    assert type(use_winograd(module)) is type(module)


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> WinogradConv:
    monkeypatch.setattr(winograd, "IS_FASTER", True)
    torch.manual_seed(0)
    module = use_winograd(conv())
    assert isinstance(module, WinogradConv)
    return module


def test_another_processor_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "IS_FASTER", False)
    assert type(use_winograd(conv())) is nn.Conv2d


def test_a_layer_in_two_places_is_changed_in_both_and_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "IS_FASTER", True)
    shared = conv()
    net = nn.ModuleList([nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared)])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    use_winograd(net)
    assert net[0][0] is net[1][0] is shared  # type: ignore[index]
    assert isinstance(shared, WinogradConv)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def half(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return call()


def test_of_weights_that_learn_nothing_is_kept_that_could_be_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "IS_FASTER", True)
    torch.manual_seed(0)
    module, images = conv(), torch.randn(2, 96, 32, 32)
    use_winograd(module, learns=True)
    with torch.no_grad():
        module.weight.mul_(2)
    with torch.inference_mode():
        changed = module(images)
        assert not torch.equal(changed, F.conv2d(images, module.weight, module.bias, 1, 1)), "by Winograd's algorithm"
        np.testing.assert_allclose(changed, F.conv2d(images, module.weight, module.bias, 1, 1), atol=1e-4)
        assert torch.equal(use_winograd(module)(images), changed), "and then once for all images"


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("case", ["compiled", "traced", "autocast", "double", "few tiles"])
def test_in_training_other_ways_to_compute_are_torchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "IS_FASTER", True)
    monkeypatch.setattr(winograd, "convolve", None)  # an error where it is called
    module, images = conv(), torch.randn(2, 96, 12 if case == "few tiles" else 32, 32)
    use_winograd(module, learns=True)
    if case == "double":
        module, images = module.double(), images.double()
    if case == "traced":
        traced: Any = torch.jit.trace(module, images, check_trace=False)
        found = traced(images)
    elif case == "compiled":
        found = torch.compile(module, backend="eager", fullgraph=True)(images)
    else:
        found = half(lambda: module(images)) if case == "autocast" else module(images)
    found.sum().backward()
    assert module.weight.grad is not None
    assert found.dtype == (torch.bfloat16 if case == "autocast" else images.dtype)


@pytest.mark.parametrize("case", ["gradients", "autocast", "few tiles"])
def test_where_it_does_not_pay_or_is_not_exact_enough_the_convolution_is_torchs(
    changed: WinogradConv, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(winograd, "convolve", refuse)
    images = torch.randn(1, 96, 12, 12 if case == "few tiles" else 32)
    if case == "gradients":
        changed(images).sum().backward()
        assert changed.weight.grad is not None
        return
    with torch.inference_mode():
        found = half(lambda: changed(images)) if case == "autocast" else changed(images)
        plain = half(lambda: F.conv2d(images, changed.weight, changed.bias, 1, 1)) if case == "autocast" else None
    expected = plain if plain is not None else F.conv2d(images, changed.weight, changed.bias, 1, 1)
    assert torch.equal(found, expected)


def test_any_layout_in_memory_and_channels_last_out(changed: WinogradConv) -> None:
    images = torch.randn(2, 96, 17, 22)
    with torch.inference_mode():
        expected = F.conv2d(images, changed.weight, changed.bias, 1, 1)
        layouts = (images, images.contiguous(memory_format=torch.channels_last), images.flip(3).flip(3), images.mT.mT)
        for given_images in layouts:
            found = changed(given_images)
            assert found.is_contiguous(memory_format=torch.channels_last)
            np.testing.assert_allclose(found, expected, atol=2e-5)
