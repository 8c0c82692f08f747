"""The results of a part as a Parquet file: a row for each object, with the image, the model and the version.

An image without objects has one row without a class; an image that could not be read has one row with its error. So
every image of a run occurs in the column ``image_id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple

from maskkit.infer.runtimes import require
from maskkit.prediction import Categories


class Done(NamedTuple):
    """An image that was predicted, or that could not be read."""

    image_id: int
    image: str
    """Address, path, or name in a table."""
    size: tuple[int, int] | None
    """(Height, width); None if it could not be read."""
    rows: list[dict[str, Any]]
    """COCO's results, see `Prediction.to_coco`."""
    error: str | None = None


def schema() -> Any:
    """The columns. ``box`` is ``x y width height`` in pixels, ``mask`` COCO's compressed run lengths at image size."""
    pa = require("pyarrow", "cluster")
    name = pa.dictionary(pa.int32(), pa.string())
    columns = {
        "image_id": pa.int64(),
        "image": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "category_id": pa.int64(),
        "class": name,
        "score": pa.float64(),
        "mask_score": pa.float64(),
        "box": pa.list_(pa.float64(), 4),
        "mask": pa.string(),
        "error": pa.string(),
        "model": name,
        "version": name,
    }
    return pa.schema(list(columns.items()))


def encoded(images: Iterable[Done], categories: Categories, model: str, version: str) -> bytes:
    """A Parquet file of the results."""
    pa, parquet = require("pyarrow", "cluster"), require("pyarrow.parquet", "cluster")
    columns: dict[str, list[Any]] = {name: [] for name in schema().names}
    names = dict(zip(categories.ids, categories.names, strict=True))
    for done in images:
        height, width = done.size or (None, None)
        fixed = {"image_id": done.image_id, "image": done.image, "height": height, "width": width}
        fixed |= {"error": done.error, "model": model, "version": version}
        for row in done.rows or [{}]:
            values = fixed | {
                "category_id": row.get("category_id"),
                "class": names.get(row.get("category_id")),  # type: ignore[arg-type]
                "score": row.get("score"),
                "mask_score": row.get("mask_score"),
                "box": row.get("bbox"),
                "mask": row["segmentation"]["counts"] if "segmentation" in row else None,
            }
            for name, column in columns.items():
                column.append(values[name])
    content = BytesIO()
    parquet.write_table(pa.table(columns, schema()), content, compression="zstd")
    return content.getvalue()


def decoded(file: BinaryIO) -> Iterator[Done]:
    """The images of `encoded`, in order."""
    parquet = require("pyarrow.parquet", "cluster")
    for batch in groupby(_records(parquet.ParquetFile(file)), lambda record: record["image_id"]):
        records = list(batch[1])
        one = records[0]
        size = (one["height"], one["width"]) if one["height"] is not None else None
        rows = [_row(record) for record in records if record["category_id"] is not None]
        yield Done(one["image_id"], one["image"], size, rows, one["error"])


def _records(table: Any) -> Iterator[Mapping[str, Any]]:
    for batch in table.iter_batches():
        yield from batch.to_pylist()


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """COCO's row, with its fields in the order of `Prediction.to_coco`."""
    row: dict[str, Any] = {"image_id": record["image_id"], "category_id": record["category_id"]}
    score = {} if record["score"] is None else {"score": record["score"]}
    if record["box"] is not None:
        row |= {"bbox": record["box"]} | score
    if record["mask"] is not None:
        row["segmentation"] = {"size": [record["height"], record["width"]], "counts": record["mask"]}
    row |= score
    return row if record["mask_score"] is None else row | {"mask_score": record["mask_score"]}
