"""Results files of label maps: COCO's stuff results, a JSON list with one row per image and class, and label images."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskkit.data.dataset import Dataset
from maskkit.eval.rows import Known, Row, Unchecked, read_json, rows_in
from maskkit.files import write_json
from maskkit.prediction import Categories


def read_results(path: str | Path, dataset: Dataset) -> list[Row]:
    """The rows of a file of COCO stuff results. Raises `DataError` for the first row that cannot be used."""
    return rows_in(read_json(Path(path)), Path(path), Known.of(dataset), ("segmentation",))


def write_results(folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write ``predictions.json``."""
    write_json(folder / "predictions.json", rows)
