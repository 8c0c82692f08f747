"""Results of many images on disk: complete lines, going on, what an earlier run left."""

import json
import tracemalloc

import pytest

from maskkit.errors import MaskkitError
from maskkit.eval.rows import StoredRows, named_rows
from maskkit.files import write_json
from maskkit.infer.results import Results
from maskkit.prediction import ImageMeta


def add(results: Results, number: int, path: str, rows: int = 1) -> None:
    meta = ImageMeta(number, path, (30, 40), (30, 40))
    overlay = results.overlay_of(meta)
    overlay.parent.mkdir(exist_ok=True)
    overlay.write_bytes(b"drawn")
    results.add(meta, overlay, [{"image_id": number, "category_id": 1, "n": i} for i in range(rows)])


def fill(folder, settings=None, resume=False, paths=("a.jpg", "b.jpg")) -> Results:
    with Results(folder, settings or {"score": 0.3}, resume) as results:
        for number, path in enumerate(paths, 1):
            if not results.has(number, path):
                add(results, number, path, number)
    return results


def test_what_is_written_can_be_read_while_others_are_added(tmp_path):
    with Results(tmp_path, {}) as results:
        for number in (1, 2, 3):
            add(results, number, f"{number}.jpg", number)
            assert [image["id"] for image, _ in results.read()] == list(range(1, number + 1))
    assert (len(results), results.rows) == (3, 6)
    assert [i["overlay"] for i in results.images()] == ["1.jpg", "2.jpg", "3.jpg"]


def test_images_of_one_name_have_overlays_of_their_own(tmp_path):
    results = fill(tmp_path, paths=("x/a.jpg", "y/a.png", "z/A.jpg", "a" * 240 + ".jpg", "a" * 240 + ".png", "é" * 120))
    names = [i["overlay"] for i in results.images()]
    assert len({n.lower() for n in names}) == 6
    assert names[:2] == ["a.jpg", "2-a.jpg"]
    assert max(len(n.encode()) for n in names) < 200


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_not_complete_is_done_again(tmp_path, cut):
    fill(tmp_path)
    path = tmp_path / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(Results(tmp_path, {"score": 0.3}, resume=True)) == 1
    results = fill(tmp_path, resume=True)
    assert (len(results), results.rows) == (2, 3)
    assert path.read_bytes() == whole


def test_resume_refuses_other_settings_other_images_and_damage(tmp_path):
    fill(tmp_path)
    with pytest.raises(MaskkitError, match=r"was made with score 0\.3, not 0\.5"):
        Results(tmp_path, {"score": 0.5}, resume=True)
    with pytest.raises(MaskkitError, match=r"image 1 was a\.jpg, now it is c\.jpg"):
        fill(tmp_path, resume=True, paths=("c.jpg",))
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"rows"', b'"rats"', 1))
    with pytest.raises(MaskkitError, match="line 2: is damaged"):
        Results(tmp_path, {"score": 0.3}, resume=True)
    path.write_bytes(b'{"settings"')
    with pytest.raises(MaskkitError, match="has no complete line"):
        Results(tmp_path, {"score": 0.3}, resume=True)


def test_a_new_run_removes_what_an_earlier_one_made_and_nothing_else(tmp_path):
    fill(tmp_path)
    for name in ("predictions.json", "labels/a.png", "labels/mine.png", "overlays/mine.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    results = fill(tmp_path, paths=("c.jpg",))
    assert results.removed == 2
    assert results.foreign() == 1
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    assert left == {"predictions.jsonl", "notes.txt", "labels/mine.png", "overlays/mine.jpg", "overlays/c.jpg"}


@pytest.mark.parametrize("text", ["", "no json\n", "[1]\n", '{"a": 1}\n', '{"settings": {}}\n{"overlay": 3}\n'])
def test_a_file_that_is_not_ours_is_kept(tmp_path, text):
    (tmp_path / "predictions.jsonl").write_text(text)
    if text in ("", '{"settings": {}}\n{"overlay": 3}\n'):
        Results(tmp_path, {})
    else:
        with pytest.raises(MaskkitError, match="choose another --out"):
            Results(tmp_path, {})
        assert (tmp_path / "predictions.jsonl").read_text() == text


def test_no_name_in_the_file_leads_out_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious.jpg").write_text("x")
    line = {"image": {"id": 1, "file_name": "a"}, "overlay": "../../precious.jpg", "rows": []}
    (tmp_path / "run" / "predictions.jsonl").write_text(json.dumps({"settings": {}}) + "\n" + json.dumps(line) + "\n")
    Results(tmp_path / "run", {})
    assert (tmp_path / "precious.jpg").exists()


def test_stored_rows_are_read_again_each_time(tmp_path):
    results = fill(tmp_path, paths=("a/x.jpg", "b/x.jpg", "c.jpg"))
    rows = StoredRows(lambda: (found for _, found in results.read()), results.rows)
    assert len(rows) == len(list(rows)) == len(list(rows)) == 6
    assert rows[5]["n"] == 2
    write_json(tmp_path / "rows.json", rows)
    assert (tmp_path / "rows.json").read_text() == json.dumps(list(rows))
    named = [(stem, len(found)) for stem, _, found in named_rows(rows, results.images())]
    assert named == [("x", 1), ("2-x", 2), ("c", 3)]
    write_json(tmp_path / "none.json", StoredRows(lambda: iter([]), 0))
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_rows_of_many_images_are_never_in_memory_together(tmp_path):
    """300 images with 100 kB of masks each."""
    tracemalloc.start()
    try:
        with Results(tmp_path, {}) as results:
            for number in range(1, 301):
                meta = ImageMeta(number, f"{number}.jpg", (30, 40), (30, 40))
                results.add(meta, tmp_path / f"{number}.jpg", [{"image_id": number, "counts": "x" * 1000}] * 100)
        rows = StoredRows(lambda: (found for _, found in results.read()), results.rows)
        write_json(tmp_path / "predictions.json", rows)
        assert sum(len(found) for _, _, found in named_rows(rows, results.images())) == 30_000
        again = Results(tmp_path, {}, resume=True)
        assert len(again) == 300
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()
    assert (tmp_path / "predictions.json").stat().st_size > 30e6
