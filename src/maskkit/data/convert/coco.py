"""Writes COCO: ``train.json``, ``val.json`` (or ``annotations.json``) beside ``images/``."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import as_stuff, labelled, mapped, refuse_tags, without_background
from maskkit.data.records import Record, coco_row
from maskkit.prediction import Categories


def write(job: Job, datasets: Splits) -> None:
    """Write the splits. Regions of label maps become stuff, which ``isthing`` says."""
    refuse_tags(job, datasets)
    datasets = without_background(as_stuff(datasets) if mapped(datasets) else datasets)
    for split, dataset in datasets.items():
        copy = job.copier(job.root / "images" / split)
        images, rows = [], []
        fresh = itertools.count(1 + max((a.id for r in dataset.records for a in r.annotations), default=0))
        for record, made in labelled(job, split, dataset, partial(_rows, dataset.categories, fresh)):
            height, width = record.size
            images.append({"id": record.image_id, "file_name": copy(record), "height": height, "width": width})
            rows += made
        job.counts["objects"] += len(rows)
        content = {"images": images, "categories": dataset.categories.to_coco(), "annotations": rows}
        (job.root / f"{split or 'annotations'}.json").write_text(json.dumps(content), encoding="utf-8")


def _rows(categories: Categories, fresh: Iterator[int], record: Record) -> list[dict[str, Any]]:
    """COCO's annotations of an image; regions of label maps get ``fresh`` ids."""
    objects = (a if a.id else replace(a, id=next(fresh)) for a in record.annotations)
    return [coco_row(record, a, categories) for a in objects]
