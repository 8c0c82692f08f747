"""Half-made data sets of conversions that were killed are removed; others are not."""

import os
import subprocess
import sys
from pathlib import Path

from maskkit.data.convert import convert
from maskkit.data.convert.leftovers import new_folder
from tests.data.written import object_row, write_coco


def test_only_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours = new_folder(tmp_path / "new").name
    host = ours.removeprefix(".new.").partition("-")[0]
    assert f"-{os.getpid()}-" in ours
    names = {
        "ended": f".new.{host}-{ended.pid}-{8 * 'a'}.tmp",
        "alive": f".new.{host}-{os.getpid()}-{8 * 'b'}.tmp",
        "elsewhere": f".new.{8 * '0'}-{ended.pid}-{8 * 'c'}.tmp",
        "of another name": f".newer.{host}-{ended.pid}-{8 * 'd'}.tmp",
        "of the user": ".new.mine.tmp",
        "no process": f".new.{host}-9999999999-{8 * 'e'}.tmp",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("x")
    source = write_coco(tmp_path / "data" / "annotations.json", [object_row(1)])
    convert(source, tmp_path / "new", "yolo")
    left = {what for what, name in names.items() if (tmp_path / name).exists()}
    assert left == names.keys() - {"ended"}
    assert not list((tmp_path / "new").rglob(".*"))
