"""Several processes: the commands of the documentation, a process that is gone, another number of processes."""

import json
import os
import queue
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import maskkit
from maskkit.config import RunConfig
from maskkit.engine import peers as module
from maskkit.engine.peers import Peers
from maskkit.engine.train import train
from maskkit.errors import MaskkitError
from tests.engine import runner

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start(config: RunConfig, out: Path, resume: bool = False) -> list[BaseProcess]:
    """Two processes that share a training, and write what they say to ``out``-0.txt and ``out``-1.txt."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"ACCELERATE_USE_CPU": "true"}
    return [
        runner.start(
            config,
            out,
            resume,
            shared | {"RANK": rank, "LOCAL_RANK": rank},
            says=out.with_name(f"{out.name}-{rank}.txt"),
        )
        for rank in "01"
    ]


def test_a_process_that_is_gone_ends_the_others_and_the_run_goes_on(tmp_path: Path, run: RunConfig) -> None:
    config = replace(run, train=replace(run.train, steps=40, eval_every=0.0, save_every=2))
    whole, out = tmp_path / "whole", tmp_path / "run"
    both = start(config, out)
    while not (out / "config.json").exists() and all(p.is_alive() for p in both):
        time.sleep(0.01)
    os.kill(both[1].pid, signal.SIGKILL)  # type: ignore[arg-type]
    both[0].join(30)
    assert both[0].exitcode == 1
    said = (tmp_path / "run-0.txt").read_text()
    assert "process 1 of 2 that share this training (the first is 0) has ended before the others" in said
    assert "go on with the same command and --resume" in said
    with pytest.raises(MaskkitError, match=r"other settings: processes was 2 and is 1; use the former values"):
        train(config, out, resume=True)
    for folder, resume in ((out, True), (whole, False)):
        both = start(config, folder, resume)
        for process in both:
            process.join()
        assert [p.exitcode for p in both] == [0, 0]
    ours, theirs = load_file(out / "last.safetensors"), load_file(whole / "last.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def meet(world: int) -> list[Peers]:
    """Peers that all are in this process."""
    shared: queue.Queue[Any] = queue.Queue()
    found = [Peers(rank, world) for rank in range(world)]

    def share(rank: int, work: Callable[[], Any]) -> Any:
        if rank:
            return shared.get()
        result = work()
        for _ in range(world - 1):
            shared.put(result)
        return result

    threads = [threading.Thread(target=p.meet, args=(lambda work, r=p.rank: share(r, work),)) for p in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_are_told_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    ended: list[int] = []
    monkeypatch.setattr(module, "GRACE", 60)
    monkeypatch.setattr(os, "_exit", ended.append)
    for gone in (0, 2):
        three = meet(3)
        three[gone].close(well=False)
        rest = [peer for peer in three if peer.rank != gone]
        assert [peer.lost(10) for peer in rest] == [gone] * 2
        for peer in rest:
            peer.close(well=False)
    assert ended == []


def test_who_says_goodbye_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    three = meet(3)
    for peer in three[::-1]:
        peer.close(well=True)
    assert [peer.lost(0.1) for peer in three] == [None] * 3
    alone = Peers(0, 1)
    alone.meet(lambda work: pytest.fail("there is nobody to meet"))
    assert alone.lost() is None
    alone.close(well=True)


def test_a_training_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    ended = threading.Event()
    monkeypatch.setattr(module, "GRACE", 0.01)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    two = meet(2)
    two[1].close(well=False)
    assert ended.wait(10)
    assert "maskkit: process 1 of 2" in capsys.readouterr().err
    two[0].close(well=False)


def documented() -> list[str]:
    return re.findall(r"^(?:torchrun|accelerate) .*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def launch(line: str, environment: dict[str, str], says: Path) -> None:
    """What the command of a launcher does."""
    os.setsid()
    with open(says, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    name, *args = shlex.split(line)
    if name == "torchrun":
        from torch.distributed.run import main

        main(args)
    else:
        from accelerate.commands.accelerate_cli import main

        sys.argv = [name, *args]
        main()


@pytest.mark.slow
def test_the_documented_commands_run(tmp_path: Path, drawn: Path) -> None:
    paths = [str(Path(maskkit.__file__).parents[1]), runner.PLUGIN, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    options = "--model tinynet --weights random --train.steps 4 --train.workers 0 --train.eval-every 0"
    one_machine, accelerate, two_machines = documented()
    assert one_machine == "torchrun --nproc-per-node 2 -m maskkit train --data pets/ --out runs/pets"  # as the next one
    assert "--node-rank 0" in two_machines
    port = free_port()
    commands = {
        "accelerate": [accelerate.replace("launch ", f"launch --main_process_port {free_port()} ")],
        "torchrun": [two_machines, two_machines.replace("--node-rank 0", "--node-rank 1")],
    }
    for name, lines in commands.items():
        out = tmp_path / name
        started = []
        for node, line in enumerate(lines):
            line = line.replace("HOST", "127.0.0.1").replace("29500", port)
            line = line.replace("pets/ ", f"{drawn} ").replace("runs/pets", f"{out} {options}")
            started.append(runner.fork(launch, line, environment, tmp_path / f"{name}-{node}.txt"))
        for node, process in enumerate(started):
            process.join(120)
            assert process.exitcode == 0, (tmp_path / f"{name}-{node}.txt").read_text()
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 4
