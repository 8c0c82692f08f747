import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from maskkit import zoo
from maskkit.checkpoints import checkpoint
from maskkit.checkpoints.header import read_header
from maskkit.config import DataConfig, RunConfig
from maskkit.data import shapes
from maskkit.engine.train import train
from maskkit.engine.validate import evaluation_due
from maskkit.errors import DataError, MaskkitError
from maskkit.eval.numbers import rank
from maskkit.nn import winograd
from tests.engine import runner


def short(run, **settings):
    """The run with other training settings, evaluated once at its end."""
    return replace(run, train=replace(run.train, **{"steps": 6, "eval_every": 0.0, **settings}))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_everything_in_its_folder(tmp_path, run, capsys):
    out = tmp_path / "run"
    result = train(run, out)
    names = {"config.json", "metrics.jsonl", "last.safetensors", "best.safetensors", "predictions.json", "report.html"}
    assert {p.name for p in out.iterdir()} == names | {"samples"}
    assert [len(list(p.iterdir())) for p in sorted((out / "samples").iterdir())] == [4, 4, 4, 4]

    evaluations = [row for row in metrics(out) if "val/AP" in row]
    assert [row["step"] for row in evaluations] == [8, 16, 24, 30]
    assert evaluations[0]["val/AP"] < max(row["val/AP"] for row in evaluations) == rank(result.metrics["AP"]) > 0.1
    losses = [row["loss"] for row in metrics(out) if "loss" in row]
    assert losses[-1] < losses[0]

    best = checkpoint.load_model(result.best)
    assert best.categories.names == ("red", "green")
    assert best.config.model.num_classes == 2, "the classes of the data, not of the preset"
    resolved = checkpoint.run_config(json.loads((out / "config.json").read_text()))
    assert Path(resolved.data.train).is_absolute()
    assert replace(resolved, data=DataConfig()) == best.config, "weights do not tell of the machine's folders"
    assert best.info["metrics"] == result.metrics
    assert best.info["score"] in [row.get("val/score") for row in evaluations]
    assert f"takes objects above {best.info['score']:.2f}" in (out / "report.html").read_text()
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {17, 18, 19, 20}
    assert "16 images to train on, 4 to validate, 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_yolact_trains_on_drawn_shapes_in_fp32_by_winograds_algorithm(tmp_path, precision, monkeypatch):
    used = []
    by_winograd = winograd.kernel_gradient
    monkeypatch.setattr(winograd, "IS_FASTER", True)
    monkeypatch.setattr(winograd, "LEAST_LEARNED", 1)
    monkeypatch.setattr(winograd, "kernel_gradient", lambda *given: used.append(1) or by_winograd(*given))
    preset = zoo.preset("yolact-mobilenetv2-256")
    data = shapes.write(tmp_path / "shapes", train=4, val=2, size=(96, 96), objects=(1, 3))
    config = RunConfig(
        preset.name,
        preset.model,
        replace(preset.input, size=(96, 96)),
        preset.augment,
        replace(preset.train, steps=3, batch=2, workers=0, precision=precision, clip=10.0),
        DataConfig(str(data)),
    )
    result = train(config, tmp_path / "run")
    (row,) = [row for row in metrics(result.out) if "loss" in row]
    assert {"loss/box", "loss/classification", "loss/mask", "loss/semantic"} <= row.keys()
    assert bool(used) == (precision == "fp32")
    loaded = checkpoint.load_model(result.best)
    assert loaded.categories == shapes.CATEGORIES
    assert all(tensor.isfinite().all() for tensor in load_file(result.last).values())


def test_without_an_average_best_is_what_was_trained(tmp_path, run):
    result = train(short(run, ema=0.0), tmp_path / "run")
    last, best = load_file(result.last), load_file(result.best)
    assert {n for n in last if "/" not in n} == best.keys()
    assert all(torch.equal(last[n], best[n]) for n in best)


def test_a_loss_that_is_not_finite_keeps_its_batch_and_stops(tmp_path, run):
    poisoned = replace(run, model=replace(run.model, poison=True))
    with pytest.raises(MaskkitError, match=r"step 1: the loss is not finite \(mask is nan\)"):
        train(poisoned, tmp_path / "run")
    with safe_open(tmp_path / "run" / "bad_batch.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["batch"])
        assert file.get_tensor("images").shape == (4, 3, 64, 64)
        assert file.get_tensor("masks/0").shape[1:] == (64, 64)
        assert len(file.get_tensor("labels/3")) == len(file.get_tensor("boxes/3"))
    assert len(about["image_ids"]) == 4
    assert about["loss"]["mask"] == "nan"
    state = read_header(tmp_path / "run" / "last.safetensors")["info"]
    assert state["step"] == 0, "no step was taken"


@pytest.fixture
def damaged(tmp_path, drawn):
    """A copy of the drawn data with a cut image and an annotation that is no polygon."""
    folder = tmp_path / "damaged"
    shutil.copytree(drawn, folder)
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[: len(content) // 2])
    truth = json.loads((folder / "train.json").read_text())
    truth["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    (folder / "train.json").write_text(json.dumps(truth))
    return folder


def test_bad_records_are_refused_with_the_whole_list(tmp_path, run, damaged):
    with pytest.raises(DataError) as caught:
        train(replace(run, data=DataConfig(str(damaged))), tmp_path / "run")
    message = str(caught.value)
    assert "2 records cannot be used" in message
    assert "3.png" in message
    assert "2 points" in message
    assert "--data.on-bad skip" in message
    assert not (tmp_path / "run").exists()


def test_numbers_that_make_no_run_are_refused(tmp_path, run, drawn):
    for wrong in ({"batch": -1}, {"save_every": 0}):
        with pytest.raises(MaskkitError, match=r"at least [01]"):
            train(replace(run, train=replace(run.train, **wrong)), tmp_path / "run")
    whole = DataConfig(str(drawn / "train.json"), val_split=0)
    with pytest.raises(MaskkitError, match="between 0 and 1"):
        train(replace(run, data=whole), tmp_path / "run")


def test_bad_records_are_skipped_when_asked_and_counted(tmp_path, run, damaged, capsys):
    train(short(replace(run, data=DataConfig(str(damaged), on_bad="skip"))), tmp_path / "run")
    said = capsys.readouterr().err
    assert "15 images to train on" in said
    assert "2 unusable records are left out" in said


def test_labels_that_the_method_cannot_learn_from_are_refused(tmp_path, run, drawn):
    for labels in ("boxes", "tags"):
        with pytest.raises(DataError, match=rf"tinynet learns from masks, but --data.labels {labels}"):
            train(replace(run, data=DataConfig(str(drawn), labels=labels)), tmp_path / "run")

    def without(*keys):
        folder = tmp_path / "-".join(keys)
        shutil.copytree(drawn, folder)
        truth = json.loads((folder / "train.json").read_text())
        if "annotations" in keys:
            truth["annotations"] = []
        for annotation in truth["annotations"]:
            for key in keys:
                del annotation[key]
        (folder / "train.json").write_text(json.dumps(truth))
        return replace(run, data=DataConfig(str(folder)))

    with pytest.raises(DataError, match="tinynet learns from masks, but the data has none"):
        train(without("segmentation"), tmp_path / "run")
    with pytest.raises(DataError, match="nothing to learn"):
        train(without("annotations"), tmp_path / "run")


def test_a_run_starts_from_given_weights(tmp_path, run, capsys):
    first = train(short(run), tmp_path / "first")
    second = train(short(run, lr=1e-12, ema=0.0, weight_decay=0.0), tmp_path / "second", weights=first.best)
    assert f"start from {first.best}" in capsys.readouterr().err
    before, after = load_file(first.best), load_file(second.best)
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before if "running" not in n and "num_" not in n)


def test_two_processes_share_the_work(tmp_path, run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    shared |= {"LOCAL_WORLD_SIZE": "2"}
    processes = [runner.start(run, tmp_path / "run", environment=shared | {"RANK": r, "LOCAL_RANK": r}) for r in "01"]
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    rows = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {17, 18, 19, 20}, "of both processes"
    steps = [row["step"] for row in metrics(tmp_path / "run")]
    assert steps == [8, 10, 16, 20, 24, 30, 30], "written by one of them"
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]


@given(st.integers(1, 200), st.floats(0.1, 50))
def test_evaluations_come_once_per_period_and_at_the_end(total, period):
    due = [done for done in range(1, total + 1) if evaluation_due(done, total, period)]
    assert due[-1] == total
    expected = {min(n for n in range(1, total + 1) if n / period >= k) for k in range(1, int(total / period) + 1)}
    assert set(due) == expected | {total}


def test_without_a_period_only_the_end_is_evaluated():
    assert [done for done in range(1, 11) if evaluation_due(done, 10, 0.0)] == [10]


def test_a_new_run_leaves_no_samples_of_an_earlier_one(tmp_path, run):
    out = tmp_path / "run"
    train(short(run), out)
    for name in ("config.json", "last.safetensors", "best.safetensors"):
        (out / name).unlink()
    for name in ("0000003", "0000900", "mine"):
        (out / "samples" / name).mkdir()
        (out / "samples" / name / "a.jpg").write_bytes(b"of an earlier run")
    train(short(run), out)
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["0000006", "mine"]


def test_the_device_can_be_chosen(tmp_path, run, monkeypatch):
    train(short(run), tmp_path / "cpu", device="cpu")
    there = torch.cuda.device_count()
    with pytest.raises(MaskkitError, match=r"device 'cuda:[0-9]+' is not there.*this machine has: .*cpu"):
        train(short(run), tmp_path / "cuda", device=f"cuda:{there}")
    with pytest.raises(MaskkitError, match="no device 'gpu'"):
        train(short(run), tmp_path / "gpu", device="gpu")
    assert not (tmp_path / "gpu").exists()
    assert not (tmp_path / "cuda").exists()
    from maskkit.engine.run import open_accelerator

    monkeypatch.setattr("maskkit.engine.run.find_device", lambda name: torch.device("meta"))
    assert open_accelerator("other").device == torch.device("meta")
    assert open_accelerator().device.type != "meta", "the next run computes where it would have"


def test_a_run_records_what_it_started_from(tmp_path, run):
    out = tmp_path / "run"
    train(short(run, steps=2), out)
    start = json.loads((out / "config.json").read_text())["start"]
    assert start == {"source": "random", "sha256": None, "tensors": 0, "of": start["of"]}
    first = train(short(run, steps=2), tmp_path / "first", weights=out / "best.safetensors")
    start = json.loads((first.out / "config.json").read_text())["start"]
    assert (start["source"], start["tensors"]) == (str(out / "best.safetensors"), start["of"])
    assert len(start["sha256"]) == 64
    train(short(run, steps=2), tmp_path / "first", resume=True)
    assert json.loads((first.out / "config.json").read_text())["start"] == start


def test_a_batch_in_parts_gives_the_gradients_of_the_whole(run, monkeypatch):
    """Where every part has as much to learn as the others, and nothing is drawn at random."""
    from types import SimpleNamespace
    from typing import Any

    from maskkit.data.loader import train_loader
    from maskkit.engine import train as engine

    dataset = engine.open_data(run)[0]
    (batch,) = train_loader(dataset, replace(run, augment=replace(run.augment, expand=1.0)), 0, 1)
    parts = engine.split(batch, 2)
    assert [part.images.shape[0] for part in parts] == [len(part.targets) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert [m.image_id for part in parts for m in part.metas] == [m.image_id for m in batch.metas]
    assert engine.split(batch, 1) == [batch]

    weights = torch.nn.Conv2d(3, 1, 3, padding=1)
    gradients = {}
    for number in (1, 2, 4):
        losses = []
        stub: Any = SimpleNamespace(
            settings=replace(run.train, accumulate=number),
            device=torch.device("cpu"),
            layout=torch.contiguous_format,
            autocast=lambda: torch.autocast("cpu", enabled=False),
            read_losses=lambda found: {name: float(value.detach()) for name, value in found.items()},
            backward=lambda found: found["mask"].backward(),
            update=lambda model, optimizer: None,
        )
        model = SimpleNamespace(loss=lambda raw, part: {"mask": raw.square().mean()})
        learner: Any = SimpleNamespace(network=lambda images, sizes, targets: weights(images), model=model)
        learner.average = learner.optimizer = None
        weights.zero_grad()
        losses.append(engine.take_step(stub, learner, batch, 0)["mask"])
        assert weights.weight.grad is not None
        gradients[number] = (weights.weight.grad.clone(), losses[0])
    for number in (2, 4):
        assert torch.allclose(gradients[number][0], gradients[1][0], rtol=1e-4, atol=1e-6)
        assert gradients[number][1] == pytest.approx(gradients[1][1], rel=1e-5)


def test_a_run_in_parts_learns_and_odd_parts_are_refused(tmp_path, run):
    train(short(run, accumulate=4, steps=20), tmp_path / "run")
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]
    with pytest.raises(MaskkitError, match=r"batch 4 has no 3 equal parts; give another number to --train.accumulate"):
        train(short(run, accumulate=3), tmp_path / "odd")


def test_a_frozen_backbone_stays_as_it_was(tmp_path, run):
    first = train(short(run, steps=1), tmp_path / "first")
    kept = train(short(run, freeze=("backbone",), ema=0.0), tmp_path / "kept", weights=first.best)
    before, after = load_file(first.best), load_file(kept.best)
    same = {n for n in before if torch.equal(before[n], after[n])}
    assert same == {n for n in before if n.startswith("backbone.")}
    train(short(run, freeze=("backbone",), ema=0.0), tmp_path / "kept", resume=True)
    with pytest.raises(
        MaskkitError, match=r"--train.freeze neck: the model has no such part; its parts are backbone, he"
    ):
        train(short(run, freeze=("neck",)), tmp_path / "wrong")
