"""Writes LabelMe: a json beside every image, in ``train/``, ``val/`` where there are splits."""

import json
from typing import Any

import numpy as np

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.outlines import polygons_of
from maskkit.data.convert.regions import labelled, refuse_tags, without_background
from maskkit.data.records import Annotation, Record, box_of


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; classes of one name are told apart by their ids."""
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    names, used = next(iter(datasets.values())).categories.titles, set[int]()

    def shapes_of(record: Record) -> list[dict[str, Any]]:
        return [s for n, a in enumerate(record.annotations, 1) for s in _shapes(a, record.size, names[a.label], n)]

    for split, dataset in datasets.items():
        copy, ids = job.copier(job.root / split), {}
        for record, shapes in labelled(job, split, dataset, shapes_of):
            job.counts["objects"] += len(record.annotations)
            used |= {a.label for a in record.annotations}
            ids[name := copy(record)] = record.image_id
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": name,
                "imageData": None,
                "imageHeight": record.size[0],
                "imageWidth": record.size[1],
            }
            (job.root / split / name).with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
        job.number(ids)
    job.counts["classes without an object left out"] += len(names) - len(used)


def _shapes(annotation: Annotation, size: tuple[int, int], name: str, group: int) -> list[dict[str, Any]]:
    """LabelMe shapes of one object: a polygon per part, or a rectangle flagged as a box without mask."""
    outlines, kind, flags = polygons_of(annotation, size), "polygon", {}
    if annotation.segmentation is None:
        outlines, kind, flags = [np.array(box_of(annotation, size))], "rectangle", {"box_only": True}
    if annotation.crowd:
        flags["crowd"] = True
    return [
        {
            "label": name,
            "points": outline.reshape(-1, 2).tolist(),
            "group_id": group if len(outlines) > 1 else None,
            "shape_type": kind,
            "flags": flags,
        }
        for outline in outlines
    ]
