"""Published weights from a server on loopback: in every form, with every fault, and with what a licence asks for."""

import errno
import hashlib
import io
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save

import maskkit
from maskkit import api, zoo
from maskkit.checkpoints import cache, download, hub
from maskkit.checkpoints.download import Published, Unreachable
from maskkit.checkpoints.find import find_weights
from maskkit.cli import main
from maskkit.errors import DataError, FileError, MaskkitError
from maskkit.zoo.card import Weights
from tests.checkpoints.stub_server import Stub, everything_in, serving

TINY = "tinynet"


@pytest.fixture(scope="module")
def server():
    with serving() as stub:
        yield stub


@pytest.fixture
def stub(server, tmp_path, monkeypatch):
    for part in (server.files, server.requests, server.breaks):
        part.clear()
    server.ignores_ranges = False
    monkeypatch.setenv("MASKKIT_HOME", str(tmp_path / "home"))
    for name in cache.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture
def publish(stub, monkeypatch):
    """A function that lets the card of the tiny method publish ``content``. Official names begin with ``net0.``."""

    def rename(state):
        return {name.replace("net0.", ""): tensor for name, tensor in state.items()}

    def card(content: bytes, name: str = "tiny.pth", **fields) -> Weights:
        url = stub.publish(name, content)
        weights = Weights(**{"source": "a zoo", "licence": "MIT", "url": url, **fields})
        plain = zoo.preset(TINY)
        preset = replace(plain, weights=weights)
        method = replace(zoo.method(TINY), rename=rename, presets=(preset,))
        monkeypatch.setattr(zoo, "preset", lambda name: preset)
        monkeypatch.setattr(zoo, "method", lambda name: method)
        return weights

    return card


def official() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return {f"net0.{n}": torch.rand(t.shape).to(t.dtype) for n, t in api.create_model(TINY).state_dict().items()}


def saved(content: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def forms() -> dict[str, bytes]:
    state = official()
    other = {name: tensor * 0 for name, tensor in state.items()}
    old = {"_use_new_zipfile_serialization": False}
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    return {
        "zip.pth": saved(state),
        "legacy.pth": saved(state, **old),
        "w.safetensors": save(state),
        "state_dict.pth": saved({"meta": {"epoch": 12, "CLASSES": ("a",)}, "state_dict": state}, **old),
        "model.pth": saved({"model": state, "optimizer": {"state": {}}, "iteration": 9}),
        "module.pth": saved({f"module.{n}": t for n, t in state.items()}),
        "ema.pth": saved({"model": other, "model_ema": state}),
        "model_final_0a1b2c.pkl": pickle.dumps({"model": arrays, "__author__": "a zoo"}),
        "best.pth?dl=1": saved({"model_state": state, "best_score": np.float64(0.7)}),
    }


@pytest.mark.parametrize("name", list(forms()))
def test_every_published_form_is_fetched_verified_converted_and_predicted_with(
    publish, stub, name, tmp_path, monkeypatch, said
) -> None:
    content = forms()[name]
    publish(content, name, sha256=hashlib.sha256(content).hexdigest()[:8], bytes=len(content))
    segmenter = maskkit.load(TINY, device="cpu")
    weights = segmenter.runtime.model.state_dict()  # type: ignore[attr-defined]
    wanted = {n.removeprefix("net0."): t for n, t in official().items()}
    assert all(torch.equal(weights[n], t) for n, t in wanted.items())
    assert segmenter.info["licence"] == "MIT"
    assert segmenter.info["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(segmenter.predict(np.zeros((64, 64, 3), np.uint8), score=0.0)) > 0
    assert "weights of a zoo, licence MIT" in said.text
    assert len(stub.requests) == 1
    # the second time nothing is asked for, and the licence is not shown again
    said.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    maskkit.load(TINY, device="cpu")
    assert len(stub.requests) == 1
    assert not said.text
    assert [name.split("/")[0] for name in everything_in(tmp_path / "home")] == ["converted"]


def test_the_command_line_fetches_by_name(publish, tmp_path, capsys, monkeypatch) -> None:
    publish(forms()["zip.pth"])
    monkeypatch.setattr(zoo, "list_models", lambda: [TINY])
    monkeypatch.setattr(zoo, "presets", lambda: [zoo.preset(TINY)])
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (64, 64)).save(image)
    assert main(["predict", str(image), "--model", TINY, "--out", str(tmp_path / "out"), "--offline"]) == 1
    said = capsys.readouterr().err
    assert "downloads are switched off (--offline, HF_HUB_OFFLINE)" in said
    assert f"tiny.pth, then: maskkit import FILE --model {TINY} --out {TINY}.safetensors" in said
    assert "MASKKIT_OFFLINE" not in os.environ
    assert main(["models", "--weights", "--json"]) == 0
    assert [(row["licence"], row["cached"]) for row in json.loads(capsys.readouterr().out)] == [("MIT", False)]
    assert main(["predict", str(image), "--model", TINY, "--out", str(tmp_path / "out")]) == 0
    assert main(["predict", str(image), "--model", TINY, "--out", str(tmp_path / "out"), "--offline"]) == 0
    assert main(["models", "--weights"]) == 0
    assert " yes " in capsys.readouterr().out


def test_a_licence_that_does_not_allow_every_use_is_accepted_once(publish, stub, capsys, said) -> None:
    publish(forms()["zip.pth"], licence="CC-BY-NC-4.0", non_commercial=True)
    with pytest.raises(MaskkitError, match=r"a zoo: the licence of these weights is 'CC-BY-NC-4.0', which does not"):
        find_weights(TINY)
    assert not stub.requests
    assert main(["models", "--weights", "--json", "--accept-licence", "CC-BY-NC-4.0"]) == 0
    assert find_weights(TINY).is_file()
    assert find_weights(TINY).is_file()
    assert said.text.count("licence CC-BY-NC-4.0") == 1


def test_a_broken_connection_is_taken_up_where_it_ended(stub, tmp_path) -> None:
    content = bytes(range(256)) * 400
    url = stub.publish("a.bin", content)
    digest = hashlib.sha256(content).hexdigest()
    stub.breaks = [30_000, 0, 5]
    with pytest.raises(Unreachable, match=r"a\.bin: cannot be reached .*; 0\.0 MB are kept, the next try goes on"):
        download.download(Published(url, digest), tmp_path / "a.bin")
    assert everything_in(tmp_path) == {".a.bin.part", ".a.bin.part.etag"}
    stub.breaks = [20_000]
    download.download(Published(url, digest), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content
    assert everything_in(tmp_path) == {"a.bin"}
    assert [asked for _, asked in stub.requests] == [None, "bytes=30000-", "bytes=30000-", "bytes=50000-"]


@pytest.mark.parametrize("case", ["another file", "no ranges", "complete"])
def test_what_is_left_of_a_download_is_used_only_where_it_fits(stub, tmp_path, case) -> None:
    first, second = b"a" * 5000, b"b" * 9000
    url = stub.publish("a.bin", first)
    stub.breaks = [5000 if case == "complete" else 2000, 0]
    if case == "complete":
        (tmp_path / ".a.bin.part").write_bytes(first)
    else:
        with pytest.raises(Unreachable):
            download.download(Published(url), tmp_path / "a.bin")
    if case == "another file":
        stub.publish("a.bin", second)
    stub.ignores_ranges = case == "no ranges"
    stub.breaks = []
    wanted = second if case == "another file" else first
    download.download(Published(url, hashlib.sha256(wanted).hexdigest()), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == wanted


FAULTS = {
    "sha256": ({"sha256": "0" * 64}, DataError, "has the sha256 .* and not 0{64}.* it was deleted"),
    "short sha256": ({"sha256": "0" * 8}, DataError, "has the sha256 .* and not 0{8}, as its publisher gives it"),
    "md5": ({"md5": "0" * 6}, DataError, "has the md5 .* and not 000000"),
    "size": ({"bytes": 5}, DataError, r"has \d+ bytes and not 5"),
    "404": ({"url": "/nowhere/tiny.pth"}, DataError, "the server answers 404"),
    "no network": ({"url": "http://127.0.0.1:9/t.pth"}, DataError, "cannot be reached .*refused.*maskkit import FILE"),
    "no such host": ({"url": "http://no.invalid/t.pth"}, DataError, "cannot be reached .*maskkit import FILE --model"),
    "no weights": ({"content": b"<!DOCTYPE html><html>Sign in</html>"}, DataError, "it looks like a web page"),
    "another network": (
        {"content": saved({"a.weight": torch.zeros(2)})},
        DataError,
        "tiny.pth: this checkpoint does not",
    ),
    "hostile": ({"content": pickle.dumps({"model": np.load})}, DataError, "a pickle can run code"),
    "disk": ({}, FileError, "No space left on device; free some space"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_line_and_nothing_is_left(publish, stub, fault, tmp_path, capsys, monkeypatch) -> None:
    fields, kind, text = FAULTS[fault]
    fields = {**fields}
    content = fields.pop("content", forms()["zip.pth"])
    if fields.get("url", "").startswith("/"):
        fields["url"] = stub.address + fields["url"]
    publish(content, **fields)
    monkeypatch.setattr(zoo, "list_models", lambda: [TINY])
    if fault == "disk":
        monkeypatch.setattr(download, "open", full_disk, raising=False)
    with pytest.raises(kind, match=text) as error:
        hub.fetch(TINY)
    assert "\n" not in str(error.value)
    left = everything_in(tmp_path / "home")
    assert not any(name.startswith("converted") for name in left)
    assert not left or fault in (
        "no weights",
        "hostile",
        "another network",
    )  # the download itself is complete and as published
    assert main(["predict", "x.png", "--model", TINY, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") <= 2  # with the licence


class Full(io.FileIO):
    def write(self, data) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk(path, mode="r", **options):
    return Full(path, mode) if "b" in mode and mode != "rb" else open(path, mode, **options)


def test_presets_without_an_address_say_where_to_get_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MASKKIT_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"download them from github\.com/.*\(MIT\), then: maskkit import FILE --model"):
        hub.fetch("yolact-darknet53")
    with pytest.raises(DataError, match="there are no published weights"):
        hub.fetch("maskrcnn-mobilenetv2-256")


def test_a_name_that_is_nearly_a_preset_is_answered_with_it() -> None:
    with pytest.raises(DataError, match=r"there is no such weight file.*among the presets there is maskrcnn-resnet50"):
        find_weights("maskrcnn-resnet5")


def test_the_folder_of_downloads_can_be_moved(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MASKKIT_HOME", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.home() == tmp_path / "elsewhere"
    monkeypatch.delenv("MASKKIT_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.home() == tmp_path / ".cache" / "maskkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.home() == tmp_path / "xdg" / "maskkit"
    for text in ("{", "[]", '{"accepted": 3}'):
        cache.home().mkdir(parents=True, exist_ok=True)
        (cache.home() / "licences.json").write_text(text)
        cache.accept_licence("A")
        cache.require_licence("A", "x", True)


def test_addresses_of_torchvision_are_those_of_the_installed_one() -> None:
    found = hub.address(zoo.preset("maskrcnn-resnet50").weights)  # type: ignore[arg-type]
    assert found == Published("https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "bf2d0c1e")
    for preset in zoo.presets():
        if preset.weights is not None and preset.weights.torchvision:
            published = hub.address(preset.weights)
            assert len(published.sha256) == 8
            assert (hub.size_in_bytes(preset.weights) or 0) > 10e6


def test_two_processes_fetch_one_file(stub, tmp_path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    url = stub.publish("a.bin", b"a" * 100_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download.download(Published(url, bytes=100_000), tmp_path / "a.bin"), range(4)))
    assert len(stub.requests) == 1
    assert isinstance(stub, Stub)
