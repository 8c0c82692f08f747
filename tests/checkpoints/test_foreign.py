"""Weights of other origin: what is around them, what they pretend to be, and what they are not."""

import os
import pickle
import random
import time
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from maskkit import zoo
from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.checkpoints.hub import import_state
from maskkit.cli import main
from maskkit.errors import DataError, MaskkitError
from tests.checkpoints.hostile import mutate

STATE = {"stem.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2), "count": torch.tensor(3)}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def prefixed(prefix: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


ITSELF: dict = {"state_dict": STATE, "epoch": 3}
ITSELF["model"] = ITSELF
ITSELF["list"] = [ITSELF]

WRAPPED = {
    "n_averaged": {"n_averaged": torch.tensor(5), **prefixed("module.")},
    "n_averaged of a compiled DDP": {"n_averaged": torch.tensor(5), **prefixed("module.module._orig_mod.")},
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "_orig_mod inside": {n.replace("stem.", "stem._orig_mod."): t for n, t in STATE.items()},
    "Lightning": {"state_dict": prefixed("model."), "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(9)}}}]},
    "Lightning net.": {"state_dict": prefixed("net."), "hyper_parameters": {"lr": 0.1}, "loops": {"a": {"b": 1}}},
    "timm": {"state_dict": OTHER, "state_dict_ema": STATE, "args": {"x": 1}},
    "ema.module": {"ema": {"module": STATE, "updates": 7}, "model": OTHER},
    "several levels": {"a": {"b": {"c": STATE}}},
    "a tensor beside": {"epoch": torch.tensor(3), "weights": STATE},
    "optimizer beside": {"weights": STATE, "optimizer": {"state": OTHER}, "lr_scheduler": {"x": torch.ones(1)}},
    "itself": ITSELF,
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_weights_are_found_in_what_is_around_them(tmp_path, kind, legacy) -> None:
    torch.save(WRAPPED[kind], tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert same(read_checkpoint(tmp_path / "w.pth"), STATE)


def test_wrappers_in_safetensors_too(tmp_path) -> None:
    save_file(prefixed("module._orig_mod."), tmp_path / "w.safetensors")
    assert same(read_checkpoint(tmp_path / "w.safetensors"), STATE)


def test_names_that_only_look_like_a_wrapper_stay(tmp_path) -> None:
    for state in (
        {**prefixed("model."), "head.weight": STATE["head.bias"]},
        prefixed("backbone."),
        prefixed("modules."),
    ):
        torch.save(state, tmp_path / "w.pth")
        assert same(read_checkpoint(tmp_path / "w.pth"), state)


@pytest.mark.parametrize(
    "content",
    [
        {"generator": STATE, "discriminator": OTHER},
        {"student": {"a": STATE}, "teacher": {"a": OTHER}},
        {**prefixed("student."), **prefixed("teacher.", OTHER)},
    ],
)
def test_several_networks_are_an_error_with_a_remedy(tmp_path, content) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth: contains .*save the one to use: "):
        read_checkpoint(tmp_path / "w.pth")


def test_of_a_network_and_its_average_the_average_is_taken(tmp_path) -> None:
    torch.save({**prefixed("model.", OTHER), **prefixed("ema_model.")}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"), STATE)


def test_a_model_averaged_by_pytorch_is_imported(tmp_path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(3, 2)

    averaged = AveragedModel(Wrapped())
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    assert set(read_checkpoint(tmp_path / "swa.pth")) == {"part.weight", "part.bias"}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_contains_itself_ends(tmp_path, legacy) -> None:
    content: dict = {"epoch": 1}
    content["model"] = content["state_dict"] = content
    deep: dict = {}
    for _ in range(300):
        deep = {"model": deep, "state_dict": deep}
    for inside in (content, deep, {"a": [content] * 3}, OrderedDict(model=content)):
        torch.save(inside, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        began = time.process_time()
        with pytest.raises(DataError, match="contains no named tensors"):
            read_checkpoint(tmp_path / "w.pth")
        assert time.process_time() - began < 2


def test_an_archive_that_unpacks_to_more_than_it_has_is_refused_by_its_directory(tmp_path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(4_000_000)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.pth: not read: it is packed to unpack to 16\d+ bytes from \d+"):
        read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_larger_than_their_file_are_refused(tmp_path, legacy) -> None:
    path = tmp_path / "w.pth"
    for tensor in (torch.zeros(1).expand(10**6, 10**6), torch.zeros(3, device="meta"), torch.zeros(3).to_sparse()):
        torch.save({"a.weight": tensor}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(DataError, match=r"w\.pth: .*no plain tensor"):
            read_checkpoint(path)
    torch.save({"a.weight": torch.zeros(3, dtype=torch.complex64)}, path)
    with pytest.raises(DataError, match="no plain tensor"):
        read_checkpoint(path)


LOOKS = {
    "m.onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX graph"),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 600, "HDF5"),
    "no-ending": (b"\x89HDF\r\n\x1a\n" + b"\0" * 600, "HDF5"),
    "m.tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 600, "TensorFlow Lite"),
    "m.pdparams": (pickle.dumps({"a": np.zeros(3)}, 2), "PaddlePaddle"),
    "m.caffemodel": (b"\x0a\x07example" + b"\0" * 600, "Caffe weights"),
    "m.params": (b"\0" * 600, "MXNet"),
    "m.index": (b"\0" * 600, "TensorFlow checkpoint"),
    "m.data-00000-of-00001": (b"\0" * 600, "TensorFlow checkpoint"),
    "m.pth.tar.gz": (b"\x1f\x8b\x08\0" + b"\0" * 600, "compressed archive"),
    "w.pth": (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "empty.pth": (b"", "it is empty"),
    "m.npy": (b"\x93NUMPY\x01\0" + b" " * 600, "NumPy array"),
    "m.gguf": (b"GGUF\x03\0\0\0" + b"\0" * 600, "GGUF"),
    "m.yaml": (b"model: yolact\n" * 50, "a configuration"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_files_of_other_frameworks_are_named_with_what_to_do(tmp_path, name, capsys) -> None:
    content, looks_like = LOOKS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not read: it") as error:
        read_checkpoint(tmp_path / name)
    line = str(error.value)
    assert looks_like in line
    assert line.startswith(str(tmp_path / name))
    assert line.isprintable()
    assert len(line) < 600


def test_archives_of_other_content_are_named(tmp_path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", "x")
    for name, word in (("m.npz", "NumPy arrays"), ("script.pt", "TorchScript"), ("m.keras", "Keras")):
        with pytest.raises(DataError, match=f"{name}: not read: it looks like .*{word}"):
            read_checkpoint(tmp_path / name)


def test_what_a_pickle_holds_besides_tensors_is_named(tmp_path) -> None:
    torch.save({"state_dict": STATE, "when": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth: not read: .*it holds pathlib\.\w*Path.*safetensors"):
        read_checkpoint(tmp_path / "w.pth")


def test_mutated_pickles_end_in_one_line(tmp_path) -> None:
    path, rng = tmp_path / "w.pth", random.Random(6)
    for legacy in (False, True):
        torch.save({"state_dict": STATE, "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for _ in range(150):
            path.write_bytes(mutate(content, rng, len(content)))
            began = time.process_time()
            said = str(path)
            try:
                read_checkpoint(path)
            except MaskkitError as error:
                said = str(error)
            assert str(path) in said
            assert said.isprintable()
            assert time.process_time() - began < 2


def test_pipes_and_folders_are_refused_at_once(tmp_path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    for name, kind in (("pipe.pth", "a named pipe"), ("folder.pth", "a folder")):
        with pytest.raises(DataError, match=f"{name}: is {kind}"):
            read_checkpoint(tmp_path / name)
        assert main(["import", str(tmp_path / name), "--model", "yolact-resnet50", "--out", str(tmp_path / "o")]) == 1
        assert kind in capsys.readouterr().err


@pytest.mark.parametrize("share", [1.0, 1e-4])
def test_weights_that_are_no_numbers_are_not_imported(tmp_path, share, monkeypatch) -> None:
    method = replace(zoo.method("tinynet"), rename=dict)
    monkeypatch.setattr(zoo, "method", lambda _: method)
    official = method.model(zoo.preset("tinynet").model).state_dict()
    import_state(official, "tinynet", tmp_path / "good.safetensors", "x.pth")
    damaged = official["head.weight"].clone()
    damaged.view(-1)[: max(1, int(share * damaged.numel()))] = float("nan")
    with pytest.raises(DataError, match=r"1 of \d+ tensors hold NaN or infinity, the first is 'head\.weight'"):
        import_state({**official, "head.weight": damaged}, "tinynet", tmp_path / "o.safetensors", "x.pth")
    assert not (tmp_path / "o.safetensors").exists()
