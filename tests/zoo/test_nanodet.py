"""Checkpoints of NanoDet-Plus as its authors release them."""

import sys
from types import ModuleType

import torch

from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.zoo.nanodet import renamed


def test_of_a_checkpoint_of_lightning_the_average_is_taken(tmp_path, monkeypatch) -> None:
    """The released file has the state of the training beside the network, its average and the auxiliary head.

    Lightning before 1.5 put the state of a callback under its class.
    """
    modules = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": modules[-1]})
    monkeypatch.setattr(sys.modules[modules[-1]], "ModelCheckpoint", callback, raising=False)
    raw, average = torch.rand(2, 24, 3, 3, 3)
    state = {
        f"{network}.{name}": tensor
        for network, stem in (("model", raw), ("avg_model", average))
        for name, tensor in (("backbone.conv1.0.weight", stem), ("aux_head.cls_convs.0.conv.weight", torch.zeros(1)))
    }
    content = {
        "epoch": 299,
        "global_step": 369_600,
        "pytorch-lightning_version": "1.3.0",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "callbacks": {callback: {"best_model_score": torch.tensor(0.3), "best_model_path": "x"}},
        "lr_schedulers": [{"T_max": 300}],
    }
    torch.save(content, tmp_path / "nanodet.ckpt")
    found = renamed(read_checkpoint(tmp_path / "nanodet.ckpt"))
    assert list(found) == ["backbone.stem.conv.weight"]
    assert torch.equal(found["backbone.stem.conv.weight"], average.flip(1))
