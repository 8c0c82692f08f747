"""The runtime of PyTorch: what it leaves as it was, and when its copy is made anew."""

from typing import Any

import numpy as np
import pytest
import torch

import maskkit
from maskkit.errors import MaskkitError
from maskkit.infer.torch_runtime import TorchRuntime, best_device, find_device
from maskkit.nn import winograd
from tests.small import small_model

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
SIZES = np.array([[64, 64], [40, 64]])


def test_it_gives_the_fields_that_the_decoder_reads() -> None:
    model = small_model()
    found = TorchRuntime(model).run(IMAGES, SIZES)
    assert set(found) == set(model.decoder.outputs._fields)
    assert all(values.dtype == np.float32 and len(values) == 2 for values in found.values())


def test_the_model_is_left_as_it_was() -> None:
    model = small_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names, learnt = [type(m) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    for runtime in (TorchRuntime(model), TorchRuntime(model, "cpu"), TorchRuntime(model, fold=True)):
        runtime.run(IMAGES, SIZES)
    assert model.training
    assert [type(m) for m in model.modules()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == learnt


def test_without_a_copy_the_model_itself_runs_and_a_folded_copy_equals_it() -> None:
    model = small_model()
    plain, folded = TorchRuntime(model), TorchRuntime(model, fold=True)
    with plain.evaluating(torch.from_numpy(IMAGES)) as network:
        assert network is model
    one, other = plain.run(IMAGES, SIZES), folded.run(IMAGES, SIZES)
    np.testing.assert_allclose(np.sort(one["scores"]), np.sort(other["scores"]), atol=1e-4)


def test_a_copy_on_a_cpu_computes_convolutions_by_winograd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IS_FASTER": True, "LEAST_IN": 1, "LEAST_OUT": 1, "LEAST_TILES": 1}.items():
        monkeypatch.setattr(winograd, name, value)
    model = small_model()
    plain, fast = TorchRuntime(model), TorchRuntime(model, fold=True)
    network = fast._network(torch.from_numpy(IMAGES))
    assert any(isinstance(m, winograd.WinogradConv) for m in network.modules())
    assert not any(isinstance(m, winograd.WinogradConv) for m in model.modules())
    one, other = plain.run(IMAGES, SIZES), fast.run(IMAGES, SIZES)
    np.testing.assert_allclose(np.sort(one["scores"]), np.sort(other["scores"]), atol=1e-4)


def test_the_copy_follows_the_weights() -> None:
    model: Any = small_model()
    runtime = TorchRuntime(model, fold=True)
    first = runtime._network(torch.from_numpy(IMAGES))
    assert runtime._network(torch.from_numpy(IMAGES)) is first
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
    assert runtime._network(torch.from_numpy(IMAGES)) is not first
    np.testing.assert_allclose(
        runtime.run(IMAGES, SIZES)["scores"], TorchRuntime(model).run(IMAGES, SIZES)["scores"], atol=1e-4
    )


def test_the_copy_has_no_second_set_of_weights() -> None:
    net = small_model()
    ours = {p.data_ptr() for p in net.parameters()}
    network = TorchRuntime(net, fold=True)._network(torch.from_numpy(IMAGES))
    flat = [p.data_ptr() in ours for p in network.parameters() if p.dim() != 4]  # kernels have another order in memory
    assert sum(flat) > 10
    assert not any(p.requires_grad for p in network.parameters())


def test_devices_are_found_by_name() -> None:
    assert find_device("cpu") == find_device(torch.device("cpu")) == find_device("cpu:0") == torch.device("cpu")
    assert find_device(None) == find_device("auto") == best_device()
    assert find_device(str(best_device())).type == best_device().type


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:-1", "cuda:x", "gpu", "cuda:70", "cpu:7", "meta", "xla", 5.5])
def test_a_device_that_is_not_there_is_one_clear_error(name: Any) -> None:
    with pytest.raises(MaskkitError, match=r"device.*; this machine has: .*cpu$"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "nonsense"])
def test_without_an_accelerator_load_says_so_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(MaskkitError, match=f"{name}'.*; this machine has: cpu$"):
        maskkit.load(device=name)
