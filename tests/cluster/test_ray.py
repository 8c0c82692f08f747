"""Runs with Ray: workers are killed, all is killed, and each image is in the results once."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskkit.api import Segmenter
from maskkit.checkpoints.find import BUILT_IN_WEIGHTS
from maskkit.cluster.parts import Done
from maskkit.cluster.ray_batch import Counts, Pool, begin, predict_parts, read_parts
from maskkit.cluster.storage import Storage
from maskkit.cluster.worker import Job, Worker
from maskkit.files import digest
from maskkit.infer.selection import Selection
from tests.serve.fake import load

pytest.importorskip("ray.data")


def noted(folder: Path) -> Segmenter:
    """A model whose process leaves its number in ``folder``."""
    (folder / str(os.getpid())).touch()
    return load(0.02)


@pytest.mark.slow
def test_each_image_is_done_once_whatever_is_killed(tmp_path: Path) -> None:
    """A worker is killed with -9; later the whole run ends early, and one without Ray goes on."""
    photos, pids = tmp_path / "photos", tmp_path / "pids"
    photos.mkdir()
    pids.mkdir()
    names = []
    for n in range(160):
        names.append(str(photos / f"{n}.png"))
        Image.new("RGB", (40, 40), (n, n, n)).save(names[-1])
    (photos / "5.png").write_bytes(b"no image")

    def run(out: Path, resume: bool = False, each: Any = None, stop: int = 1000) -> tuple[list[Done], Counts]:
        storage, counts = Storage(str(out)), Counts()
        given = {"model": "built-in", "weights": digest(BUILT_IN_WEIGHTS), "score": 0.5, "batch": 1}
        job = Job(load=partial(noted, pids), selection=Selection(), out=storage.address, directory=os.getcwd(), **given)
        todo = begin(storage, {}, lambda: names, resume)
        answers = predict_parts(todo, job, Pool(2)) if each else (Worker(job)(p._asdict()) for p in todo.left)
        for number, answer in enumerate(answers):
            counts.add(answer)
            if number == stop:
                answers.close()
                return [], counts
            if each:
                each(number)
        return list(read_parts(todo)), counts

    killed: list[int] = []

    def kill(number: int) -> None:
        if number == 1:
            killed.append(max(int(path.name) for path in pids.iterdir()))
            os.kill(killed[0], signal.SIGKILL)

    alone, _ = run(tmp_path / "one")
    for path in pids.iterdir():
        path.unlink()
    first, counts = run(tmp_path / "many", each=kill, stop=6)
    assert not first
    assert counts.images < 160
    together, more = run(tmp_path / "many", True)
    assert [done.image_id for done in together] == list(range(1, 161))
    assert together == alone
    assert 0 < more.images < 160 - 16

    assert (pids / str(killed[0])).exists()
