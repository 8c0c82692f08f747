"""The command line: every verb, bad usage, exit codes."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskkit import api, cli
from maskkit.checkpoints import find
from maskkit.checkpoints.header import read_header
from maskkit.cli.image_files import image_files
from maskkit.data import shapes
from maskkit.zoo import list_models
from maskkit.zoo.class_names import COCO
from tests.data.written import write_image
from tests.small import PRESET, save_small

pytestmark = pytest.mark.usefixtures("without_figures")

TINY = ["--input.size", "64", "64", "--model.width", "16"]
SHORT = ["--train.steps", "2", "--train.batch", "2", "--train.workers", "0", "--train.warmup", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("drawn"), train=4, val=2, size=(64, 64), objects=(1, 3))


@pytest.fixture
def photos(tmp_path):
    """Two images of the same stem in two folders, and one that is none."""
    for name, shade in (("one/a.jpg", 60), ("two/a.png", 160)):
        path = tmp_path / name
        path.parent.mkdir()
        Image.new("RGB", (40, 30), (shade, 90, 20)).save(path)
    (tmp_path / "two" / "broken.jpg").write_bytes(b"this is no image")
    return tmp_path


def usage(*args: object) -> int:
    """The code of a command that leaves by ``SystemExit``."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(a) for a in args])
    assert isinstance(left.value.code, int)
    return left.value.code


def run(*args: object) -> int:
    return cli.main([str(a) for a in args])


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_help_has_an_example(verb, capsys):
    assert usage(verb, "--help") == 0
    assert f"Example: maskkit {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["segment"],
        ["predict"],
        ["predict", "a.jpg", "--scroe", "0.3"],
        ["predict", "a.jpg", "--score", "high"],
        ["predict", "a.jpg", "--batch", "0"],
        ["eval"],
        ["eval", "--data", "x"],
        ["eval", "--data", "x", "--model", "a", "--batch", "0"],
        ["eval", "--data", "x", "--model", "a", "--predictions", "b"],
        ["train"],
        ["train", "--model", PRESET],
        ["train", "--model", PRESET, "--data", "x", "--train.epoch", "3"],
        ["train", "--model", PRESET, "--data", "x", "--labels", "points"],
        ["train", "--model", PRESET, "--data", "x", "--model.num-classes", "3"],
        ["convert", "a", "b"],
        ["convert", "a", "b", "--to", "pdf"],
        ["import", "a.pth", "--model", PRESET],
        ["check"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(args, capsys):
    assert usage(*args) == 2
    said = capsys.readouterr()
    assert said.err or said.out


def test_models_lists_all(capsys, checkpoint, monkeypatch):
    monkeypatch.setattr(find, "BUILT_IN_WEIGHTS", checkpoint)
    assert run("models") == 0
    said = capsys.readouterr().out
    assert all(f" {name} " in said for name in [*list_models(), "built-in"])
    assert "28.2" in said


# predict ---------------------------------------------------------------------------------------------------------


def test_predict_folders_files_and_patterns(photos, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    sources = [photos / "one", photos / "two" / "a.png", photos / "*" / "a.*"]
    assert run("predict", *sources, "--model", checkpoint, "--out", out, "--score", 0, "--batch", 2) == 0
    images = json.loads((out / "images.json").read_text())
    rows = json.loads((out / "predictions.json").read_text())
    assert [i["file_name"] for i in images] == [
        str(photos / name) for name in ("one/a.jpg", "two/a.png", "one/a.jpg", "two/a.png")
    ]
    assert [i["id"] for i in images] == [1, 2, 3, 4]
    assert {(i["height"], i["width"]) for i in images} == {(30, 40)}
    assert {row["image_id"] for row in rows} == {1, 2, 3, 4}
    assert all(row["segmentation"]["size"] == [30, 40] for row in rows)
    overlays = sorted((out / "overlays").iterdir())
    assert len(overlays) == 4
    assert all(Image.open(p).size == (40, 30) for p in overlays)
    assert f"{len(rows)} objects in 4 images" in capsys.readouterr().out


def test_predict_finishes_the_others_and_fails(photos, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    sources = [photos / "two", photos / "nowhere.jpg", photos / "one" / "a.jpg", photos / "*.nothing"]
    assert run("predict", *sources, "--model", checkpoint, "--out", out) == 1
    assert len(list((out / "overlays").iterdir())) == 2
    said = capsys.readouterr()
    for name in ("broken.jpg", "nowhere.jpg", "*.nothing"):
        assert said.err.count(name) == 1
    assert "3 sources failed" in said.err
    assert "Traceback" not in said.err
    assert "in 2 images" in said.out


def test_predict_an_empty_folder_fails(tmp_path, checkpoint, capsys):
    (tmp_path / "empty").mkdir()
    assert run("predict", tmp_path / "empty", "--model", checkpoint, "--out", tmp_path / "out") == 1
    assert "contains no image" in capsys.readouterr().err


def test_predict_never_overwrites_the_images(tmp_path, checkpoint, capsys):
    source = tmp_path / "overlays" / "a.jpg"
    source.parent.mkdir()
    Image.new("RGB", (40, 30)).save(source)
    before = source.read_bytes()
    assert run("predict", source, "--model", checkpoint, "--out", tmp_path) == 1
    assert "would overwrite" in capsys.readouterr().err
    assert source.read_bytes() == before


def found(out) -> tuple[list, list]:
    return tuple(json.loads((out / name).read_text()) for name in ("predictions.json", "images.json"))  # type: ignore


def test_predict_goes_on_where_it_was_interrupted(photos, checkpoint, tmp_path, capsys, monkeypatch):
    from maskkit.infer import draw

    whole, out = tmp_path / "whole", tmp_path / "out"
    sources = [photos / "one" / "a.jpg", photos / "two" / "a.png", photos / "one" / "a.jpg"]
    common = ["--model", checkpoint, "--score", 0]
    assert run("predict", *sources, *common, "--out", whole) == 0
    save, drawn = draw.save, []

    def interrupted(prediction, *rest):
        drawn.append(prediction.meta.image_id)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return save(prediction, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(draw, "save", interrupted)
        capsys.readouterr()
        assert run("predict", *sources, *common, "--out", out) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("maskkit: interrupted after 1 of 3 images")
    assert "--resume" in said
    assert {p.name for p in out.iterdir()} == {"overlays", "predictions.jsonl"}
    assert run("predict", *sources, "--model", checkpoint, "--score", 0.5, "--out", out, "--resume") == 1
    assert "was made with score" in capsys.readouterr().err
    assert run("predict", *sources, *common, "--out", out, "--resume") == 0
    assert "in 3 images (1 of them done before)" in capsys.readouterr().out
    assert found(out) == found(whole)
    assert {p.name for p in out.rglob("*")} == {p.name for p in whole.rglob("*")}


def test_predict_removes_the_overlays_of_an_earlier_run(photos, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--model", checkpoint, "--out", out]
    assert run("predict", photos / "one" / "a.jpg", photos / "two" / "a.png", *common) == 0
    (out / "overlays" / "mine.txt").write_text("kept")
    assert run("predict", photos / "two" / "a.png", *common) == 0
    assert {p.name for p in (out / "overlays").iterdir()} == {"a.jpg", "mine.txt"}
    said = capsys.readouterr().out
    assert "2 overlays of an earlier run were removed" in said
    assert "1 files in" in said
    assert [i["overlay"] for i in found(out)[1]] == ["a.jpg"]


def test_predict_keeps_what_is_asked_for(photos, checkpoint, tmp_path, capsys):
    image, common = photos / "one" / "a.jpg", ["--model", checkpoint, "--score", 0, "--device", "cpu"]
    assert run("predict", image, *common, "--out", tmp_path / "all") == 0
    everything, _ = found(tmp_path / "all")
    args = [
        "--classes",
        "ring",
        "--max-objects",
        2,
        "--max-overlap",
        0.5,
        "--no-boxes",
        "--no-labels",
        "--colours",
        "class",
    ]
    assert run("predict", image, *common, *args, "--out", tmp_path / "some") == 0
    rows, _ = found(tmp_path / "some")
    assert 0 < len(rows) <= 2
    assert {row["category_id"] for row in rows} == {8}
    assert all(row in everything for row in rows)
    capsys.readouterr()
    assert run("predict", image, *common, "--classes", "rung", "--out", tmp_path / "none") == 1
    assert "has no such class; it has ring" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run("predict", image, "--model", checkpoint, "--device", "warp", "--out", tmp_path / "none") == 1
    assert "warp" in capsys.readouterr().err


def test_predict_when_an_image_vanishes_before_it_is_drawn(photos, checkpoint, tmp_path, capsys, monkeypatch):
    from maskkit.errors import DataError
    from maskkit.infer import draw

    def gone(prediction, *rest):
        raise DataError(f"{prediction.meta.path}: there is no such image; check the path")

    monkeypatch.setattr(draw, "save", gone)
    assert run("predict", photos / "one" / "a.jpg", "--model", checkpoint, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "no such image" in said.err
    assert "in 0 images" in said.out
    assert found(tmp_path / "out") == ([], [])


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("kind", ["missing", "preset", "text", "torch", "hostile", "cut off", "foreign", "folder"])
@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_what_is_no_checkpoint(kind, verb, photos, drawn, checkpoint, tmp_path, capsys, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{kind}.safetensors"
    if kind == "preset":
        path = Path(PRESET)
    elif kind == "text":
        path.write_text("weights")
    elif kind == "torch":
        torch.save({"a": torch.zeros(2)}, path)
    elif kind == "hostile":
        path.write_bytes(pickle.dumps(Hostile()))
    elif kind == "cut off":
        path.write_bytes(checkpoint.read_bytes()[:5000])
    elif kind == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    elif kind == "folder":
        path.mkdir()
    what = [photos / "one"] if verb == "predict" else ["--data", drawn]
    assert run(verb, *what, "--model", path, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith("maskkit: ")
    assert str(path) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "out").exists()


# eval ------------------------------------------------------------------------------------------------------------


def test_eval_of_a_model(drawn, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("eval", "--model", checkpoint, "--data", drawn, "--out", out) == 0
    assert {p.name for p in out.iterdir()} == {"metrics.json", "report.html", "predictions.json", "categories.json"}
    numbers = json.loads((out / "metrics.json").read_text())
    assert 0 <= numbers["segm"]["AP"] < 0.5
    said = capsys.readouterr().out
    assert "AP50" in said
    assert "2 images, 2 classes" in said


def test_eval_of_a_results_file(drawn, tmp_path, capsys):
    truth = json.loads((drawn / "val.json").read_text())
    rows = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
        for a in truth["annotations"]
    ]
    results, out = tmp_path / "results.json", tmp_path / "out"
    results.write_text(json.dumps(rows))
    assert run("eval", "--predictions", results, "--data", drawn / "val.json", "--out", out) == 0
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["bbox"]["AP"] == pytest.approx(1)
    assert numbers["segm"]["AP"] == pytest.approx(1)
    said = capsys.readouterr().out
    assert "1.000" in said
    assert "the highest F1, 1.000, is at score 0.50: precision 1.000, recall 1.000" in said
    assert numbers["threshold"] == {"score": 0.5, "f1": 1, "precision": 1, "recall": 1}


def test_eval_of_what_cannot_be_measured(drawn, tmp_path, capsys):
    truth = json.loads((drawn / "val.json").read_text()) | {"annotations": []}
    for content, reason in ((truth, "has no objects of the classes"), (truth | {"images": []}, "has no usable image")):
        (tmp_path / "truth.json").write_text(json.dumps(content))
        (tmp_path / "results.json").write_text("[]")
        given = [
            "--predictions",
            tmp_path / "results.json",
            "--data",
            tmp_path / "truth.json",
            "--out",
            tmp_path / "out",
        ]
        assert run("eval", *given) == 1
        said = capsys.readouterr()
        assert reason in said.err
        assert said.out == ""
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"image_id": 999, "category_id": 1, "score": 1}]'])
def test_eval_of_a_bad_results_file(drawn, tmp_path, capsys, text):
    results = tmp_path / "results.json"
    results.write_text(text)
    assert run("eval", "--predictions", results, "--data", drawn, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "results.json" in said
    assert "Traceback" not in said


def test_eval_without_a_shared_class(drawn, tmp_path, capsys):
    cats = save_small(tmp_path / "cats.safetensors", ("cat", "dog"))
    assert run("eval", "--model", cats, "--data", drawn, "--out", tmp_path / "out") == 1
    assert "shares no class with the model: the model has cat, dog" in capsys.readouterr().err


# check, convert, import ------------------------------------------------------------------------------------------


def test_check(drawn, tmp_path, capsys):
    assert run("check", drawn, "--out", tmp_path / "samples", "--samples", 1) == 0
    assert len(list((tmp_path / "samples" / "train").iterdir())) == 1
    truth = json.loads((drawn / "val.json").read_text())
    truth["annotations"][0]["category_id"] = 99
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(truth))
    capsys.readouterr()
    assert run("check", bad) == 1
    assert "99" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["check", "convert", "eval", "train"])
def test_data_that_is_not_there(verb, checkpoint, tmp_path, capsys):
    data = tmp_path / "nowhere"
    args = {
        "check": [data],
        "convert": [data, tmp_path / "dst", "--to", "coco"],
        "eval": ["--data", data, "--model", checkpoint],
        "train": ["--data", data, "--model", PRESET, "--out", tmp_path / "run"],
    }[verb]
    assert run(verb, *args) == 1
    assert f"maskkit: {data}: there is no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["coco", "labelme", "voc", "png", "coco-panoptic"])
def test_convert_says_what_it_wrote(drawn, tmp_path, capsys, to):
    assert run("convert", drawn, tmp_path / "out", "--to", to) == 0
    said = capsys.readouterr().out
    assert " images, " in said
    assert said.splitlines()[0].endswith("0 problems")
    assert ("merged into label maps" in said) == (to == "png")
    assert run("check", tmp_path / "out") == 0


def test_images_outside_are_an_option(tmp_path, capsys):
    data, other = tmp_path / "data" / "train.json", tmp_path / "other.png"
    Image.new("RGB", (40, 30)).save(other)
    data.parent.mkdir()
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9]}
    images = [{"id": 1, "file_name": "../other.png", "width": 40, "height": 30}]
    data.write_text(json.dumps({"images": images, "annotations": [row], "categories": [{"id": 1, "name": "cat"}]}))
    assert run("check", data) == 1
    assert "--allow-outside" in capsys.readouterr().out
    assert run("convert", data, tmp_path / "out", "--to", "coco") == 1
    assert run("check", data, "--allow-outside") == 0
    assert run("convert", data, tmp_path / "out", "--to", "coco", "--allow-outside") == 0


def test_convert(drawn, tmp_path, capsys):
    assert run("convert", drawn, tmp_path / "yolo", "--to", "yolo") == 0
    assert "6 images" in capsys.readouterr().out
    assert (tmp_path / "yolo" / "data.yaml").is_file()
    assert run("convert", drawn, tmp_path / "yolo", "--to", "yolo") == 1


def official(preset: str) -> dict[str, torch.Tensor]:
    """Random weights under the official names, made by turning the map of `maskkit.checkpoints.convert` around."""
    from maskkit.zoo.yolact import rename

    ours = api.create_model(preset).state_dict()
    names: dict[str, str] = {}
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            for part in [f"{kind}{n}" for n in (1, 2, 3) for kind in ("conv", "bn")] + ["downsample.0", "downsample.1"]:
                for leaf in ("weight", "bias", "running_mean", "running_var"):
                    names[f"backbone.layers.{stage}.{block}.{part}.{leaf}"] = ""
    for part in ("conv1", "bn1"):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            names[f"backbone.{part}.{leaf}"] = ""
    for leaf in ("weight", "bias"):
        for i in range(3):
            names |= {f"fpn.lat_layers.{i}.{leaf}": "", f"fpn.pred_layers.{i}.{leaf}": ""}
        names |= {f"fpn.downsample_layers.{i}.{leaf}": "" for i in range(2)}
        names |= {f"proto_net.{i}.{leaf}": "" for i in (0, 2, 4, 8, 10)}
        names |= {
            f"prediction_layers.0.{part}.{leaf}": ""
            for part in ("upfeature.0", "bbox_layer", "conf_layer", "mask_layer")
        }
        names[f"semantic_seg_conv.{leaf}"] = ""
    renamed = {next(iter(rename({name: torch.zeros(0)}))): name for name in names}
    return {theirs: ours[mine] for mine, theirs in renamed.items() if mine in ours}


def test_import_of_an_official_checkpoint(tmp_path, photos, capsys):
    source, out = tmp_path / "official.pth", tmp_path / "imported.safetensors"
    state = official("yolact-resnet50")
    torch.save(state, source)
    assert run("import", source, "--model", "yolact-resnet50", "--out", out) == 0
    imported = api.load(out)
    assert imported.categories == COCO
    assert imported.info["imported"] == "official.pth"
    weights = imported.runtime.model.state_dict()  # type: ignore[attr-defined]
    torch.testing.assert_close(weights["head.conf.weight"], state["prediction_layers.0.conf_layer.weight"])


@pytest.mark.parametrize("kind", ["missing", "text", "hostile", "other names", "unknown preset"])
def test_import_refuses(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, out, preset = tmp_path / "official.pth", tmp_path / "out.safetensors", "yolact-resnet50"
    if kind == "text":
        source.write_text("weights")
    elif kind == "hostile":
        source.write_bytes(pickle.dumps(Hostile()))
    elif kind == "other names":
        torch.save({"layer.weight": torch.zeros(2)}, source)
    elif kind == "unknown preset":
        preset = "yolact-resnet51"
    assert run("import", source, "--model", preset, "--out", out) == 1
    said = capsys.readouterr().err
    assert said.startswith("maskkit: ")
    assert ("did you mean yolact-resnet" if kind == "unknown preset" else str(source)) in said
    assert not out.exists()
    assert not (tmp_path / "hacked").exists()


# train -----------------------------------------------------------------------------------------------------------


def test_train_help_shows_the_preset_that_is_named(capsys):
    assert usage("train", "--model", "yolact-resnet101-700", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "default: resnet101" in said
    assert "700 700" in said
    assert "--model.num-classes" not in said
    assert usage("train", "--help") == 0


def test_train_passes_every_option_on(monkeypatch, tmp_path, capsys):
    from maskkit.engine import train as engine

    asked = {}

    def fake(config, out, resume, weights, device):
        asked.update(config=config, out=out, resume=resume, weights=weights, device=device)
        return engine.TrainResult(out, out / "best.safetensors", out / "last.safetensors", 1, {"AP": 0.5})

    monkeypatch.setattr(engine, "train", fake)
    options = (
        "--labels boxes --data.val v --resume --train.lr 0.5 --augment.flip 0 --model.prototypes 8 --input.resize pad"
    )
    assert run("train", "--model", PRESET, "--data", "pets", *options.split()) == 0
    config = asked["config"]
    assert type(config.model).__name__ == "YolactConfig"
    assert (config.preset, config.data.train, config.data.val, config.data.labels) == (PRESET, "pets", "v", "boxes")
    assert (config.train.lr, config.augment.flip, config.model.prototypes) == (0.5, 0.0, 8)
    assert config.input.resize == "pad"
    assert config.model.backbone.name == "mobilenetv2_100"
    assert (asked["out"], asked["resume"], asked["weights"]) == (Path("runs", PRESET), True, "auto")
    assert asked["device"] == "auto"
    said = capsys.readouterr().out
    assert "other than in the preset: model.prototypes 8, input.resize pad, augment.flip 0.0, train.lr 0.5" in said
    assert len(said.splitlines()) < 7, "config.json has all settings"


def test_train_chooses_a_preset_for_the_data(monkeypatch, drawn, tmp_path, capsys):
    from maskkit.engine import train as engine

    asked = []

    def fake(config, out, resume, weights, device):
        asked.append((config.preset, type(config.model).__name__, config.train.epochs))
        return engine.TrainResult(out, out / "best.safetensors", out / "last.safetensors", 1, {"AP": 0.5})

    monkeypatch.setattr(engine, "train", fake)
    assert run("train", "--data", drawn, "--train.epochs", 3, "--device", "cpu") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("4 images with masks of objects, 5 classes: --model maskrcnn-mobilenetv2-320, the small")
    assert run("train", "--data", drawn, "--labels", "boxes", "--out", tmp_path, "--resume", "--device", "cpu") == 0
    save_small(tmp_path / "last.safetensors")
    assert run("train", "--data", drawn, "--out", tmp_path, "--resume") == 0
    assert f"last.safetensors is a run of --model {PRESET}" in capsys.readouterr().out
    assert [(name, kind) for name, kind, _ in asked] == [
        ("maskrcnn-mobilenetv2-320", "MaskRcnnConfig"),
        ("condinst-mobilenetv2-320", "CondInstConfig"),
        (PRESET, "YolactConfig"),
    ]
    assert asked[0][2] == 3
    assert run("train", "--data", tmp_path / "nowhere") == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_tune_passes_every_option_on(monkeypatch, tmp_path, capsys):
    from maskkit.engine import tune as engine

    asked = []

    def fake(config, out, trials, space, resume, weights, device, say):
        asked.append((config, out, trials, space, resume, weights, device))
        say("trial 1 of 3: 0.400 (train.lr times 1)")
        return engine.TuneResult(config, out / "best.json", 1, 0.4, out / "trials" / "01")

    monkeypatch.setattr(engine, "tune", fake)
    command = ["tune", "--model", PRESET, "--data", "pets", "--train.epochs", "3", "--weights", "random"]
    assert run(*command, "--trials", 3, "--space", "train.lr", "augment.expand", "--resume", "--out", tmp_path) == 0
    assert run(*command, "--log", "tensorboard", "wandb", "--train.batch", "auto") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "trial 1 of 3: 0.400 (train.lr times 1)"
    assert said[1] == f"best: trial 1, 0.400; its run is {tmp_path / 'trials' / '01'}"
    assert said[2] == f"train with its settings: maskkit train --config {tmp_path / 'best.json'} --out runs/tuned"
    first, second = asked
    assert (first[0].preset, first[0].data.train, first[0].train.epochs) == (PRESET, "pets", 3)
    assert first[1:] == (tmp_path, 3, ("train.lr", "augment.expand"), True, "random", "auto")
    assert second[1:5] == (Path("runs", f"tune-{PRESET}"), 12, tuple(engine.SPACE), False)
    assert (second[0].train.log, second[0].train.batch) == (("tensorboard", "wandb"), 0)
    assert usage(*command, "--trials", "0") == 2


def test_train_then_predict(drawn, tmp_path, photos, capsys):
    out = tmp_path / "run"
    command = ["train", "--model", PRESET, "--data", drawn, "--out", out, *TINY, *SHORT]
    assert run(*command) == 0
    assert json.loads((out / "config.json").read_text())["model"]["num_classes"] == 5
    assert "best.safetensors" in capsys.readouterr().out
    assert run("predict", photos / "one", "--model", out / "best.safetensors", "--out", tmp_path / "out") == 0
    capsys.readouterr()
    assert run(*command) == 1, "a run is not overwritten"
    assert "--resume" in capsys.readouterr().err
    assert run(*command, "--resume") == 0


def test_unknown_model_for_train(capsys):
    assert run("train", "--model", "yolact-resnet5", "--data", "x") == 1
    said = capsys.readouterr().err
    assert "did you mean yolact-resnet50" in said
    assert said.count("\n") == 1


def test_train_from_weights_that_are_not_there(drawn, tmp_path, capsys):
    assert run("train", "--model", PRESET, "--data", drawn, "--out", tmp_path / "r", "--weights", "no.pth") == 1
    assert "no.pth" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


# the process -----------------------------------------------------------------------------------------------------


def test_interruption_is_130(monkeypatch, capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "models", interrupted)
    assert run("models") == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written(tmp_path, photos, checkpoint, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run("predict", photos / "one", "--model", checkpoint, "--out", tmp_path / "file" / "out") == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert "Traceback" not in said


def test_as_a_module(photos, checkpoint, tmp_path):
    command = [
        sys.executable,
        "-m",
        "maskkit",
        "predict",
        photos / "two",
        "--model",
        checkpoint,
        "--out",
        tmp_path / "o",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_training(drawn, tmp_path, workers, number):
    """It goes to all processes of the terminal, as Ctrl-C does."""
    command = [sys.executable, "-m", "maskkit", "train", "--model", PRESET, "--data", drawn, "--out", tmp_path / "run"]
    options = ["--weights", "random", "--train.steps", "100000", "--train.batch", "2", "--train.workers", str(workers)]
    process = subprocess.Popen(
        [*command, *TINY, *options, "--train.eval-every", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a suite that runs in the background of a shell hands down an ignored SIGINT, which nobody at a terminal has
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):  # ten steps are done
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    line = said.splitlines()[-1]
    assert line.startswith(f"maskkit: interrupted; {tmp_path / 'run' / 'last.safetensors'} holds step ")
    assert line.endswith("go on with the same command and --resume")
    assert "Traceback" not in said
    assert read_header(tmp_path / "run" / "last.safetensors")["info"]["step"] >= 10


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capfd):
    """Everything but the size of the drawn images and the length of the training is as the user has it."""
    from maskkit.files import DEMO_IMAGES

    write = shapes.write
    monkeypatch.setattr(shapes, "write", lambda *args, **counts: write(*args, **counts, size=(64, 64)))
    assert run("demo", "--out", tmp_path, "--steps", 1) == 0
    said = capfd.readouterr().out
    assert said.count("$ maskkit ") == 4
    assert "AP50" in said
    assert len(list((tmp_path / "photos" / "overlays").iterdir())) == len(list(DEMO_IMAGES.glob("*.jpg"))) == 3
    assert len(list((tmp_path / "found" / "overlays").iterdir())) == 10
    assert (tmp_path / "eval" / "report.html").is_file()


def test_folders_in_a_folder_of_images_are_not_passed_over_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "deep/b.png", ".hidden/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert image_files([str(tmp_path)], []) == [tmp_path / "a.png"]
    said = "".join(capsys.readouterr()).replace("\n", " ")
    assert "the images in deep are left out" in said
    assert sorted(image_files([str(tmp_path / "**" / "*")], [])) == [tmp_path / "a.png", tmp_path / "deep" / "b.png"]
