"""Results of semantic models as files."""

from pathlib import Path

import numpy as np
from PIL import Image

from maskkit.data.shapes import shapes_dataset
from maskkit.eval.rows import Row, rows_of
from maskkit.eval.semantic.files import read_results, write_results
from maskkit.prediction import ImageMeta, Prediction

DATA = shapes_dataset(2, 1, (32, 40)).as_semantic()


def rows() -> tuple[list[Row], list[np.ndarray]]:
    """The truth as predictions, and its label maps."""
    maps = [r.semantic.read(r.size) for r in DATA.records if r.semantic is not None]
    metas = [ImageMeta(r.image_id, "", r.size, r.size) for r in DATA.records]
    found = [Prediction(meta, DATA.categories, semantic=m) for meta, m in zip(metas, maps, strict=True)]
    return rows_of(found), maps


def test_rows_and_label_images_are_written(tmp_path: Path) -> None:
    found, maps = rows()
    images = [{**image, "file_name": f"{i}/same.jpg"} for i, image in enumerate(DATA.coco_images())]
    write_results(tmp_path, found, images, DATA.categories)
    assert read_results(tmp_path / "predictions.json", DATA) == found
    for name, labels in zip(("same", "same_2"), maps, strict=True):
        with Image.open(tmp_path / "labels" / f"{name}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), labels)


def test_where_nothing_was_predicted_nothing_is_known(tmp_path: Path) -> None:
    found, maps = rows()
    dropped = [r for r in found if r["category_id"] != DATA.categories.ids[0]]
    write_results(tmp_path, dropped, DATA.coco_images(), DATA.categories)
    (first, _) = sorted((tmp_path / "labels").iterdir())
    with Image.open(first) as image:
        assert np.array_equal(np.asarray(image) == 255, maps[0] == 0)
