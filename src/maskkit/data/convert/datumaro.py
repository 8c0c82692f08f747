"""Writes Datumaro: ``annotations/train.json`` (or ``default.json``) and ``images/train/``."""

from typing import Any

import numpy as np

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import labelled, refuse_tags, without_background
from maskkit.data.records import Annotation, Record, box_of
from maskkit.files import write_json
from maskkit.geometry.rle import to_text


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; classes of one name are told apart by their ids."""
    refuse_tags(job, datasets)
    for split, dataset in without_background(datasets).items():
        name = split or "default"
        copy = job.copier(job.root / "images" / name)
        items = []
        for record, rows in labelled(job, split, dataset, _objects):
            file = copy(record)
            image = {"path": file, "size": list(record.size)}
            item = {"id": file.rpartition(".")[0], "annotations": rows, "attr": {"id": record.image_id}}
            items.append(item | {"image": image})
            job.counts["objects"] += len(record.annotations)
        labels = [{"name": title, "parent": "", "attributes": []} for title in dataset.categories.titles]
        content = {
            "dm_format_version": "1.0",
            "media_type": 2,
            "infos": {},
            "categories": {"label": {"labels": labels, "label_groups": [], "attributes": ["is_crowd"]}},
            "items": items,
        }
        (job.root / "annotations").mkdir(exist_ok=True)
        write_json(job.root / "annotations" / f"{name}.json", content)


def _objects(record: Record) -> list[dict[str, Any]]:
    return [row for n, a in enumerate(record.annotations, 1) for row in _rows(a, record.size, n)]


def _rows(annotation: Annotation, size: tuple[int, int], group: int) -> list[dict[str, Any]]:
    """The annotations of one object: a polygon per part, a mask, or a box where the mask is unknown."""
    shape = annotation.segmentation
    if shape is None:
        x1, y1, x2, y2 = box_of(annotation, size)
        made = [{"type": "bbox", "bbox": [x1, y1, x2 - x1, y2 - y1]}]
    elif isinstance(shape, list | tuple):
        made = [{"type": "polygon", "points": np.asarray(part, np.float64).tolist()} for part in shape]
    else:
        rle = annotation.rle(size)
        assert rle is not None
        made = [{"type": "mask", "rle": to_text(rle)}]
    common = {
        "id": annotation.id,
        "label_id": annotation.label,
        "group": group,
        "z_order": 0,
        "attributes": {"is_crowd": annotation.crowd},
    }
    return [common | row for row in made]
