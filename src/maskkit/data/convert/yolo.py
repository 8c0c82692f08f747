"""Writes YOLO: ``data.yaml``, ``images/train``, ``labels/train``, ...; a data set without splits is all ``train``."""

from typing import Any

import numpy as np
import yaml

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.outlines import one_polygon
from maskkit.data.convert.regions import labelled, refuse_tags, without_background
from maskkit.data.records import Annotation, Record, box_of


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; crowds are left out."""
    refuse_tags(job, datasets)
    content: dict[str, Any] = {}
    for split, dataset in without_background(datasets).items():
        split = split or "train"
        content[split] = f"images/{split}"
        content["names"] = dict(enumerate(dataset.categories.names))
        labels = job.root / "labels" / split
        labels.mkdir(parents=True)
        copy, ids = job.copier(job.root / "images" / split), {}
        for record, lines in labelled(job, split, dataset, _lines):
            ids[name := copy(record)] = record.image_id
            (labels / name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
            job.counts["objects"] += len(lines)
            job.counts["crowds left out"] += len(record.annotations) - len(lines)
        job.number(ids)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (job.root / "data.yaml").write_text(text, encoding="utf-8")


def _lines(record: Record) -> list[str]:
    objects = [a for a in record.annotations if not a.crowd]
    return [f"{a.label} {' '.join(f'{v:.12g}' for v in fractions(a, record.size))}\n" for a in objects]


def fractions(annotation: Annotation, size: tuple[int, int]) -> list[float]:
    """The numbers of a YOLO line, as fractions of the image: a polygon, or centre and size of a box."""
    scale = np.array([size[1], size[0]], np.float64)
    if annotation.segmentation is not None:
        return np.clip(one_polygon(annotation, size).reshape(-1, 2) / scale, 0, 1).reshape(-1).tolist()
    corners = np.clip(np.reshape(box_of(annotation, size), (2, 2)) / scale, 0, 1)
    return np.concatenate([corners.mean(0), corners[1] - corners[0]]).tolist()
