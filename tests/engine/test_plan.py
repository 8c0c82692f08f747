"""The batch that memory holds: found once, said, and kept by a run that is continued."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskkit.config import RunConfig
from maskkit.engine import plan
from maskkit.engine.data import open_data
from maskkit.engine.plan import free_memory, largest_batch, saved_bytes
from maskkit.engine.train import train
from maskkit.errors import MaskkitError


def place(world: int = 1, device: str = "cpu") -> Any:
    """A stand-in for the run, as far as memory is concerned."""
    return SimpleNamespace(
        world=world,
        device=torch.device(device),
        layout=torch.contiguous_format,
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )


def test_the_batch_follows_from_the_free_memory(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_data(run)[0]
    monkeypatch.setattr(plan, "LEAST_STEPS", 1)
    found = {}
    for free in (0, 5 * 10**6, 10**7, 10**12):
        monkeypatch.setattr(plan, "free_memory", lambda device, n=free: n)
        found[free] = largest_batch(place(), run, dataset)
    assert found[0] == 1
    assert found[0] < found[5 * 10**6] < found[10**7] <= found[10**12] == 16, "the set has 16 images"
    assert largest_batch(place(2), run, dataset) == 16
    in_parts = replace(run, train=replace(run.train, accumulate=3))
    assert largest_batch(place(), in_parts, dataset) == 12
    monkeypatch.setattr(plan, "LEAST_STEPS", 16)
    assert largest_batch(place(), run, dataset) == 1, "an epoch has 16 steps"
    assert largest_batch(place(4), run, dataset) == 4, "one image for each process"


def test_on_an_accelerator_growing_batches_are_tried(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, tried = open_data(run)[0], []

    def peak(device: torch.device, work: Any) -> int | None:
        work()
        return 10**9 * tried[-1] if tried[-1] < 8 else None  # eight do not fit

    def try_step(run: Any, model: Any, config: RunConfig, train_set: Any, images: int) -> None:
        tried.append(images)

    monkeypatch.setattr(plan, "LEAST_STEPS", 1)
    monkeypatch.setattr(plan, "peak", peak)
    monkeypatch.setattr(plan, "try_step", try_step)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, *args, **kwargs: model)
    for free, wanted in ((10**12, 4), (4 * 10**9, 2), (1, 1)):
        tried.clear()
        monkeypatch.setattr(plan, "free_memory", lambda device, n=free: n)
        assert largest_batch(place(device="cuda"), run, dataset) == wanted
    assert tried == [1]


def test_what_a_step_saves_grows_with_its_images(run: RunConfig) -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    sizes = [saved_bytes(model, lambda n=n: model(torch.ones(n, 8)).sum()) for n in (1, 2)]
    assert sizes == [4 * (8 + 4), 8 * (8 + 4)], "inputs of both layers, and no weight"


def test_free_memory_is_that_of_the_machine_at_most() -> None:
    import psutil

    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_run_keeps_the_batch_that_was_found(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("maskkit.engine.train.write_report", lambda *_: None)
    monkeypatch.setattr(plan, "LEAST_STEPS", 2)
    config = replace(run, train=replace(run.train, batch=0, steps=6, eval_every=0.0))
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(config, whole)
    assert "--train.batch auto: 8 images per step, with " in (said := capsys.readouterr().err)
    assert "learning rate 0.0283 in place of 0.02, which is for 4" in said, "AdamW: the square root"
    with monkeypatch.context() as patch:
        patch.setattr("maskkit.engine.run.Run.save_due", lambda run, done: done == 3 and signal.raise_signal(15))
        with pytest.raises(KeyboardInterrupt):
            train(config, out)
    monkeypatch.setattr(plan, "free_memory", lambda device: 1)
    train(config, out, resume=True)
    a, b = load_file(out / "last.safetensors"), load_file(whole / "last.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in b)
    written = json.loads((out / "config.json").read_text())["train"]
    assert (written["batch"], written["lr"]) == (8, 0.0283)
    plain = replace(config, train=replace(config.train, batch=8, lr=0.0283))
    train(plain, out, resume=True)
    with pytest.raises(MaskkitError, match=r"train.batch was 8 and is 4"):
        train(replace(config, train=replace(config.train, batch=4, lr=0.0283)), out, resume=True)


def test_the_command_line_takes_a_number_or_auto() -> None:
    from maskkit.cli.train import parse

    options = ["--model", "yolact-mobilenetv2-256", "--data", "x", "--train.batch"]
    assert [parse([*options, value]).train.batch for value in ("auto", "3")] == [0, 3]
    with pytest.raises(SystemExit):
        parse([*options, "some"])
