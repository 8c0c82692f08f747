"""Whatever the system refuses a training is one line with file and fix; earlier files stay whole; resume goes on."""

import errno
import io
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.foreign import write_tensors
from maskkit.cli import main
from maskkit.config import RunConfig
from maskkit.data import shapes
from maskkit.engine import train as train_module
from maskkit.engine.failures import failure
from maskkit.engine.log import RunLog
from maskkit.engine.train import train
from maskkit.errors import FileError, MaskkitError, explain
from maskkit.eval.page import confusions
from maskkit.files import remove_leftovers, replacing, scratch_folder, write_json


@pytest.fixture
def without_figures() -> None:
    """Here they are drawn."""


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Sets the size at which the system refuses to write more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path, small_files: Callable[[int], None]) -> None:
    path = tmp_path / "last.safetensors"
    write_tensors(path, {"a": torch.zeros(10)}, {"old": "yes"})
    before = path.read_bytes()
    small_files(100_000)
    with pytest.raises(FileError) as caught:
        write_tensors(path, {"a": torch.zeros(100_000)}, {})
    assert str(caught.value).startswith(f"{path}: File too large; ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_of_the_command(
    tmp_path: Path, small_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = shapes.write(tmp_path / "data", train=2, val=1, size=(64, 64), objects=(1, 2)), tmp_path / "run"
    options = "--weights random --input.size 64 64 --model.width 16 --train.steps 1 --train.batch 1 --train.workers 0"
    small_files(3_000_000)
    command = ["train", "--model", "yolact-mobilenetv2-256", "--data", str(data), "--out", str(out), *options.split()]
    assert main(command) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskkit: ")]
    assert len(said) == 1
    assert said[0].startswith(f"maskkit: {out / 'last.safetensors'}: File too large; ")
    assert not out.exists(), "nothing half-written"


def refusal(work: Callable[[], Any]) -> str | None:
    """What a refused file says, or None where all went well."""
    try:
        work()
    except FileError as error:
        return str(error)
    return None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_write_may_fail(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """The k-th file that is brought to the disk fails, for each k, in the place of a step or of an evaluation."""
    config = replace(run, train=replace(run.train, steps=3, eval_every=0.0, save_every=2))
    monkeypatch.setattr("maskkit.engine.validate.SAMPLES", 1)
    monkeypatch.setattr(train_module, "write_report", lambda *_: None)
    whole = load_file(train(config, tmp_path / "whole").last)
    sync, failed, refused = os.fsync, True, 0
    for k in range(1, 100):
        if not failed:
            break
        calls, failed, out = iter(range(1, 1000)), False, tmp_path / str(k)

        def refuse(handle: int, calls: Iterator[int] = calls, k: int = k) -> None:
            nonlocal failed
            if not stat.S_ISDIR(os.fstat(handle).st_mode) and next(calls) == k:
                failed = True
                raise OSError(number, os.strerror(number))
            sync(handle)

        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            said = refusal(lambda out=out: train(config, out))
        if said is None:  # a drawing is no reason to stop
            assert not failed or "the results are not affected" in capsys.readouterr().err
        else:
            refused += 1
            assert said.startswith(f"{out}{os.sep}")
            assert os.strerror(number) in said
            assert "\n" not in said
        assert not out.exists() or not [p for p in out.iterdir() if p.name.startswith(".")]
        for path in out.glob("*.safetensors"):
            load_model(path)
        again = load_file(train(config, out, resume=True).last)
        assert all(torch.equal(again[n], whole[n]) for n in whole)
    assert refused >= 6


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        name = str(tmp_path / "metrics.jsonl")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with RunLog(tmp_path, 0, 10) as log:
        monkeypatch.setattr(log, "_file", Full())
        with pytest.raises(FileError, match=r"metrics.jsonl: No space left on device; free some space"):
            log.evaluation(1, {"AP": 0.5})
        monkeypatch.undo()


def test_errors_of_the_system_name_file_and_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"file/deep/a.json: .*; a file is where a folder should be"):
        write_json(tmp_path / "file" / "deep" / "a.json", {})
    with pytest.raises(FileError, match=r"x{300}: File name too long; choose a shorter name"):
        write_json(tmp_path / ("x" * 300), {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"folder: Is a directory; a folder is where a file should be"):
        write_json(tmp_path / "folder", {})
    with pytest.raises(FileNotFoundError, match="other"), replacing(tmp_path / "a"):
        open(tmp_path / "other")  # noqa: SIM115 (an error about another file stays what it is)
    assert explain(OSError(errno.EIO, "Input/output error"), "a") == (
        "a: Input/output error; the disk or the network reports an error; check it and try again"
    )
    assert explain(OSError("odd")) == "odd; check the disk and the path"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_checkpoints_take_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


def test_what_a_killed_writer_of_tensors_left_is_removed(tmp_path: Path) -> None:
    unfinished = scratch_folder(tmp_path / "last.safetensors")
    left = unfinished.__enter__()
    (left / ".tmpAbCdEf").write_bytes(b"half of a checkpoint")  # the name that safetensors gives it
    (tmp_path / ".tmpmine0").write_text("of another program")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".tmpmine0"]


def test_batch_norm_with_one_value() -> None:
    with pytest.raises(ValueError) as caught:
        nn.BatchNorm2d(2)(torch.ones(1, 2, 1, 1))
    said = failure(caught.value, "--train.", "")
    assert type(said) is MaskkitError
    assert "raise --train.batch" in str(said)
    assert "--model.backbone.norm frozen" in str(said)


def test_known_failures_of_torch_are_one_line() -> None:
    for error, part in (
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "lower --train.workers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "the GPU has not enough memory"),
        (MemoryError(), "the machine has not enough memory"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "a: Too many open files; too many files are open; raise"),
    ):
        said = str(failure(error, "--train.", "then go on after step 7 with --resume"))
        assert part in said
        assert said.endswith("; then go on after step 7 with --resume")
    assert failure(MaskkitError("known"), "--", "") is None
    assert failure(ValueError("a bug"), "--", "") is None


NAMES = (r"$\frac$", "cat\ud800", "$x^$", "\x1b[31mred", "a\nb", "<b>", "日本", "$", "", "x" * 300, r"\undefined", "%")


def test_a_matrix_of_any_class_names() -> None:
    counts = np.arange((len(NAMES) + 1) ** 2).reshape(len(NAMES) + 1, -1)
    assert confusions(counts, counts, NAMES, nothing=True).drawing.startswith("data:image/svg")


def test_a_report_of_any_class_names(tmp_path: Path, drawn: Path, run: RunConfig) -> None:
    folder = tmp_path / "data"
    shutil.copytree(drawn, folder)
    for split in ("train", "val"):
        truth = json.loads((folder / f"{split}.json").read_text())
        for category, name in zip(truth["categories"], NAMES, strict=False):
            category["name"] = name
        (folder / f"{split}.json").write_text(json.dumps(truth))
    short = replace(run.train, steps=1, eval_every=0.0)
    result = train(replace(run, train=short, data=replace(run.data, train=str(folder))), tmp_path / "run")
    assert (result.out / "report.html").exists()
    assert load_model(result.best).categories.names == NAMES[:2]


def test_a_report_never_costs_a_run(
    tmp_path: Path, run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise ValueError("\n$\\frac$\n^\nParseFatalException")

    monkeypatch.setattr("maskkit.eval.page.svg", fails)
    monkeypatch.setattr("maskkit.engine.validate.draw", fails)
    out = tmp_path / "run"
    result = train(replace(run, train=replace(run.train, steps=1)), out)
    assert result.metrics.keys() >= {"AP"}
    said = [line for line in capsys.readouterr().err.splitlines() if "not written" in line]
    assert len(said) == 2
    assert f"{out / 'report.html'}: not written (ValueError: " in said[1]
    assert not (out / "report.html").exists()


def test_a_report_never_costs_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = shapes.write(tmp_path / "data", train=1, val=2, size=(64, 64), objects=(1, 3)), tmp_path / "out"
    truth = json.loads((data / "val.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    rows = [{key: a[key] for key in keys} | {"score": 1.0} for a in truth["annotations"]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    out.mkdir()
    (out / "report.html").write_text("of an earlier evaluation")
    monkeypatch.setattr("maskkit.eval.page.svg", lambda figure: np.zeros(1)[2])
    args = ["--predictions", str(tmp_path / "rows.json"), "--data", str(data / "val.json"), "--out", str(out)]
    assert main(["eval", *args]) == 0
    said = capsys.readouterr()
    assert "1.000" in said.out
    assert said.err.count("\n") == 1
    assert "report.html: not written (IndexError" in said.err
    assert [p.name for p in out.iterdir()] == ["metrics.json"]
