"""Writes a Supervisely project: ``meta.json``, and ``img/`` and ``ann/`` in a folder for each split.

Masks become bitmaps, because Supervisely fills polygons by another rule. A data set without splits is ``ds0``.
"""

import base64
import io
import zlib
from typing import Any

import numpy as np
from PIL import Image

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import labelled, pixels_of, refuse_tags, without_background
from maskkit.data.records import Annotation, Record, box_of
from maskkit.files import write_json
from maskkit.geometry.paint import class_colours
from maskkit.geometry.rle import decode_region
from maskkit.prediction import Categories


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; classes of one name are told apart by their ids."""
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    categories = next(iter(datasets.values())).categories
    write_json(job.root / "meta.json", _meta(categories))

    def objects_of(record: Record) -> list[dict[str, Any]]:
        made = (_object(job, a, record.size, categories) for a in record.annotations)
        return [row for row in made if row is not None]

    for split, dataset in datasets.items():
        folder = job.root / (split or "ds0")
        copy = job.copier(folder / "img")
        (folder / "ann").mkdir()
        for record, objects in labelled(job, split, dataset, objects_of):
            content = {
                "description": "",
                "tags": [{"name": "image_id", "value": str(record.image_id)}],
                "size": {"height": record.size[0], "width": record.size[1]},
                "objects": objects,
            }
            write_json(folder / "ann" / f"{copy(record)}.json", content)
            job.counts["objects"] += len(objects)


def _meta(categories: Categories) -> dict[str, Any]:
    colours = class_colours(len(categories)).tolist()
    return {
        "classes": [
            {"id": i, "title": name, "shape": "any", "color": "#{:02x}{:02x}{:02x}".format(*colour)}
            for i, (name, colour) in enumerate(zip(categories.titles, colours, strict=True), 1)
        ],
        "tags": [
            {"name": "crowd", "value_type": "none", "color": "#888888"},
            {"name": "image_id", "value_type": "any_string", "color": "#888888"},
        ],
        "projectType": "images",
    }


def _object(job: Job, annotation: Annotation, size: tuple[int, int], categories: Categories) -> dict[str, Any] | None:
    """A bitmap, or a rectangle where the mask is unknown; None for a mask without a pixel."""
    shape = annotation.segmentation
    if shape is None:
        x1, y1, x2, y2 = box_of(annotation, size)
        drawn = {"geometryType": "rectangle", "points": {"exterior": [[x1, y1], [x2, y2]], "interior": []}}
    else:
        job.counts["polygons as pixels"] += isinstance(shape, list | tuple)
        if (rle := pixels_of(job, annotation, size)) is None:
            return None
        region, top, left = decode_region(rle)
        drawn = {"geometryType": "bitmap", "bitmap": {"data": _packed(region), "origin": [left, top]}}
    tags = [{"name": "crowd", "value": None}] if annotation.crowd else []
    kept = {"id": annotation.id, "classId": annotation.label + 1, "classTitle": categories.titles[annotation.label]}
    return kept | {"tags": tags} | drawn


def _packed(region: np.ndarray) -> str:
    """A PNG with one transparent and one white value, packed by zlib, in base64."""
    image = Image.fromarray(region.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=0)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")
