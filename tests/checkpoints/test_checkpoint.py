import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from maskkit import zoo
from maskkit.checkpoints import checkpoint
from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.errors import DataError
from maskkit.prediction import Categories

CLASSES = Categories(("cat", "dog", "cow"), (3, 17, 4))


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return zoo.model_class("tinynet")(tiny.model)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_checkpoint_alone_is_enough_to_use_the_model(tmp_path, model, tiny):
    config = replace(tiny, model=replace(tiny.model, width=8), train=replace(tiny.train, lr=0.25))
    path = tmp_path / "runs" / "best.safetensors"
    checkpoint.save_model(path, model, config, CLASSES, {"step": 7, "metrics": {"AP": 0.5}})
    loaded = checkpoint.load_model(path)
    assert loaded.config == config
    assert type(loaded.config.model) is type(tiny.model), "the knobs of the method are kept, not only the shared ones"
    assert loaded.categories == CLASSES
    assert loaded.info == {"step": 7, "metrics": {"AP": 0.5}}
    assert not loaded.model.training
    assert same(loaded.model.state_dict(), model.state_dict())
    assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"], "no temporary file stays"


def test_tensors_that_share_memory_or_lie_channels_last_are_saved(tmp_path, model, tiny):
    model = model.to(memory_format=torch.channels_last)
    model.head.bias = torch.nn.Parameter(model.backbone[0].bias[:3])
    checkpoint.save_model(tmp_path / "m.safetensors", model, tiny, CLASSES, {})
    assert same(checkpoint.load_model(tmp_path / "m.safetensors").model.state_dict(), model.state_dict())


def test_a_failed_writing_leaves_the_previous_file(tmp_path, model, tiny, monkeypatch):
    path = tmp_path / "last.safetensors"
    checkpoint.save_model(path, model, tiny, CLASSES, {"step": 1})

    def full_disk(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("maskkit.checkpoints.foreign.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save_model(path, model, tiny, CLASSES, {"step": 2})
    assert checkpoint.load_model(path).info == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_damaged_and_foreign_files_give_one_clear_error(tmp_path, model, tiny):
    good = tmp_path / "good.safetensors"
    checkpoint.save_model(good, model, tiny, CLASSES, {})
    content = good.read_bytes()
    cases = {
        "cut.safetensors": (content[: len(content) // 2], "damaged or cut off"),
        "header.safetensors": (content[:200], "damaged or cut off"),
        "empty.safetensors": (b"", "not a safetensors file"),
        "text.safetensors": (b"I am a text, not a model", "not a safetensors file"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: {message}"):
            checkpoint.load_model(tmp_path / name)
    with pytest.raises(DataError, match=r"gone.safetensors: there is no such weight file"):
        checkpoint.load_model(tmp_path / "gone.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="no maskkit model; convert it: maskkit import"):
        checkpoint.load_model(tmp_path / "other.safetensors")


def rewrite(path, damage):
    """Change the description in a checkpoint."""
    with safe_open(path, framework="pt") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (a safe_open is no dict)
        header = json.loads(file.metadata()["maskkit"])
    damage(header)
    save_file(tensors, path, metadata={"maskkit": json.dumps(header)})


def test_a_description_that_cannot_be_used_gives_one_clear_error(tmp_path, model, tiny):
    path = tmp_path / "m.safetensors"
    changes = [
        (lambda h: h.update(format=99), "is newer than this maskkit; upgrade maskkit"),
        (lambda h: h["config"].update(preset="tinynet-no-such"), "there is no model 'tinynet-no-such'"),
        (lambda h: h["config"]["model"].update(knob=1), "knob"),
        (lambda h: h["config"]["model"].update(width=4), "do not fit its own description"),
        (lambda h: h["decoder"].update(offset=0.5), "to be decoded by OverInput"),
        (lambda h: h.update(decoder={"name": "magic"}), "there is no decoder 'magic'"),
        (lambda h: h.pop("decoder"), "description is damaged"),
        (lambda h: h.pop("categories"), "description is damaged"),
        (lambda h: h.pop("format"), "description is damaged"),
        (lambda h: h["config"].pop("model"), "configuration that this version cannot use"),
    ]
    for damage, message in changes:
        checkpoint.save_model(path, model, tiny, CLASSES, {})
        rewrite(path, damage)
        with pytest.raises(DataError, match=message):
            checkpoint.load_model(path)


def test_things_and_stuff_are_kept_and_older_files_know_only_things(tmp_path, model, tiny):
    path, classes = tmp_path / "m.safetensors", Categories.of(["cat", "dog"], stuff=["sky"])
    checkpoint.save_model(path, model, tiny, classes, {})
    assert checkpoint.load_model(path).categories == classes
    rewrite(path, lambda h: h["categories"].pop("things"))
    assert checkpoint.load_model(path).categories == Categories.of(["cat", "dog", "sky"])


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: Path(path).write_bytes(pickle.dumps(content, 2))])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path, write):
    marker = tmp_path / "owned"
    path = tmp_path / "weights.pth"
    write({"state_dict": {"a": torch.zeros(1)}, "x": Hostile(f"touch {marker}")}, path)
    with pytest.raises(DataError, match=r"weights.pth: not read.* a pickle can run code"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists(), "the file was hostile indeed"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"model": {"a.weight": torch.ones(5)}, "model_ema": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{n}": t for n, t in s.items()},
    ],
)
def test_foreign_pickles_are_unwrapped(tmp_path, wrap):
    state = {"a.weight": torch.arange(3.0), "b.bias": torch.zeros(2)}
    torch.save(wrap(state), tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), state)


def test_safetensors_are_known_by_content_not_by_name(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", b"PK\x03\x04 and so on", b"not a pickle", np.random.default_rng(0).bytes(100)],
    ids=["empty", "pickle start", "zip start", "text", "noise"],
)
def test_a_file_that_is_no_checkpoint_gives_one_clear_error(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"w.pth: not read"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_pickle_without_tensors_gives_one_clear_error(tmp_path):
    for content in ({"epoch": 3}, [torch.zeros(1)], torch.zeros(2), {}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(DataError, match="no named tensors"):
            read_checkpoint(tmp_path / "w.pt")
