"""Two processes that share each batch take the steps that one takes with all of it.

The methods tried have no batch norm that is trained: that sees the images of its own process alone.
"""

import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskkit import zoo
from maskkit.checkpoints.header import read_header
from maskkit.config import AugmentConfig, DataConfig, RunConfig, change
from maskkit.data import shapes
from tests.engine import runner

STEPS = 20

TWO_STAGE = {
    "width": 32,
    "box_width": 64,
    "mask_width": 32,
    # all anchors and all regions, so that nothing is left to chance
    "proposals": {
        "anchor_sizes": ((8,), (16,), (32,), (64,), (96,)),
        "sampled": 6000,
        "before": (100, 60),
        "after": (60, 40),
    },
    "regions": {"sampled": 10_000, "positive": 1.0},
}


def draw(folder: Path, boxes_too: bool) -> Path:
    """Images of different numbers of objects, none in some; perhaps of every second one the box alone is known."""
    shapes.write(folder, train=12, val=2, size=(96, 96), objects=(0, 5))
    if boxes_too:
        truth = json.loads((folder / "train.json").read_text())
        for annotation in truth["annotations"][::2]:
            del annotation["segmentation"]
        (folder / "train.json").write_text(json.dumps(truth))
    return folder


def losses(run: RunConfig, out: Path, processes: int) -> list[dict[str, float]]:
    """The terms of the loss of every step, as the run of so many processes has written them."""
    environments: list[dict[str, str]] = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        count = str(processes)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        shared |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environments = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]
    started = [runner.start(run, out, environment=e, log_every=1) for e in environments]
    for process in started:
        process.join()
    assert [p.exitcode for p in started] == [0] * processes
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{n: v for n, v in row.items() if n.startswith("loss")} for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "boxes_too", "knobs"),
    [
        ("yolact-mobilenetv2-256", True, {"width": 32}),
        ("fcos-mobilenetv2-256", True, {"detector": {"width": 32}}),
        ("solov2-mobilenetv2-256", True, {"width": 32, "head_width": 32}),
        ("maskrcnn-mobilenetv2-256", False, TWO_STAGE),  # regions of boxes alone are widened at random
        ("fcn8s-mobilenetv2-256", False, {}),
    ],
)
def test_two_processes_lose_what_one_loses(tmp_path: Path, preset: str, boxes_too: bool, knobs: dict[str, Any]) -> None:
    found = zoo.preset(preset)
    # Adam would make whole steps of the rounding errors of gradients that are nearly zero, and large steps from random
    # weights on multiply any error
    settings = {"optimizer": "sgd", "lr": 1e-5, "steps": STEPS, "batch": 4, "workers": 0, "eval_every": 0.0}
    run = RunConfig(
        preset,
        change(found.model, backbone={"norm": "frozen"}, **knobs),
        replace(found.input, size=(96, 96)),
        AugmentConfig(expand=2.0),
        replace(found.train, **settings),
        DataConfig(str(draw(tmp_path / "shapes", boxes_too))),
    )
    one, two = (losses(run, tmp_path / str(n), n) for n in (1, 2))
    assert len(one) == len(two) == STEPS
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{name} of step {step + 1}"


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_the_same_step(tmp_path: Path, run: RunConfig) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    shared |= {"LOCAL_WORLD_SIZE": "2"}
    config = replace(run, train=replace(run.train, steps=100_000, eval_every=0.0, save_every=100_000))
    out = tmp_path / "run"
    both = [runner.start(config, out, environment=shared | {"RANK": r, "LOCAL_RANK": r}) for r in "01"]
    while all(p.is_alive() for p in both) and not ((out / "metrics.jsonl").exists() and log_lines(out)):
        time.sleep(0.05)
    os.kill(both[1].pid, signal.SIGTERM)  # type: ignore[arg-type]
    for process in both:
        process.join(60)
    assert [p.exitcode for p in both] == [1, 1], "the error of the training, which these processes do not handle"
    assert not (out / "run.lock").exists()
    done = read_header(out / "last.safetensors")["info"]["step"]
    assert done >= 10
    assert all(row["step"] <= done for row in log_lines(out))


def log_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
