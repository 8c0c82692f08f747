import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save_file

from maskkit import zoo
from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.header import read_header
from maskkit.engine.optim import make_optimizer
from maskkit.engine.state import load_state, save_state
from maskkit.errors import DataError
from maskkit.prediction import Categories

CLASSES = Categories(("cat", "dog", "cow"), (3, 17, 4))


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return zoo.model_class("tinynet")(tiny.model)


def train_a_little(model, optimizer):
    for _ in range(3):
        model(torch.randn(2, 3, 32, 32)).maps.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("averaged", [False, True])
def test_the_state_of_a_training_comes_back_bit_for_bit(tmp_path, model, tiny, kind, averaged):
    model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, replace(tiny.train, optimizer=kind))
    average = deepcopy(model) if averaged else None
    train_a_little(model, optimizer)
    path = tmp_path / "last.safetensors"
    save_state(path, model, average, optimizer, tiny, CLASSES, {"step": 3, "evaluated": 0, "best": 0.5})

    again = zoo.model_class("tinynet")(tiny.model).to(memory_format=torch.channels_last)
    again_average = deepcopy(again) if averaged else None
    again_optimizer = make_optimizer(again, replace(tiny.train, optimizer=kind))
    info = load_state(path, again, again_average, again_optimizer)
    assert info == {"step": 3, "evaluated": 0, "best": 0.5}
    assert same(again.state_dict(), model.state_dict())
    if average is not None and again_average is not None:
        assert same(again_average.state_dict(), average.state_dict())
        assert not same(again_average.state_dict(), again.state_dict())
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        then, now = optimizer.state[old], again_optimizer.state[new]
        assert same(then, now)
        assert {k: t.stride() for k, t in then.items()} == {k: t.stride() for k, t in now.items()}
    torch.manual_seed(1)
    train_a_little(model, optimizer)
    torch.manual_seed(1)
    train_a_little(again, again_optimizer)
    assert same(again.state_dict(), model.state_dict()), "the next steps are the same too"


def test_the_last_checkpoint_predicts_with_the_average(tmp_path, model, tiny):
    average = deepcopy(model)
    optimizer = make_optimizer(model, tiny.train)
    train_a_little(model, optimizer)
    save_state(tmp_path / "last.safetensors", model, average, optimizer, tiny, CLASSES, {})
    assert same(load_model(tmp_path / "last.safetensors").model.state_dict(), average.state_dict())


def test_a_damaged_state_is_one_clear_error(tmp_path, model, tiny):
    optimizer = make_optimizer(model, replace(tiny.train, optimizer="adamw"))
    train_a_little(model, optimizer)
    path = tmp_path / "last.safetensors"
    info = {"step": 3, "best": None, "evaluated": 0}
    save_state(path, model, None, optimizer, tiny, CLASSES, info)
    load_state(path, model, None, optimizer)
    tensors, header = load(path.read_bytes()), {"maskkit": json.dumps(read_header(path))}
    moment = next(n for n in tensors if n.startswith("optimizer/") and tensors[n].ndim)
    for damaged in (
        {**tensors, moment: tensors[moment][:1]},
        {**tensors, "optimizer/no-such/exp_avg": torch.zeros(3)},
        {**tensors, "optimizer/": torch.zeros(3)},
        {**tensors, "head.bias": tensors["head.bias"] * float("nan")},
        {n: t for n, t in tensors.items() if n != "head.bias"},
    ):
        save_file(damaged, path, header)
        with pytest.raises(DataError, match=r"last\.safetensors: "):
            load_state(path, model, None, optimizer)
    for wrong in ({}, {"step": 3}, {**info, "step": "3"}, {**info, "evaluated": None}):
        save_state(path, model, None, optimizer, tiny, CLASSES, wrong)
        with pytest.raises(DataError, match="holds no state of a training"):
            load_state(path, model, None, optimizer)
