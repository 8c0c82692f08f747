"""A checkpoint is data from anywhere: it loads rightly, or ends in one line that names it, soon and in little room."""

import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

import maskkit
from maskkit import zoo
from maskkit.checkpoints import checkpoint
from maskkit.checkpoints.checkpoint import Checkpoint, load_model
from maskkit.checkpoints.header import read_header
from maskkit.checkpoints.listing import MAX_LISTING
from maskkit.config import RunConfig
from maskkit.errors import DataError, MaskkitError
from maskkit.prediction import Categories
from tests.checkpoints.hostile import VALUES, Parts, drop, file_of, judge, mutate, nested, places, put
from tests.thorough import of

BUILT_IN = Path(maskkit.__file__).parent / "weights" / "builtin.safetensors"
MOBILENET = BUILT_IN.with_name("mobilenetv2.safetensors")
CLASSES = Categories(("cat", "dog", "cow"), (3, 17, 4))


@pytest.fixture(scope="module", autouse=True)
def _all_methods() -> None:
    """What is imported once is not counted as time of a file."""
    zoo.list_models()
    judge(BUILT_IN, 60)


@pytest.fixture
def good(tmp_path, tiny) -> Path:
    """A sound checkpoint of the tiny method."""
    torch.manual_seed(0)
    path = tmp_path / "good.safetensors"
    checkpoint.save_model(path, zoo.model_class("tinynet")(tiny.model), tiny, CLASSES, {"step": 7, "AP": math.nan})
    return path


OFTEN_WRONG = (
    *[("format", v) for v in (0, -1, 2, 99, True, None, "1", 1.5)],
    *[("version", v) for v in (None, 1, "", "0.1\x1b[31m", "x" * 1000, [])],
    *[("config", v) for v in (None, [], "text", {}, {"preset": "tinynet"}, {"model": {}})],
    *[
        ("config.preset", v)
        for v in (None, 3, "", "-", "no-such", "x" * 200_000, "../tinynet", "tinynet\x00", ["tinynet"])
    ],
    *[("config.model", v) for v in (None, [], "text", {"knob": 1}, {"width": "8"}, {"width": 8, "num_classes": None})],
    *[("config.model.num_classes", v) for v in (0, -3, 1, 4, 10**9, 2**70, 2.5, True, "3", None, [3], math.nan)],
    *[("config.model.width", v) for v in (0, -8, 7, 10**6, 10**9, 2**63, 8.5, "8", None, [8], {}, math.inf)],
    *[("config.model.poison", v) for v in (1, "yes", None, [])],
    *[("config.input", v) for v in (None, [], {"size": None}, {"sides": [1, 2]})],
    *[
        ("config.input.size", v)
        for v in ([0, 64], [64], [64, 64, 64], [10**9] * 2, [-1, -1], ["a", "b"], 64, None, "64")
    ],
    *[("config.input.resize", v) for v in (None, 1, "", "squeeze", [], {})],
    *[("config.input.mean", v) for v in ([1, 2], [1, 2, math.nan], ["r", "g", "b"], None, 3)],
    *[("config.input.std", v) for v in ([0, 1, 1], [-1, 1, 1], [1, 1, math.inf], [1] * 2000)],
    *[("config.train.lr", v) for v in (math.nan, math.inf, "fast", None, [])],
    *[("config.train.batch", v) for v in (2.5, "8", None)],
    *[("config.data.train", v) for v in (3, None, ["a"])],
    *[("categories", v) for v in (None, [], {}, "cat", {"names": ["a"]}, {"name": []})],
    *[
        ("categories.names", v)
        for v in (None, "cat", [1, 2, 3], ["a", "b"], [["a"]] * 3, ["a", None, "c"], {}, ["a"] * 200_000)
    ],
    *[("categories.ids", v) for v in (None, 3, [1, 1, 2], [1, 2], [1.5, 2, 3], [True, 2, 3], [[1]] * 3, {"a": 1})],
    *[("categories.things", v) for v in ([1, 2, 3], [True], None, "yes", [None] * 3)],
    *[
        ("decoder", v)
        for v in (None, [], "over_input", {}, {"name": None}, {"name": "magic"}, {"name": ["over_input"]})
    ],
    *[("decoder.offset", v) for v in ("half", math.nan, 2**70, None, [0.5])],
    *[("info", v) for v in (None, [], "text", 3)],
)


def test_a_description_that_cannot_be_right_ends_in_one_line(good) -> None:
    parts = Parts(good)
    assert len(OFTEN_WRONG) >= 100
    for place, value in OFTEN_WRONG:
        good.write_bytes(parts.with_header(put(place, value)))
        assert isinstance(judge(good), str), f"{place} = {value!r:.60} has been loaded"


@pytest.mark.parametrize(
    "name",
    [
        *("hf-hub:timm/resnet18.a1_in1k", "hf_hub:a/b", "local-dir:/etc", "/etc/passwd", "https://example.org/x"),
        *("timm/resnet18", "no-such-net", "", "resnet18\x00", "r" * 5000, "resnet18.no_such_tag", "eva_hf-hub:a/b"),
    ],
)
def test_the_name_of_a_backbone_never_leads_to_a_file_or_the_network(tmp_path, name, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network is asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    parts, path = Parts(MOBILENET), tmp_path / "m.safetensors"
    path.write_bytes(parts.with_header(put("config.model.backbone.name", name)))
    assert "cannot be built" in str(judge(path, 3))
    parts.header["config"]["model"]["backbone"]["weights"] = "hub"
    path.write_bytes(parts.whole())
    assert load_model(path).config.model.backbone_weights is None, "a file does not name further files"


def test_places_are_set_to_anything(good) -> None:
    parts, rng = Parts(good), random.Random(0)
    tried = rng.sample([(place, value) for place in places(parts.header) for value in VALUES], 250)
    for place, value in tried:
        good.write_bytes(parts.with_header(put(place, value)))
        found = judge(good)
        if isinstance(found, Checkpoint):  # what was loaded is what was written
            assert maskkit.config.to_dict(replace(found.config, data=found.config.data)) is not None
            assert found.categories.names == tuple(Parts(good).header["categories"]["names"])
    for place in places(parts.header):
        good.write_bytes(parts.with_header(drop(place)))
        judge(good)


def test_descriptions_that_are_no_json_object_of_ours(good) -> None:
    parts = Parts(good)
    texts = ["", " ", "null", "[]", "3", '"text"', "{", '{"format": 1', nested(100), nested(100_000), "{}" * 2, "NaN"]
    texts += ["\ufeff{}", '{"format": 1, "format": 1}', '{"a":' * 100_000 + "1" + "}" * 100_000, "9" * 10_000]
    texts += [json.dumps(parts.header)[:-1], json.dumps(parts.header) + "x", '{"format": ' + "9" * 5000 + "}"]
    for text in texts:
        good.write_bytes(parts.with_header(lambda _, text=text: text))
        assert isinstance(judge(good), str), text[:40]


def test_lists_of_tensors_that_contradict_the_file(good) -> None:
    parts = Parts(good)
    first, second = list(parts.listing)[1:3]

    def entry(field: str, value: object):
        return lambda listing: listing[first].update({field: value})

    damages = [entry("dtype", v) for v in (None, 3, "F31", "BOOL", [], "I32", "f32")]
    damages += [
        entry("shape", v) for v in (None, 3, [-1], ["a"], [2**70], [1.5], [True], [0], [10**9, 10**9], [1] * 100)
    ]
    damages += [
        entry("data_offsets", v) for v in (None, [], [0], [0, 0, 0], [-8, 0], [8, 0], [0, 2**70], "ab", [0.0, 4.0])
    ]
    damages += [
        entry("extra", 1),
        lambda listing: listing.update({first: None}),
        lambda listing: listing.update({first: []}),
        lambda listing: listing.pop(first),
        lambda listing: listing.update({first: listing[second]}),  # two at one place
        lambda listing: listing.update({"more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        lambda listing: listing.update({"x" * 100_000: listing.pop(first)}),
        lambda listing: listing.update(__metadata__=None),
        lambda listing: listing.update(__metadata__=[]),
        lambda listing: listing.update(__metadata__={"maskkit": 3}),
        lambda listing: listing.update(__metadata__={"maskkit": None}),
        lambda listing: listing.update(__metadata__={"other": "x"}),
        lambda listing: json.dumps(listing).encode()[:-1],
        lambda listing: json.dumps(listing).encode("utf-16"),
        lambda listing: b'{"a": "\xff\xfe"}',
        lambda listing: b"{" + nested(100_000).encode(),
        lambda listing: b'{"a":' * 100_000,
        lambda listing: b"{}",
        lambda listing: json.dumps(listing).replace(f'"{second}"', f'"{first}"').encode(),  # one name twice
        lambda listing: b'{"a": [' + b"[]," * (MAX_LISTING // 3) + b"0]}",
    ]
    for number, damage in enumerate(damages):
        good.write_bytes(parts.with_listing(damage))
        assert isinstance(judge(good), str), number


def test_lengths_that_lie(good) -> None:
    content = good.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    for claimed in (0, 1, length - 1, length + 1, len(content), 2**31, 2**62, 2**64 - 1):
        good.write_bytes(file_of(text, data, claimed))
        assert isinstance(judge(good), str), claimed
    for keep in (0, 1, 7, 8, 9, 20, 8 + length, len(content) - 1):
        good.write_bytes(content[:keep])
        assert isinstance(judge(good), str), keep
    good.write_bytes(content + b"\x00")
    assert "damaged or cut off" in str(judge(good))
    good.write_bytes(content)
    with open(good, "r+b") as file:  # a huge file with nothing in it
        file.truncate(1 << 36)
    assert "damaged or cut off" in str(judge(good))


def test_mutated_files_load_rightly_or_end_in_one_line(good) -> None:
    content, rng = good.read_bytes(), random.Random(1)
    ends = [judge_bytes(good, mutate(content, rng, 3000)) for _ in range(300)]
    assert any(isinstance(end, Checkpoint) for end in ends), "some changes do no harm"
    assert sum(isinstance(end, str) for end in ends) > 150


@pytest.mark.slow
def test_many_mutated_files(good, tmp_path) -> None:
    small = zoo.preset("condinst-mobilenetv2-256")
    other = tmp_path / "other.safetensors"
    config = RunConfig(small.name, small.model, small.input, small.augment, small.train)
    checkpoint.save_model(other, zoo.model_class(small.name)(small.model), config, small.classes, {})
    for path, times, seed in ((good, of(1700), 2), (other, of(150), 3), (other, of(150), 4)):
        content, rng = path.read_bytes(), random.Random(seed)
        for _ in range(times):
            judge_bytes(path.with_name("mutated.safetensors"), mutate(content, rng, 6000), 5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["condinst-mobilenetv2-256", "fasterrcnn-mobilenetv2-256", "eva-tiny-256"])
def test_fields_of_a_method_are_set_to_anything(tmp_path, preset) -> None:
    small, path = zoo.preset(preset), tmp_path / "m.safetensors"
    config = RunConfig(preset, small.model, small.input, small.augment, small.train)
    checkpoint.save_model(path, zoo.model_class(preset)(small.model), config, small.classes, {})
    parts, rng = Parts(path), random.Random(5)
    fields = [p for p in places(parts.header) if p.startswith("config.model.")]
    for place, value in rng.sample([(place, value) for place in fields for value in VALUES], of(150)):
        judge_bytes(path, parts.with_header(put(place, value)), 10)


def judge_bytes(path: Path, content: bytes, most_seconds: float = 1.0) -> Checkpoint | str:
    path.write_bytes(content)
    return judge(path, most_seconds)


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_more_layers_than_tensors_are_not_built(tmp_path, few) -> None:
    parts, path = Parts(BUILT_IN), tmp_path / "m.safetensors"
    numbers = [
        p for p in places(parts.header["config"]["model"]) if type(at(parts.header["config"]["model"], p)) is int
    ]
    assert "detector.tower_convs" in numbers
    for place in ["detector.tower_convs", "detector.width"] if few else numbers:
        for value in (10**6,) if few else (10**5, 10**6, 9_999_999):
            path.write_bytes(parts.with_header(put(f"config.model.{place}", value)))
            judge(path, 10)


def at(value: object, place: str) -> object:
    for part in place.split("."):
        value = value[part]  # type: ignore[index]
    return value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(good, value) -> None:
    tensors, header = load(good.read_bytes()), {"maskkit": json.dumps(read_header(good))}
    one = {**tensors, "head.bias": tensors["head.bias"].clone()}
    one["head.bias"][1] = value
    save_file(one, good, header)
    with pytest.raises(DataError, match=r"good.safetensors: 1 of \d+ tensors .* 'head.bias' \(1 of its 3 values\)"):
        load_model(good)
    save_file({n: torch.full_like(t, value) if t.is_floating_point() else t for n, t in tensors.items()}, good, header)
    with pytest.raises(DataError, match="hold NaN or infinity"):
        load_model(good)
    large = {n: t * 0 + 3e38 if n == "head.weight" else t for n, t in tensors.items()}
    save_file(large, good, header)
    load_model(good)  # large numbers whose sum is not finite are numbers


def test_half_precision_loads_and_whole_numbers_for_weights_do_not(good) -> None:
    tensors, header = load(good.read_bytes()), {"maskkit": json.dumps(read_header(good))}
    save_file({n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}, good, header)
    loaded = load_model(good).model.state_dict()
    assert torch.equal(loaded["head.weight"], tensors["head.weight"].half().float())
    save_file({**tensors, "head.bias": tensors["head.bias"].int()}, good, header)
    with pytest.raises(DataError, match=r"'head\.bias' has the type I32"):
        load_model(good)


def test_pipes_devices_and_folders_do_not_keep_a_reader_waiting(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to("/dev/zero")
    for path in [*tmp_path.iterdir(), Path("/dev/zero"), Path("/dev/stdin")]:
        for read in (load_model, read_header, maskkit.load):
            with pytest.raises(MaskkitError, match=str(path)):
                read(path)
