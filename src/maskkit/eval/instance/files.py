"""COCO's results files of objects: JSON lists of rows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskkit.errors import DataError
from maskkit.eval.rows import Known, Row, Unchecked, read_json, rows_in, write_rows
from maskkit.prediction import Categories


def read_results(path: str | Path, truth: Mapping[str, Any]) -> list[Row]:
    """The rows of a results file of any tool for the images and classes of COCO ``truth``.

    Raises `DataError` when the file is not a JSON list of results, and for the first row with missing fields, an
    unknown image or category id, a number that is not finite, a mask that does not fit its image, or no mask where
    other rows and the truth have some.
    """
    rows = rows_in(read_json(Path(path)), Path(path), Known.of_coco(truth), ("score",))
    masked = [bool(row.get("segmentation")) for row in rows]
    if any(masked) and not all(masked) and any(a.get("segmentation") for a in truth["annotations"]):
        place = f"row {masked.index(False) + 1} of {len(rows)}"
        raise DataError(f"{path}, {place}: has no segmentation, as others have; write all masks, or boxes alone")
    return rows


def write_results(folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write ``predictions.json`` and ``categories.json``."""
    write_rows(folder, rows, categories)
