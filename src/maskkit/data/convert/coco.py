"""Writes COCO: ``train.json``, ``val.json`` (or ``annotations.json``) beside ``images/``."""

import itertools
import json
from dataclasses import replace

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import as_stuff, label_map, mapped, refuse_tags, with_regions, without_background
from maskkit.data.records import coco_row
from maskkit.errors import DataError


def write(job: Job, datasets: Splits) -> None:
    """Write the splits. Regions of label maps become stuff, which ``isthing`` says."""
    refuse_tags(job, datasets)
    datasets = without_background(as_stuff(datasets) if mapped(datasets) else datasets)
    for split, dataset in datasets.items():
        copy = job.copier(job.root / "images" / split)
        images, rows = [], []
        fresh = itertools.count(1 + max((a.id for r in dataset.records for a in r.annotations), default=0))
        for record in job.records(split, dataset):
            try:
                found = with_regions(job, record, dataset.categories, label_map(record, dataset.categories))
                objects = [a if a.id else replace(a, id=next(fresh)) for a in found.annotations]
                made = [coco_row(found, a, dataset.categories) for a in objects]
            except DataError as error:
                job.fail(record, error)
                continue
            height, width = record.size
            images.append({"id": record.image_id, "file_name": copy(record), "height": height, "width": width})
            rows += made
        job.counts["objects"] += len(rows)
        content = {"images": images, "categories": dataset.categories.to_coco(), "annotations": rows}
        (job.root / f"{split or 'annotations'}.json").write_text(json.dumps(content), encoding="utf-8")
