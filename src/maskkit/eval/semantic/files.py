"""Results files of label maps: COCO's stuff results, a JSON list with one row per image and class, and label images."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE
from maskkit.eval.rows import Known, Row, Unchecked, named_rows, read_json, rows_in, write_rows
from maskkit.geometry import rle as rle_codec
from maskkit.infer.draw import save_labels
from maskkit.prediction import Categories, ImageMeta, Prediction


def read_results(path: str | Path, dataset: Dataset) -> list[Row]:
    """The rows of a file of COCO's stuff results. Raises `DataError` for the first bad row."""
    return rows_in(read_json(Path(path)), Path(path), Known.of(dataset), ("segmentation",))


def write_results(folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write ``predictions.json``, ``categories.json`` and ``labels/``, a PNG per image.

    Its values are class numbers 0..K-1 of ``categories``, 255 where no class was predicted; its palette has the
    colours of overlays. ``images`` are COCO's image records.
    """
    write_rows(folder, rows, categories)
    for stem, image, found in named_rows(rows, images):
        size = (image["height"], image["width"])
        labels = np.full(size, IGNORE, np.uint8)
        for row in found:
            labels[rle_codec.decode([row["segmentation"]], size)[0]] = categories.index(row["category_id"])
        meta = ImageMeta(image["id"], image["file_name"], size, size)
        save_labels(Prediction(meta, categories, semantic=labels), folder / "labels" / f"{stem}.png")
