"""mIoU and its siblings, against a confusion matrix counted pixel by pixel."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from maskkit.data.label_map import IGNORE
from maskkit.data.shapes import shapes_dataset
from maskkit.errors import DataError
from maskkit.eval.semantic.files import read_results
from maskkit.eval.semantic.metric import contour_band, count_band, evaluate
from maskkit.eval.semantic.report import write_report
from maskkit.prediction import ImageMeta, Prediction

DATA = shapes_dataset(3, seed=5, size=(48, 60), crowd=True).as_semantic()
CLASSES = len(DATA.categories)


def predicted(seed: int = 0) -> list[np.ndarray]:
    """Label maps that are right for most pixels."""
    rng = np.random.default_rng(seed)
    maps = []
    for record in DATA.records:
        assert record.semantic is not None
        truth = record.semantic.read(record.size)
        wrong = rng.integers(0, CLASSES, truth.shape)
        maps.append(np.where((rng.random(truth.shape) < 0.3) | (truth == IGNORE), wrong, truth).astype(np.uint8))
    return maps


def rows_of(maps: list[np.ndarray]) -> list[dict]:
    rows = []
    for record, labels in zip(DATA.records, maps, strict=True):
        meta = ImageMeta(record.image_id, "", record.size, record.size)
        rows += Prediction(meta, DATA.categories, semantic=labels).to_coco()
    return rows


def test_every_pixel_is_counted_once_and_as_numpy_counts_it() -> None:
    maps = predicted()
    result = evaluate(rows_of(maps), DATA)
    counts = np.zeros((CLASSES, CLASSES), int)
    for record, found in zip(DATA.records, maps, strict=True):
        assert record.semantic is not None
        for t, p in zip(record.semantic.read(record.size).ravel().tolist(), found.ravel().tolist(), strict=True):
            if t != IGNORE:
                counts[t, p] += 1
    assert np.array_equal(result.confusion[:, :-1], counts)
    assert not result.confusion[:, -1].any()
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    iou = hits[union > 0] / union[union > 0]
    assert result.main["mIoU"] == pytest.approx(iou.mean(), abs=1e-12)
    assert result.main["accuracy"] == pytest.approx(hits.sum() / counts.sum(), abs=1e-12)
    seen = counts.sum(1) > 0
    assert result.main["class_accuracy"] == pytest.approx((hits[seen] / counts.sum(1)[seen]).mean(), abs=1e-12)


def test_the_truth_itself_is_perfect() -> None:
    maps = [np.where((t := r.semantic.read(r.size)) == IGNORE, 0, t).astype(np.uint8) for r in DATA.records]  # type: ignore[union-attr]
    main = evaluate(rows_of(maps), DATA).main
    assert main["mIoU"] == main["accuracy"] == main["class_accuracy"] == 1
    assert main["boundary_mIoU"] == 1


def test_pixels_of_no_class_are_wrong() -> None:
    rows = [r for r in rows_of(predicted()) if r["category_id"] != DATA.categories.ids[0]]
    result = evaluate(rows, DATA)
    assert result.confusion[:, -1].sum() > 0
    assert result.iou[0] == 0
    assert evaluate([], DATA).main["mIoU"] == 0


def test_bands_are_masks_less_their_erosion() -> None:
    """Boundary IoU as it was published: the band of a class is its mask without what erosion leaves."""
    maps = predicted(1)
    record = DATA.records[0]
    assert record.semantic is not None
    truth, found = record.semantic.read(record.size), maps[0].copy()
    found[truth == IGNORE] = IGNORE
    band = count_band(truth, found, CLASSES)
    width = max(1, round(0.02 * float(np.hypot(*record.size))))
    square = np.ones((3, 3), bool)
    for k in range(CLASSES):
        t, p = (m == k for m in (truth, found))
        near_t, near_p = (m & np.logical_not(ndimage.binary_erosion(m, square, width)) for m in (t, p))
        assert band[k].tolist() == [near_t.sum(), near_p.sum(), (near_t & near_p).sum()]


def test_the_border_of_the_image_is_a_contour() -> None:
    band = contour_band(np.zeros((9, 9), np.uint8), 2)
    assert not band[2:-2, 2:-2].any()
    assert band.sum() == 81 - 25


def test_unknown_images_and_classes_are_refused(tmp_path: Path) -> None:
    rows = rows_of(predicted())
    for change, message in (({"category_id": 77}, "77"), ({"image_id": 99}, "99")):
        with pytest.raises(DataError, match=message):
            evaluate([*rows, {**rows[0], **change}], DATA)
        (tmp_path / "rows.json").write_text(json.dumps([*rows, {**rows[0], **change}]))
        with pytest.raises(DataError, match=rf"row {len(rows) + 1} of .*{message}"):
            read_results(tmp_path / "rows.json", DATA)


def test_results_survive_a_file(tmp_path: Path) -> None:
    rows = rows_of(predicted())
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    again = evaluate(read_results(tmp_path / "rows.json", DATA), DATA)
    assert np.array_equal(again.confusion, evaluate(rows, DATA).confusion)


def test_report_names_every_class_and_the_worst_images(tmp_path: Path) -> None:
    from PIL import Image

    from maskkit.data.records import Record

    records = []
    for record in DATA.records:
        path = tmp_path / f"{record.image_id}.jpg"
        Image.fromarray(DATA._read(record)).save(path)
        records.append(Record(record.image_id, path, record.size, [], record.semantic))
    data = type(DATA)(records, DATA.categories, tmp_path, "shapes", images=DATA.images)  # type: ignore[attr-defined]
    rows = rows_of(predicted())
    write_report(tmp_path / "report.html", evaluate(rows, data), rows, data, "Title", ["a note"])
    page = (tmp_path / "report.html").read_text()
    for text in ("Title", "a note", *DATA.categories.names, "3.jpg", "predicted as"):
        assert text in page


def test_two_classes_cannot_claim_a_pixel() -> None:
    """Nor can they for COCO's stuff API; rows of one class may overlap."""
    rows = rows_of(predicted())
    assert evaluate([*rows, rows[0]], DATA).main == evaluate(rows, DATA).main
    with pytest.raises(DataError, match="two predicted regions of different classes claim the same pixel of image 1"):
        evaluate([*rows, {**rows[0], "category_id": rows[1]["category_id"]}], DATA)
