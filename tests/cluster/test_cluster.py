"""Runs on many machines without Ray: sources, parts, workers, what is written, and going on."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskkit
from maskkit import api, cli
from maskkit.checkpoints import find
from maskkit.cli.predict_cluster import _folder, _job
from maskkit.cluster import ray_batch, sources, storage, worker
from maskkit.cluster.parts import decoded
from maskkit.cluster.ray_batch import Pool, Run
from maskkit.cluster.sources import Part, addresses, open_table, parts_of
from maskkit.cluster.storage import Storage
from maskkit.cluster.worker import Job, Worker
from maskkit.config import InputConfig
from maskkit.decode import LabelMap
from maskkit.errors import DataError, FileError, MaskkitError
from maskkit.infer.predict import Predictor
from maskkit.prediction import Categories
from tests.infer.test_tiles import Colours
from tests.serve.fake import FAILS, load

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def image(brightness: int | tuple[int, int, int]) -> np.ndarray:
    return np.full((40, 50, 3), brightness, np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    content = BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images, of which one is damaged and one is of no image's content."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(40):
        (folder / f"{n:02d}.png").write_bytes(encoded(image(5 * n)))
    (folder / "07.png").write_bytes(b"no image")
    (folder / "20.png").write_bytes((folder / "20.png").read_bytes()[:60])
    return folder


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "load", lambda *_: load())


def in_this_process(run: Run, job: Job, pool: Pool) -> Iterator[Mapping[str, Any]]:
    worker = Worker(job)
    for part in run.left:
        answer = worker(part._asdict())
        if answer["stop"]:
            raise MaskkitError(answer["stop"])
        yield answer


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_batch, "predict_parts", in_this_process)


def predict(*args: object) -> int:
    return cli.main(["predict", *map(str, args)])


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "parts").iterdir()) for row in parquet.read_table(path).to_pylist()]


def test_results_are_those_of_one_process_to_the_byte(photos: Path, tmp_path: Path, no_ray: None, capsys) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert predict(photos, "--out", one) == 1
    plain = capsys.readouterr()
    assert predict(photos, "--out", many, "--cluster", "--results", "coco") == 1
    clustered = capsys.readouterr()
    assert (many / "predictions.json").read_bytes() == (one / "predictions.json").read_bytes()
    assert (many / "categories.json").read_bytes() == (one / "categories.json").read_bytes()
    images = [{k: v for k, v in i.items() if k != "overlay"} for i in json.loads((one / "images.json").read_text())]
    assert json.loads((many / "images.json").read_text()) == images
    assert clustered.err == plain.err
    assert "2 sources failed" in clustered.err
    rows = rows_in(many)
    assert sorted({row["image_id"] for row in rows}) == list(range(1, 41))
    assert {row["image_id"]: row["error"] for row in rows if row["error"]}.keys() == {8, 21}
    assert "not an image" in next(row["error"] for row in rows if row["image_id"] == 8)
    assert {(row["model"], row["version"]) for row in rows} == {("built-in", maskkit.__version__)}
    assert {row["class"] for row in rows} == {"disc", "ring", "Ünïcode <b>", None}


def test_label_maps(tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "load", lambda *_: semantic())
    for n, colour in enumerate([(100, 0, 0), (0, 100, 0)]):
        Image.fromarray(image(colour)).save(tmp_path / f"{n}.png")
    assert predict(tmp_path / "0.png", tmp_path / "1.png", "--out", tmp_path / "one") == 0
    assert predict(tmp_path / "*.png", "--out", tmp_path / "many", "--cluster", "--results", "coco") == 0
    for name in ("predictions.json", "labels/0.png", "labels/1.png"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def semantic() -> api.Segmenter:
    input = InputConfig(size=(40, 50), resize="stretch", mean=(0, 0, 0), std=(1, 1, 1))
    return api.Segmenter(Predictor(Colours(), LabelMap(), input, Categories.of(["back", "red", "green"])), "semantic")


def test_a_run_goes_on(photos: Path, tmp_path: Path, no_ray: None, capsys) -> None:
    out = tmp_path / "out"
    args = [photos, "--out", out, "--cluster"]
    assert predict(*args) == 1
    whole = rows_in(out)
    parts = sorted((out / "parts").iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    (out / "parts" / ".part-000002.parquet.0123456789ab.tmp").write_bytes(b"a half")
    before = parts[0].stat().st_mtime_ns
    capsys.readouterr()
    assert predict(*args) == 1
    assert "--resume" in capsys.readouterr().err
    assert predict(*args, "--resume") == 1
    assert "in 16 images and 24 images done before" in capsys.readouterr().out
    assert rows_in(out) == whole
    assert parts[0].stat().st_mtime_ns == before
    assert predict(*args, "--resume", "--score", 0.8) == 1
    assert "was made with score 0.5, not 0.8" in capsys.readouterr().err
    (out / "run.json").write_text("{")
    assert predict(*args, "--resume") == 1
    assert "is damaged" in capsys.readouterr().err
    (out / "run.json").unlink()  # nobody knows which model made the parts
    assert predict(*args) == predict(*args, "--resume") == 1
    assert capsys.readouterr().err.count("parts: holds results, but run.json beside it is missing") == 2


def tables(folder: Path) -> dict[str, Path]:
    """The same images in each layout, with one without content."""
    contents = [encoded(image(30 * n)) for n in range(5)] + [None]
    names = [f"{n}.png" for n in range(6)]
    for name, content in zip(names, contents, strict=True):
        if content:
            (folder / name).write_bytes(content)
    columns = {
        "addresses": {
            "image": [str(folder / name) for name in names[:3]] + [f"file://{folder / n}" for n in names[3:]]
        },
        "bytes": {"image": names, "bytes": contents, "more": range(6)},
        "structs": {"image": [{"bytes": c, "path": n} for n, c in zip(names, contents, strict=True)]},
        "nameless": {"bytes": contents},
    }
    for name, table in columns.items():
        parquet.write_table(pa.table(table), folder / f"{name}.parquet", row_group_size=4)
    return {name: folder / f"{name}.parquet" for name in columns}


def test_tables_of_every_layout(tmp_path: Path, no_ray: None, capsys) -> None:
    found = {}
    for name, path in tables(tmp_path).items():
        assert predict(path, "--out", tmp_path / name, "--cluster") == 1
        rows = rows_in(tmp_path / name)
        found[name] = [(r["image_id"], r["score"], r["mask"]) for r in rows]
        error = next(r["error"] for r in rows if r["image_id"] == 6)
        assert ("there is no such file" if name == "addresses" else "has no content") in error
        assert {Path(r["image"]).name for r in rows} == (
            {f"nameless.parquet, row {n}" for n in range(1, 7)}
            if name == "nameless"
            else {f"{n}.png" for n in range(6)}
        )
    assert len(set(map(tuple, found.values()))) == 1
    wrong = tmp_path / "wrong.parquet"
    parquet.write_table(pa.table({"photo": ["a"]}), wrong)
    (tmp_path / "text.parquet").write_text("no table")
    capsys.readouterr()
    for source, text in ((wrong, "has the columns photo"), (tmp_path / "text.parquet", "is no Parquet file")):
        assert predict(source, "--out", tmp_path / "w", "--cluster") == 1
        assert text in capsys.readouterr().err
    assert predict(tmp_path / "bytes.parquet", tmp_path / "0.png", "--out", tmp_path / "w", "--cluster") == 1
    assert "give it without sources that are files" in capsys.readouterr().err


def test_parts_are_whole_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("a", 10), ("b", 5)):
        parquet.write_table(pa.table({"bytes": [b"x"] * rows}), tmp_path / f"{name}.parquet", row_group_size=3)
    monkeypatch.setattr(sources, "_SMALLEST", 5)
    parts = parts_of(open_table(str(tmp_path / f"{name}.parquet")) for name in "ab")
    assert [(p.begin, p.end, p.row, p.first, p.images) for p in parts] == [
        (0, 2, 0, 1, 6),
        (2, 4, 6, 7, 4),
        (0, 2, 0, 11, 5),
    ]
    assert [p.name for p in parts] == ["part-000000.parquet", "part-000001.parquet", "part-000002.parquet"]
    names = [item.name.partition(", ")[2] for part in parts for item in sources.items_of(part)]
    assert names == [f"row {n}" for n in (*range(1, 11), *range(1, 6))]


def test_addresses(photos: Path, tmp_path: Path, no_ray: None, capsys) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(photos.iterdir())[:3]:
            file.write(path, path.name)
        file.writestr("notes.txt", "x")
    packed = f"zip://*.png::{tmp_path / 'photos.zip'}"
    assert addresses(packed) == [f"zip://{n:02d}.png::{tmp_path / 'photos.zip'}" for n in range(3)]
    assert len(addresses(f"file://{photos}")) == 40
    assert (
        predict(packed, f"file://{photos}/03.png", f"file://{photos}/no.png", "--out", "memory://o", "--cluster") == 1
    )
    assert "no.png: there is no such file" in capsys.readouterr().err
    out = Storage("memory://o")
    assert out.names("") >= {"run.json", "images.parquet"}
    (part,) = out.names("parts")
    images = list(decoded(BytesIO(out.read(f"parts/{part}"))))
    assert [Path(done.image.partition("::")[0]).name for done in images] == [
        "00.png",
        "01.png",
        "02.png",
        "03.png",
        "no.png",
    ]
    assert predict("nowhere://x/*.jpg", "--out", tmp_path / "n", "--cluster") == 1
    assert "Protocol not known" in capsys.readouterr().err
    assert predict(f"zip://*.jpg::{tmp_path / 'photos.zip'}", "--out", tmp_path / "n", "--cluster") == 1
    assert "contains no image" in capsys.readouterr().err


def job(**more: Any) -> Job:
    digest = worker.digest(find.BUILT_IN_WEIGHTS)
    given = {"model": "built-in", "weights": digest, "load": load, "selection": worker.Selection(), "score": 0.5}
    with suppress(FileError):
        Storage(more["out"]).write("run.json", b"{}")
    return Job(**{**given, "batch": 4, "directory": os.getcwd(), **more})


@pytest.mark.parametrize(
    ("source", "gpus", "readers"),
    [("photos", 0, 1), ("photos", 1, 4), ("s3://photos", 0, 4), ("photos.parquet", 0, 4)],
)
def test_far_images_have_more_readers(source: str, gpus: int, readers: int) -> None:
    settings = {"model": "built-in", "weights": "", "score": 0.5}
    assert _job(load, [source], settings, "", worker.Selection(), 1, Pool(1, gpus=gpus)).readers == readers


def part(path: Path, images: int) -> dict[str, Any]:
    return Part(0, str(path), open_table(str(path)).layout, 0, 1, 0, 1, images)._asdict()


def test_what_stops_a_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that the other images would have too; nothing is written then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unmounted").mkdir()
    assert _folder(str(tmp_path / "photos" / "**" / "*.png")) == _folder(str(photos / "00.png")) == str(photos)
    assert _folder("*.png") == "."
    listed = tmp_path / "list.parquet"
    parquet.write_table(pa.table({"image": [str(photos / "00.png"), str(photos / "no.png")]}), listed)
    out = str(tmp_path / "out")
    given = part(listed, 2)
    assert Worker(job(out=out, folders=(str(photos),)))(given)["failed"] == 1
    (tmp_path / "out" / "parts" / "part-000000.parquet").unlink()
    for wrong, text in (
        (job(out=out, weights="0" * 64), "built-in: is another file on"),
        (job(out=out, directory=str(tmp_path / "gone"), relative=True), "gone: is not on"),
        (job(out=out, folders=(str(photos), str(tmp_path / "gone"))), "gone: is not on"),
        (job(out=out, folders=(str(tmp_path / "unmounted"),)), "unmounted: is not on"),
        (job(out=str(listed / "out")), "a file is where a folder should be"),
    ):
        answer = Worker(wrong)(given)
        assert text in answer["stop"], answer
        assert not list((tmp_path / "out" / "parts").iterdir())

    elsewhere = job(out=out)
    (tmp_path / "out" / "run.json").unlink()
    assert "out: is another folder on" in Worker(elsewhere)(given)["stop"]

    def fails(address: str) -> bytes:
        raise FileError(f"{address}: the network is down")

    monkeypatch.setattr(sources, "fetch", fails)
    parquet.write_table(pa.table({"image": ["s3://b/a.jpg"]}), listed)
    assert Worker(job(out=out))(part(listed, 1))["stop"] == "s3://b/a.jpg: the network is down"


def test_a_fault_of_the_program_is_one_images(tmp_path: Path) -> None:
    path = tmp_path / "bytes.parquet"
    contents = [encoded(image(c)) for c in (10, FAILS, 30)] + [b"no image"]
    parquet.write_table(pa.table({"bytes": contents}), path)
    answer = Worker(job(out=str(tmp_path / "out")))(part(path, 4))
    assert (answer["stop"], answer["failed"]) == ("", 2)
    errors = {row["image_id"]: row["error"] for row in rows_in(tmp_path / "out")}
    assert errors[1] is errors[3] is None
    assert "row 2: the program failed (RuntimeError" in errors[2]
    assert "row 4: not an image" in errors[4]


def test_a_damaged_table_stops_a_run(tmp_path: Path) -> None:
    path = tmp_path / "names.parquet"
    parquet.write_table(pa.table({"image": pa.array([b"\xff.png"], pa.binary()).view(pa.string())}), path)
    assert "names.parquet: is damaged ('utf-8'" in Worker(job(out=str(tmp_path / "out")))(part(path, 1))["stop"]


def test_an_image_at_which_workers_die_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "bytes.parquet", tmp_path / "out"
    parquet.write_table(pa.table({"bytes": [encoded(image(c)) for c in (10, 20, 30)]}), path)
    given, work = part(path, 3), Worker(job(out=str(out)))
    found, deadly = work._found, {2}

    def dies(items: Any, batch: int) -> Any:
        (item,) = items if batch == 1 else (None,)
        if item is None or item.image_id in deadly:
            raise KeyboardInterrupt  # as good as a kill: nothing catches it
        return found([item], batch)

    monkeypatch.setattr(work, "_found", dies)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            work(given)
    assert json.loads((out / "begun" / "part-000000.parquet.json").read_text()) == {
        "begun": 4,
        "deaths": {"2": 1},
        "at": "2",
    }
    assert work(given)["failed"] == 1
    errors = {row["image_id"]: row["error"] for row in rows_in(out)}
    assert errors == {1: None, 2: f"{path}, row 2: 2 workers died at it", 3: None}
    assert not list((out / "begun").iterdir())
    deadly.clear()
    (out / "begun" / "part-000000.parquet.json").write_text('{"begun": 11}')
    assert "12 workers died at part-000000.parquet before its first image" in work(given)["stop"]


def test_errors_of_storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def cat_file(self, path: str) -> bytes:
            raise self.error

    kinds = {
        DataError: [FileNotFoundError("x"), PermissionError(13, "denied"), ValueError("a bad zip")],
        FileError: [OSError(5, "broken"), TimeoutError("slow")],
    }
    for kind, errors in kinds.items():
        for error in errors:
            monkeypatch.setattr(storage, "file_system", partial(lambda e, _: (Broken(e), "b"), error))
            with pytest.raises(kind, match=r"^s3://b/a\.jpg: "):
                storage.fetch("s3://b/a.jpg")


def test_wrong_usage(tmp_path: Path) -> None:
    for args in (["a.mp4", "--cluster"], ["a.jpg", "--cluster", "--no-boxes"], ["a.jpg", "--workers", 2]):
        with pytest.raises(SystemExit) as left:
            predict(*args, "--out", tmp_path)
        assert left.value.code == 2
    with pytest.raises(SystemExit):
        predict("a.jpg", "--cluster", "--results", "coco", "--out", "memory://coco")
