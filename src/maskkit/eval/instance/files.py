"""COCO's results files of objects: JSON lists of rows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskkit.eval.rows import Known, Row, Unchecked, read_json, rows_in, write_rows
from maskkit.prediction import Categories


def read_results(path: str | Path, truth: Mapping[str, Any]) -> list[Row]:
    """The rows of a results file of any tool for the images and classes of COCO ``truth``.

    Raises `DataError` when the file is not a JSON list of results, and for the first row with missing fields, an
    unknown image or category id, a number that is not finite, or a mask that does not fit its image.
    """
    return rows_in(read_json(Path(path)), Path(path), Known.of_coco(truth), ("score",))


def write_results(folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write ``predictions.json`` and ``categories.json``."""
    write_rows(folder, rows, categories)
