"""Repositories of the Hugging Face Hub: pushed, loaded again bit for bit, refused where they are not what they say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import maskkit
from maskkit import zoo
from maskkit.api import Segmenter
from maskkit.checkpoints import cache
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.external_data import external_files
from maskkit.checkpoints.find import find_weights
from maskkit.checkpoints.repositories import Repository
from maskkit.cli import main
from maskkit.errors import DataError, MaskkitError
from maskkit.prediction import Categories
from maskkit.zoo.class_names import COCO_PANOPTIC
from tests.checkpoints.stub_hub import COMMIT, StubHub, hub
from tests.checkpoints.test_import_options import mask2former

TINY = "tinynet"


@pytest.fixture(scope="module")
def server():
    with hub() as stub:
        yield stub


@pytest.fixture
def stub(server: StubHub, tmp_path, monkeypatch) -> StubHub:
    for part in (server.repositories, server.stored, server.served, server.requests):
        part.clear()
    server.refuses = False
    monkeypatch.setenv("MASKKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (("ENDPOINT", server.address), ("HUGGINGFACE_CO_URL_TEMPLATE", template)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)  # as when it is imported after that
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    for name in cache.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture
def pets(tmp_path, tiny) -> Path:
    """A checkpoint with metrics."""
    torch.manual_seed(3)
    model = zoo.model_class(TINY)(tiny.model)
    path = tmp_path / "pets.safetensors"
    info = {"metrics": {"AP": 0.25}, "score": 0.4}
    save_model(path, model, tiny, Categories.of(["cat", "dog", "fish"]), info)
    return path


def pushed(path: Path, **options) -> Segmenter:
    segmenter = maskkit.load(path, device="cpu")
    photo = Image.fromarray(np.full((64, 80, 3), 90, np.uint8))
    segmenter.push("hf://me/pets", **{"licence": "apache-2.0", "sample": photo, **options})
    return segmenter


def test_a_pushed_model_is_loaded_bit_for_bit_and_offline_the_second_time(stub, pets, monkeypatch, said) -> None:
    first = pushed(pets, data="Oxford-IIIT Pets, 3 classes")
    assert set(stub.repositories["me/pets"]) == {"model.safetensors", "README.md", "sample.jpg"}
    again = maskkit.load("hf://me/pets", device="cpu")
    before, after = (s.runtime.model.state_dict() for s in (first, again))  # type: ignore[attr-defined]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (again.categories, again.input, again.score) == (first.categories, first.input, first.score)
    assert again.info == {**first.info, "licence": "apache-2.0"}
    assert "weights of hf://me/pets, licence apache-2.0" in said.text
    count = len(stub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    maskkit.load("hf://me/pets", device="cpu")
    assert len(stub.requests) == count
    with pytest.raises(MaskkitError, match=r"hf://me/pets: not pushed: --offline"):
        pushed(pets)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    maskkit.load("hf://me/pets", device="cpu")
    with pytest.raises(DataError, match=r"hf://me/dogs/model\.safetensors: not in .* cannot be reached .*resolve/main"):
        maskkit.load("hf://me/dogs", device="cpu")
    with pytest.raises(MaskkitError, match=r"hf://me/pets: .*cannot be reached .*nothing was pushed"):
        pushed(pets)


def test_the_model_card_says_what_a_user_needs(stub, pets) -> None:
    pushed(pets, data="Oxford-IIIT Pets, 3 classes", licence="cc-by-4.0")
    card = stub.repositories["me/pets"]["README.md"].decode()
    for part in (
        '---\nlicense: "cc-by-4.0"\nlibrary_name: maskkit\npipeline_tag: image-segmentation\n',
        "cat, dog, fish",
        "Oxford-IIIT Pets, 3 classes",
        "| AP | 0.2500 |",
        "`maskkit eval --model hf://me/pets --data DATA`",
        "RGB images; ",
        "(height x width)",
        'maskkit.load("hf://me/pets")',
        "![Predictions of this model](sample.jpg)",
        "preset `tinynet`",
    ):
        assert part in card, part
    assert Image.open(__import__("io").BytesIO(stub.repositories["me/pets"]["sample.jpg"])).size == (80, 64)


def test_push_asks_for_a_licence_and_says_what_the_hub_refuses(stub, pets) -> None:
    with pytest.raises(MaskkitError, match=r"say under which licence: push\('hf://me/pets', licence='apache-2.0'\)"):
        pushed(pets, licence=None)
    with pytest.raises(DataError, match="push writes a whole repository"):
        maskkit.load(pets, device="cpu").push("hf://me/pets/file", licence="mit")
    stub.refuses = True
    with pytest.raises(MaskkitError, match=r"hf://me/pets: the Hub refuses it .*hf auth login"):
        pushed(pets)
    assert not stub.repositories


def test_another_content_than_the_hub_announces_is_refused_and_deleted(stub, pets, tmp_path) -> None:
    pushed(pets)
    content = stub.repositories["me/pets"]["model.safetensors"]
    stub.served["model.safetensors"] = content[:-4] + b"\0\0\0\1"
    with pytest.raises(DataError, match="the download has another checksum than the Hub gives; it was deleted"):
        find_weights("hf://me/pets")
    stub.served.clear()
    assert find_weights("hf://me/pets").read_bytes() == content


def test_pickles_and_what_is_not_there_are_refused(stub, pets, tmp_path) -> None:
    import pickle

    stub.repositories["me/pets"] = {"model.safetensors": pickle.dumps({"a": 1}), "pytorch_model.bin": b"x"}
    with pytest.raises(DataError, match=r"model\.safetensors is no safetensors file, and pickles of the Hub are not"):
        find_weights("hf://me/pets")
    with pytest.raises(DataError, match="pickles of the Hub are not loaded"):
        find_weights("hf://me/pets/pytorch_model.bin")
    with pytest.raises(DataError, match="the repository has no such file"):
        find_weights("hf://me/pets/other.safetensors")
    with pytest.raises(DataError, match="there is no such repository or revision"):
        find_weights("hf://me/nobody")
    stub.repositories["me/net"] = {"model.safetensors": save({"a": torch.zeros(1)}), "config.json": b"{}"}
    with pytest.raises(DataError, match=r"recognises; name its preset: maskkit import hf://me/net --model PRESET"):
        find_weights("hf://me/net")
    for address in ("hf://me", "hf://", "hf://me/pets@", "hf:/me/pets"):
        with pytest.raises(DataError, match="not an address of a repository"):
            find_weights(address)
    assert Repository.of("hf://me/pets@v2/a/b.pth") == Repository("me/pets", "v2", "a/b.pth")


PREDICT = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
import maskkit

print(json.dumps(maskkit.load(sys.argv[1]).predict(sys.argv[2]).to_coco()))
"""


def test_files_of_a_repository_by_their_names(stub, pets, tmp_path, monkeypatch) -> None:
    """A checkpoint of ours, and an exported file, which runs where torch cannot be imported."""
    pytest.importorskip("onnxruntime")
    here, onnx, photo = maskkit.load(pets, device="cpu"), tmp_path / "pets.onnx", tmp_path / "photo.png"
    here.export(onnx)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)).save(photo)
    files = {"nets/pets.safetensors": pets.read_bytes(), "nets/pets.onnx": onnx.read_bytes()}
    stub.repositories["me/zoo"] = files | {"README.md": b"---\nlicense: mit\n---\n", "pets.xml": b"<net/>"}
    assert maskkit.load("hf://me/zoo/nets/pets.safetensors", device="cpu").categories == here.categories
    address = "hf://me/zoo/nets/pets.onnx"
    command = [sys.executable, "-c", PREDICT, address, str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "weights of hf://me/zoo, licence mit" in done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(maskkit.load(onnx).predict(photo).to_coco()))
    assert main(["predict", str(photo), "--model", address, "--out", str(tmp_path / "out")]) == 0
    for name, message in (
        ("no.onnx", r"zoo/no\.onnx: .* no such file"),
        ("pets.xml", r"zoo/pets\.bin: .* no such file"),
    ):
        with pytest.raises(DataError, match=message):
            maskkit.load(f"hf://me/zoo/{name}")
    stub.repositories["me/zoo"]["net.pt2"] = b"PK"  # may hold code
    with pytest.raises(DataError, match="is no safetensors file, and pickles of the Hub are not loaded"):
        maskkit.load("hf://me/zoo/net.pt2")
    import onnx as library

    large = tmp_path / "large.onnx"
    library.save_model(library.load(onnx), large, save_as_external_data=True, location="large.data")
    stub.repositories["me/zoo"] |= {f"nets/{p.name}": p.read_bytes() for p in (large, large.with_suffix(".data"))}
    assert (
        maskkit.load("hf://me/zoo/nets/large.onnx").predict(photo).to_coco()
        == maskkit.load(onnx).predict(photo).to_coco()
    )
    monkeypatch.setenv("MASKKIT_HOME", str(tmp_path / "other"))
    stub.served["nets/pets.onnx"] = files["nets/pets.onnx"][:-1] + b"?"
    with pytest.raises(DataError, match=r"pets\.onnx: the download has another checksum than the Hub gives"):
        maskkit.load(address)
    stub.served.clear()
    stub.repositories["me/bare"] = {"pets.onnx": files["nets/pets.onnx"]}  # no card
    maskkit.load("hf://me/bare/pets.onnx")
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        maskkit.load("hf://me/bare/pets.onnx")
    stub.repositories["me/nc"] = files | {"README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"}
    with pytest.raises(MaskkitError, match=r"hf://me/nc: the licence of these weights is 'cc-by-nc-4.0'"):
        maskkit.load("hf://me/nc/nets/pets.onnx")


def onnx_file(*locations: str) -> bytes:
    """A graph whose weights are in other files."""
    onnx = pytest.importorskip("onnx")
    tensors = []
    for i, location in enumerate(locations):
        tensor = onnx.TensorProto(name=f"w{i}", dims=[4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    tensors.append(onnx.helper.make_tensor("inside", 1, [2], [1.0, 2.0]))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["w0"], ["y"])], "g", [], [], tensors)
    return onnx.helper.make_model(graph).SerializeToString()


def test_weights_beside_an_exported_file_come_with_it(stub, monkeypatch) -> None:
    """Each once, verified, and of the same commit."""
    card = {"README.md": b"---\nlicense: mit\n---\n"}
    names = ["a.data", "parts/b.data", "a.data"]
    stub.repositories["me/big"] = card | {
        "nets/big.onnx": onnx_file(*names),
        "nets/a.data": b"a" * 16,
        "nets/parts/b.data": b"b" * 16,
        "pets.xml": b"<net/>",
        "pets.bin": b"c" * 16,
    }
    path = find_weights("hf://me/big/nets/big.onnx")
    assert [(path.parent / n).read_bytes()[:1] for n in names] == [b"a", b"b", b"a"]
    asked = [r for r in stub.requests if r.startswith("GET") and r.endswith(".data")]
    assert asked == [f"GET /me/big/resolve/{COMMIT}/nets/{n}" for n in names[:2]]
    assert find_weights("hf://me/big/pets.xml").with_suffix(".bin").read_bytes() == b"c" * 16
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        assert find_weights("hf://me/big/nets/big.onnx") == path
    stub.repositories["me/half"] = card | {"big.onnx": onnx_file("a.data", "b.data"), "a.data": b"a" * 16}
    with pytest.raises(DataError, match=r"hf://me/half/b\.data: the repository has no such file"):
        find_weights("hf://me/half/big.onnx")
    stub.served["a.data"] = b"x" * 16
    stub.repositories["me/bad"] = card | {"big.onnx": onnx_file("a.data"), "a.data": b"a" * 16}
    with pytest.raises(DataError, match=r"hf://me/bad/a\.data: the download has another checksum than the Hub gives"):
        find_weights("hf://me/bad/big.onnx")


@pytest.mark.parametrize("place", ["../big.data", "/etc/passwd", "a/../../b", "..\\b", "C:b", ".", ""])
def test_weights_outside_of_the_folder_are_not_fetched(stub, place: str) -> None:
    stub.repositories["me/evil"] = {"nets/big.onnx": onnx_file("a.data", place), "nets/a.data": b"a" * 16}
    with pytest.raises(DataError, match=r"big\.onnx: its weights would be in .*, which is outside of its folder"):
        find_weights("hf://me/evil/nets/big.onnx")
    assert not [r for r in stub.requests if r.startswith("GET") and r.endswith(".data")]


def test_a_damaged_onnx_file_is_one_line(tmp_path) -> None:
    whole = onnx_file("a.data", "b.data")
    path = tmp_path / "big.onnx"
    path.write_bytes(whole)
    assert external_files(path) == ["a.data", "b.data"]
    for content in (b"", whole[:-3], b"\xff" * 40, b"\x3a\x05ab", b"\x0b", whole.replace(b"a.data", b"a.\xff\xfeta")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"big\.onnx: is not an ONNX file, or a damaged one"):
            external_files(path)


def test_a_restricted_licence_of_a_repository_is_asked_for(stub, pets) -> None:
    pushed(pets, licence="cc-by-nc-4.0")
    with pytest.raises(MaskkitError, match=r"hf://me/pets: the licence of these weights is 'cc-by-nc-4.0'"):
        find_weights("hf://me/pets")
    cache.accept_licence("cc-by-nc-4.0")
    assert find_weights("hf://me/pets").is_file()


def transformers_repository(stub: StubHub, name: str, classes: int, **changes) -> None:
    """A small Mask2Former as its library saves it."""
    theirs = mask2former(classes)
    config = {**theirs.config.to_dict(), "model_type": "mask2former", **changes}
    processor = {"size": {"shortest_edge": 96, "longest_edge": 160}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    stub.repositories[name] = {
        "model.safetensors": save({n: t.contiguous() for n, t in theirs.state_dict().items()}, {"format": "pt"}),
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(processor).encode(),
        "README.md": b"---\nlicense: mit\ntags:\n- vision\n---\n# A network\n",
    }


def test_mask2former_of_transformers_by_the_name_of_its_repository(stub, monkeypatch, said) -> None:
    """A ResNet-18 stands for the published Swins; the table of backbones is looked through with real sizes below."""
    from maskkit.checkpoints import transformers_config

    monkeypatch.setitem(transformers_config._RESNETS, (2, 2, 2, 2), "mask2former-small")
    preset = zoo.preset("mask2former-resnet50")
    small = replace(preset, model=replace(preset.model, backbone=replace(preset.model.backbone, name="resnet18")))  # type: ignore[attr-defined]
    find = zoo.preset
    monkeypatch.setattr(zoo, "preset", lambda name: small if name == "mask2former-small" else find(name))
    monkeypatch.setattr(transformers_config, "_backbone", lambda config: "mask2former-small")
    transformers_repository(stub, "someone/mask2former-coco-panoptic", 133)
    path = find_weights("hf://someone/mask2former-coco-panoptic")
    from maskkit.checkpoints.header import categories_of, read_header

    header = read_header(path)
    assert categories_of(header).things == COCO_PANOPTIC.things
    assert header["config"]["model"]["task"] == "panoptic"
    assert header["config"]["input"]["size"] == [96, 160]
    assert header["config"]["input"]["resize"] == "shorter"
    assert header["config"]["input"]["mean"] == [127.5] * 3
    assert header["info"]["licence"] == "mit"
    assert "licence mit" in said.text
    transformers_repository(stub, "facebook/mask2former-x-ade-semantic", 9)
    with pytest.raises(MaskkitError, match=r"facebook/mask2former-x-ade-semantic: the licence .* 'CC-BY-NC-4.0'"):
        find_weights("hf://facebook/mask2former-x-ade-semantic")
    transformers_repository(stub, "someone/mask2former", 9)
    with pytest.raises(DataError, match="does not say whether it is for instances, label maps or panoptic images"):
        find_weights("hf://someone/mask2former")


def test_every_backbone_of_the_presets_is_recognised() -> None:
    from maskkit.checkpoints.transformers_config import recognise

    transformers = pytest.importorskip("transformers")
    swins = {"t": (96, [2, 2, 6, 2], 7), "s": (96, [2, 2, 18, 2], 7), "b": (128, [2, 2, 18, 2], 12)}
    swins["l"] = (192, [2, 2, 18, 2], 12)
    for letter, (width, depths, window) in swins.items():
        swin = transformers.SwinConfig(embed_dim=width, depths=depths, window_size=window)
        queries = 200 if letter == "l" else 100
        config = transformers.Mask2FormerConfig(backbone_config=swin, num_labels=80, num_queries=queries).to_dict()
        found = recognise(config, {}, "facebook/mask2former-coco-instance")
        assert found.preset == f"mask2former-swin-{letter}"
        assert found.model == zoo.preset(found.preset).model
    with pytest.raises(DataError, match="none of the Swin transformers and ResNets"):
        recognise({"model_type": "mask2former", "backbone_config": {"model_type": "dinov2"}}, {}, "x-instance")


def test_import_takes_files_of_repositories(stub, tmp_path, monkeypatch, capsys) -> None:
    method = replace(zoo.method(TINY), rename=dict)
    monkeypatch.setattr(zoo, "method", lambda name: method)
    import io

    state = {n: torch.rand(t.shape).to(t.dtype) for n, t in maskkit.create_model(TINY).state_dict().items()}
    file = io.BytesIO()
    torch.save({"state_dict": state}, file)
    stub.repositories["me/zoo"] = {"nets/tiny.pth": file.getvalue(), "pytorch_model.bin": file.getvalue()}
    for address in ("hf://me/zoo/nets/tiny.pth", "hf://me/zoo"):
        out = tmp_path / "out.safetensors"
        assert main(["import", address, "--model", TINY, "--out", str(out)]) == 0
        assert maskkit.load(out).info["imported"] == address
    assert main(["import", "hf://me/zoo/no.pth", "--model", TINY, "--out", str(tmp_path / "x")]) == 1
    assert "hf://me/zoo/no.pth: the repository has no such file" in capsys.readouterr().err
