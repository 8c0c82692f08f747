"""Outputs are whole or not there."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from maskkit.files import remove_leftovers, replacing, write_json


def test_the_file_appears_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as temporary:
        temporary.write_text("half") + "not a number"  # type: ignore[operator]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_renaming_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("a file")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the last one to be done"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot sync a folder")
def test_content_is_on_the_disk_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(source: Path, target: Path) -> None:
        done.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_json(tmp_path / "a.json", [1])
    assert done == ["file", "name", "folder"]


def test_what_a_killed_process_left_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / ".mine.tmp").touch()
    unfinished = replacing(tmp_path / "a.txt")
    left = unfinished.__enter__()
    assert left.exists()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".mine.tmp"]


def test_files_take_the_mode_of_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.bin") as temporary:  # as safetensors does: a private file in its place
            handle, name = tempfile.mkstemp(dir=tmp_path)
            os.close(handle)
            os.replace(name, temporary)
        with replacing(tmp_path / "b.bin") as temporary:
            temporary.write_bytes(b"x")
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "b.bin")] == [0o640, 0o640]
