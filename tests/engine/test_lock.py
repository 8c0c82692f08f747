"""One process per folder of a run; a process that is no more has no right to it."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from maskkit.config import RunConfig
from maskkit.engine.lock import NAME, Lock, _me
from maskkit.engine.train import train
from maskkit.errors import MaskkitError


@pytest.fixture
def other() -> Any:
    """A process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def owner(pid: int, **changes: Any) -> str:
    return json.dumps(_me() | {"pid": pid, "began": None} | changes)


def test_it_is_taken_and_given_back(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run")
    lock.take()
    about = json.loads((tmp_path / "run" / NAME).read_text())
    assert (about["pid"], about["host"]) == (os.getpid(), socket.gethostname())
    assert [p.name for p in (tmp_path / "run").iterdir()] == [NAME]
    with pytest.raises(MaskkitError, match=f"process {os.getpid()} on "):
        Lock(tmp_path / "run").take()
    lock.free()
    assert not (tmp_path / "run").exists(), "it made the folder, and nothing was written"
    lock.free()


def test_a_process_that_lives_keeps_it(tmp_path: Path, other: Any, run: RunConfig) -> None:
    (tmp_path / NAME).write_text(owner(other.pid))
    for work in (Lock(tmp_path).check, Lock(tmp_path).take, lambda: train(run, tmp_path, resume=True)):
        with pytest.raises(MaskkitError, match=rf"process {other.pid} on .*--out, or remove .*{NAME} if"):
            work()
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    other.kill()
    other.wait()
    Lock(tmp_path).check()
    Lock(tmp_path).take()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process began")
def test_a_number_that_is_used_again_is_another_process(tmp_path: Path, other: Any) -> None:
    (tmp_path / NAME).write_text(owner(other.pid, began="1"))
    Lock(tmp_path).take()


def test_an_own_lock_of_an_earlier_life_is_replaced(tmp_path: Path) -> None:
    """In a container every first process has the same number."""
    (tmp_path / NAME).write_text(owner(os.getpid(), began="1"))
    Lock(tmp_path).take()


def test_another_host_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(owner(1, host="elsewhere"))
    with pytest.raises(MaskkitError, match=rf"process 1 on elsewhere .* remove {tmp_path / NAME} if"):
        Lock(tmp_path).take()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\udcff", '{"pid": 1}', '{"pid": 1e99, "host": "a"}'])
def test_what_cannot_be_read_counts_for_seconds(tmp_path: Path, text: str) -> None:
    path = tmp_path / NAME
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(MaskkitError, match="another process is beginning a run here"):
        Lock(tmp_path).take()
    os.utime(path, (time.time() - 60, time.time() - 60))
    Lock(tmp_path).take()


def test_a_process_that_died_while_it_removed_a_lock_is_in_nobodys_way(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (NAME, f".{NAME}.claim"):
        (tmp_path / name).write_text(owner(dead.pid))
    Lock(tmp_path).take()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_a_claim_that_another_host_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / NAME).write_text(owner(dead.pid))
    claim = tmp_path / f".{NAME}.claim"
    claim.write_text(owner(1, host="elsewhere"))
    os.utime(claim, (time.time() - 60, time.time() - 60))
    Lock(tmp_path).take()
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def race(folder: Path, barrier: Any, won: Any) -> None:
    barrier.wait()
    try:
        Lock(folder).take()
    except MaskkitError:
        return
    won.put(os.getpid())
    time.sleep(1)  # it lives while the others try


def test_only_one_takes_an_abandoned_lock(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for i in range(3):
        folder = tmp_path / str(i)
        folder.mkdir()
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (folder / NAME).write_text(owner(dead.pid))
        barrier, won = fork.Barrier(12), fork.Queue()
        processes = [fork.Process(target=race, args=(folder, barrier, won)) for _ in range(12)]
        for process in processes:
            process.start()
        winner = won.get(timeout=30)
        for process in processes:
            process.join()
        assert won.empty()
        assert json.loads((folder / NAME).read_text())["pid"] == winner
        assert [p.name for p in folder.iterdir()] == [NAME]
