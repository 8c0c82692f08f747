"""Half-made data sets of conversions that were killed are removed; others are not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from maskkit.data.convert import convert
from tests.data.written import object_row, write_coco


def test_only_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    notes = {
        "a": f"{host}\n{ended.pid}\n",
        "b": f"{host}\n{os.getpid()}\n",
        "c": f"other\n{ended.pid}\n",
        "d": "?",
        "e": None,
    }
    for letter, note in notes.items():
        folder = tmp_path / f".new.{12 * letter}.tmp"
        folder.mkdir()
        (folder / "mine.txt").write_text("x")
        if note is not None:
            (folder / ".made-by-maskkit").write_text(note)
    source = write_coco(tmp_path / "data" / "annotations.json", [object_row(1)])
    convert(source, tmp_path / "new", "yolo")
    assert sorted(p.name[5] for p in tmp_path.glob(".new.*")) == ["b", "c", "d", "e"]
    assert not list((tmp_path / "new").rglob(".*"))
