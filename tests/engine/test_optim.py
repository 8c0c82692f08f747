import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maskkit.config import TrainConfig
from maskkit.engine.optim import (
    average_decay,
    freeze,
    learning_rate,
    make_optimizer,
    param_groups,
    precision_for,
    precision_notes,
    set_rate,
    update_average,
)
from maskkit.errors import MaskkitError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


def test_every_trainable_parameter_is_in_exactly_one_group_and_the_order_is_fixed():
    net = Net()
    groups = param_groups(net, TrainConfig(backbone_lr=0.1, weight_decay=0.01, decay_norm=False))
    assert [(g["lr_factor"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, 0.01, [(4, 3, 3, 3)]),
        (0.1, 0.0, [(4,), (4,), (4,)]),
        (1.0, 0.01, [(2, 4, 1, 1)]),
        (1.0, 0.0, [(2,)]),
    ]
    assert {g["weight_decay"] for g in param_groups(net, TrainConfig(weight_decay=0.01))} == {0.01}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_group_moves_by_its_share_of_the_rate(kind):
    net = Net()
    config = TrainConfig(optimizer=kind, backbone_lr=0.5, weight_decay=0.0)
    optimizer = make_optimizer(net, config)
    set_rate(optimizer, 0.02)
    before = deepcopy(net.state_dict())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {n: (before[n] - p).mean().item() for n, p in net.named_parameters()}
    assert moved["head.weight"] == pytest.approx(0.02, rel=1e-4)
    assert moved["backbone.0.weight"] == pytest.approx(0.01, rel=1e-4)
    assert moved["frozen"] == 0


def test_an_optimizer_takes_a_model_without_a_backbone():
    assert make_optimizer(nn.Conv2d(1, 1, 1), TrainConfig()).param_groups[2]["params"]


def test_the_rate_warms_up_from_a_tenth_and_falls_at_the_milestones():
    config = TrainConfig(lr=1.0, schedule="steps", milestones=(0.5, 0.75), warmup=10)
    rates = [learning_rate(s, 1000, config) for s in (0, 5, 10, 499, 500, 749, 750, 999)]
    assert rates == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_follows_torch_after_the_warm_up():
    config = TrainConfig(lr=0.3, schedule="cosine", warmup=20)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        if step >= 20:
            assert learning_rate(step, 400, config) == pytest.approx(oracle.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        oracle.step()


@given(st.integers(1, 300), st.integers(0, 400), st.sampled_from(["steps", "cosine"]))
def test_the_rate_is_always_positive_and_never_above_its_peak(total, warmup, schedule):
    config = TrainConfig(lr=0.5, warmup=warmup, schedule=schedule)
    rates = [learning_rate(s, total, config) for s in range(total)]
    assert all(0 < r <= 0.5 and math.isfinite(r) for r in rates)
    assert max(rates) > 0.45, "a short run is not all warm-up"


@pytest.mark.parametrize(
    ("machine", "onednn", "avx512_bf16", "amx", "precision"),
    [
        ("x86_64", True, True, False, "bf16"),
        ("AMD64", True, False, True, "bf16"),
        ("x86_64", True, False, False, "fp32"),  # AVX-512 alone: oneDNN emulates, three times as slow as fp32
        ("x86_64", False, False, False, "fp32"),
        ("aarch64", True, False, False, "bf16"),
    ],
)
def test_bf16_is_for_processors_that_know_it(monkeypatch, machine, onednn, avx512_bf16, amx, precision):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpu = torch.device("cpu")
    assert precision_for(cpu) == precision
    assert bool(precision_notes("bf16", cpu)) is (precision == "fp32")
    assert not precision_notes("fp32", cpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert precision_for(cpu) == "fp32"
    assert precision_for(torch.device("cuda")) == "bf16"


def test_the_average_moves_slowly_once_it_knows_something_and_copies_counters():
    model = nn.BatchNorm1d(2)
    average = deepcopy(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.get_buffer("num_batches_tracked").fill_(7)
    update_average(average, model, decay=0.9, step=10_000)
    assert torch.allclose(average.weight, torch.tensor([1.2, 1.2]))
    assert average.num_batches_tracked == 7
    early = deepcopy(nn.BatchNorm1d(2))
    update_average(early, model, decay=0.9, step=0)
    assert torch.allclose(early.weight, torch.tensor([2.8, 2.8]))


def test_cosine_may_be_flat_at_first_and_end_above_zero():
    """RTMDet's schedule: constant for half of the run, then a cosine down to a twentieth."""
    config = TrainConfig(lr=2.0, schedule="cosine", warmup=0, flat=0.5, least=0.05)
    rates = [learning_rate(step, 1000, config) for step in (0, 250, 500, 750, 1000)]
    assert rates == pytest.approx([2, 2, 2, 2 * (0.05 + 0.95 / 2), 0.1])


def test_the_average_may_begin_with_the_weights_themselves_and_slow_down_over_many_steps():
    assert average_decay(0, 0.9998, 2000) == 0
    assert average_decay(1, 0.9998, 2000) == pytest.approx(0.9998 * (1 - math.exp(-2 / 2000)))
    assert average_decay(100_000, 0.9998, 2000) == pytest.approx(0.9998)
    assert average_decay(1, 0.9998) == pytest.approx(2 / 11)


def test_a_frozen_part_keeps_weights_and_statistics():
    net = Net()
    freeze(net, ["backbone"])
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    before = deepcopy(net.state_dict())
    net.train()
    net.head(net.backbone(torch.rand(2, 3, 8, 8))).sum().backward()
    optimizer = make_optimizer(net, TrainConfig())
    optimizer.step()
    changed = {n for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"head.weight", "head.bias"}
    other = Net()
    freeze(other, ["backbone.1", "head"])
    assert [n for n, p in other.named_parameters() if p.requires_grad] == ["backbone.0.weight", "backbone.0.bias"]


def test_what_cannot_be_frozen():
    with pytest.raises(
        MaskkitError, match=r"--train.freeze back: the model has no such part; its parts are backbone, he"
    ):
        freeze(Net(), ["back"])
    with pytest.raises(MaskkitError, match=r"--train.freeze backbone head: nothing is left to train"):
        freeze(Net(), ["backbone", "head"])
